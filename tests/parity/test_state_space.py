"""Mamba and Mamba-2 here and in Hugging Face transformers, on weights that travel by its files."""

import importlib
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gimlax.models import mamba, mamba2
from gimlax.models.huggingface import load_huggingface
from gimlax.models.state_space import init_state, state_space_apply
from tests.models.test_state_space import PUBLISHED

missing = [name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None]
pytestmark = [
    pytest.mark.skipif(bool(missing), reason=f"parity needs {', '.join(missing)}: `make parity`"),
    pytest.mark.filterwarnings("ignore"),  # what torch and transformers warn of is theirs
]

ABSOLUTE = 1e-4
ABSOLUTE_BFLOAT16 = 0.1  # bfloat16 here against float32 there; logits are of order 3
CASES = {
    "mamba": ("Mamba", {"hidden_size": 24, "state_size": 5}),
    "mamba, untied, biases, short convolution": (
        "Mamba",
        {
            "hidden_size": 20,
            "state_size": 7,
            "expand": 3,
            "time_step_rank": 3,
            "conv_kernel": 3,
            "use_bias": True,
            "use_conv_bias": False,
            "tie_word_embeddings": False,
        },
    ),
    "mamba, one layer, one state": (
        "Mamba",
        {"hidden_size": 33, "state_size": 1, "num_hidden_layers": 1, "layer_norm_epsilon": 1e-3},
    ),
    "mamba-2, two groups": (
        "Mamba2",
        {"hidden_size": 24, "state_size": 5, "num_heads": 6, "head_dim": 8, "n_groups": 2},
    ),
    "mamba-2, tied, biases, steps clipped": (
        "Mamba2",
        {
            "hidden_size": 20,
            "state_size": 7,
            "num_heads": 5,
            "head_dim": 8,
            "n_groups": 1,
            "conv_kernel": 3,
            "use_bias": True,
            "use_conv_bias": False,
            "tie_word_embeddings": True,
            "time_step_limit": (0.01, 0.1),
            "chunk_size": 16,
        },
    ),
    "mamba-2, a head a group": (
        "Mamba2",
        {
            "hidden_size": 27,
            "state_size": 3,
            "expand": 1,
            "num_heads": 3,
            "head_dim": 9,
            "n_groups": 3,
            "num_hidden_layers": 1,
        },
    ),
}


@pytest.fixture(scope="module", params=CASES, name="both")
def both_fixture(request, tmp_path_factory):
    """(their model, our config, its parameters)"""
    torch, transformers = (importlib.import_module(name) for name in ("torch", "transformers"))
    kind, sizes = CASES[request.param]
    config = getattr(transformers, f"{kind}Config")(
        **{"vocab_size": 61, "num_hidden_layers": 2} | sizes
    )
    torch.manual_seed(1)
    theirs = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():  # zeros and ones would hide where they go
            parameter.add_(0.1 * torch.randn_like(parameter))
    folder = tmp_path_factory.mktemp("saved")
    theirs.save_pretrained(folder)
    ours, params = load_huggingface(folder)
    assert ours.tied is config.tie_word_embeddings
    return theirs, ours, params


def expected_logits(theirs, ids):
    torch = importlib.import_module("torch")
    with torch.no_grad():
        return theirs(torch.tensor(ids)).logits.numpy()


def some_ids(length):
    return np.random.default_rng(length).integers(0, 61, (2, length)).astype(np.int32)


@pytest.mark.parametrize("length", [1, 7, 133])
def test_logits_are_those_of_transformers(both, length):
    theirs, config, params = both
    ids = some_ids(length)
    logits, _ = jax.jit(state_space_apply(config))(params, init_state(config, 2), ids, jnp.int32(0))
    expected = expected_logits(theirs, ids)
    np.testing.assert_allclose(logits, expected, atol=ABSOLUTE, rtol=0)
    assert np.abs(expected).max() > 1


def test_decoding_stays_with_transformers(both):
    theirs, config, params = both
    ids, apply = some_ids(16), jax.jit(state_space_apply(config))
    padded = np.where(np.arange(11) < 9, ids[:, :11], 5).astype(np.int32)
    logits, state = apply(params, init_state(config, 2), padded, jnp.int32(0), jnp.int32(8))
    expected = expected_logits(theirs, ids)
    for position in range(9, 16):
        np.testing.assert_allclose(logits[:, 0], expected[:, position - 1], atol=ABSOLUTE, rtol=0)
        token = ids[:, position : position + 1]
        logits, state = apply(params, state, token, jnp.int32(position))


def test_bfloat16_stays_near_transformers(both):
    theirs, config, params = both
    narrow = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), params)
    config, ids = config.with_dtype("bfloat16"), some_ids(33)
    logits, _ = jax.jit(state_space_apply(config))(narrow, init_state(config, 2), ids, jnp.int32(0))
    np.testing.assert_allclose(logits, expected_logits(theirs, ids), atol=ABSOLUTE_BFLOAT16, rtol=0)


@pytest.mark.parametrize("name", PUBLISHED)
def test_transformers_counts_as_many_parameters(name):
    torch, transformers = (importlib.import_module(name) for name in ("torch", "transformers"))
    if name.startswith("MAMBA_"):
        sizes = getattr(mamba, name)
        kind, more = "Mamba", {}
    else:
        sizes = getattr(mamba2, name)
        kind = "Mamba2"
        more = {
            "num_heads": sizes.num_heads,
            "head_dim": sizes.head_size,
            "n_groups": sizes.num_groups,
        }
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=sizes.vocab_size,
        hidden_size=sizes.width,
        num_hidden_layers=sizes.num_layers,
        state_size=sizes.state_size,
        tie_word_embeddings=sizes.tied,
        **more,
    )
    with torch.device("meta"):
        theirs = getattr(transformers, f"{kind}ForCausalLM")(config)
    assert sum(p.numel() for p in theirs.parameters()) == PUBLISHED[name]
