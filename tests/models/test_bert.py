"""BERT as a function: every token sees every other that is there, and no padding."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf

from gimlax.errors import SpecError
from gimlax.models import BERT_BASE, BERT_LARGE, MINILM_L6, BertConfig, bert_apply, embed_apply
from gimlax.models.decoder import abstract_params, init_params
from tests.specimens import moved

SMALL = BertConfig(
    vocab_size=61, width=24, num_layers=2, num_heads=3, mlp_width=40, max_context=16, num_types=3
)
CONFIGS = {
    "three heads": SMALL,
    "one head, no pooler": dataclasses.replace(SMALL, num_heads=1, pooler=False, norm_eps=1e-3),
    "a head of one": dataclasses.replace(SMALL, num_heads=24, num_types=1),
}
ABSOLUTE = 5e-6  # float32 against float32 at another shape
ABSOLUTE_TWIN = 1e-5  # float32 against float64
ABSOLUTE_BFLOAT16 = 0.1  # bfloat16 against float32; hidden numbers are of order 1


@pytest.fixture(params=CONFIGS, name="config")
def config_fixture(request):
    return CONFIGS[request.param]


def some_rows(config, lengths, width=None, seed=0):
    """Tokens padded with some, mask, types."""
    rng = np.random.default_rng(seed)
    shape = (len(lengths), width or max(lengths))
    tokens = rng.integers(0, config.vocab_size, shape).astype(np.int32)
    mask = (np.arange(shape[1]) < np.array(lengths)[:, None]).astype(np.int32)
    return tokens, mask, rng.integers(0, config.num_types, shape).astype(np.int32)


def hidden_in_numpy(config, params, tokens, types):
    """One sequence without padding, head by head: the slow twin. [token, width], [width]"""
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)

    def norm(x, weights):
        centred = x - x.mean(axis=-1, keepdims=True)
        scale = np.sqrt((centred**2).mean(axis=-1, keepdims=True) + config.norm_eps)
        return centred / scale * weights["scale"] + weights["bias"]

    def dense(x, weights):
        return x @ weights["weight"].T + weights["bias"]

    x = params["embed"][tokens] + params["types"][types] + params["positions"][: len(tokens)]
    x = norm(x, params["embed_norm"])
    size = config.width // config.num_heads
    for layer in (params["layers"][i] for i in range(config.num_layers)):
        query, key, value = (dense(x, layer[name]) for name in ("query", "key", "value"))
        mixed = np.zeros_like(x)
        for head in range(config.num_heads):
            part = slice(head * size, (head + 1) * size)
            scores = np.exp(query[:, part] @ key[:, part].T / np.sqrt(size))
            mixed[:, part] = scores / scores.sum(axis=1, keepdims=True) @ value[:, part]
        x = norm(x + dense(mixed, layer["output"]), layer["attention_norm"])
        up = dense(x, layer["up"])
        hidden = up * (1 + erf(up / np.sqrt(2))) / 2
        x = norm(x + dense(hidden, layer["down"]), layer["mlp_norm"])
    return x, np.tanh(dense(x[0], params["pooler"])) if config.pooler else None


def test_hidden_states_are_those_of_the_slow_twin(config):
    params = moved(init_params(config))
    tokens, mask, types = some_rows(config, [9, 4])
    hidden, pooled = jax.jit(bert_apply(config))(params, tokens, mask, types)
    for row, length in enumerate((9, 4)):
        expected, top = hidden_in_numpy(config, params, tokens[row, :length], types[row, :length])
        np.testing.assert_allclose(hidden[row, :length], expected, atol=ABSOLUTE_TWIN, rtol=0)
        if config.pooler:
            np.testing.assert_allclose(pooled[row], top, atol=ABSOLUTE_TWIN, rtol=0)
        else:
            assert pooled is None


def test_types_are_zero_where_none_are_given():
    params = moved(init_params(SMALL))
    tokens, mask, types = some_rows(SMALL, [5])
    apply = jax.jit(bert_apply(SMALL))
    jax.tree.map(
        np.testing.assert_array_equal,
        apply(params, tokens, mask),
        apply(params, tokens, mask, np.zeros_like(types)),
    )


def test_padding_and_empty_rows_never_matter():
    params = moved(init_params(SMALL))
    tokens, mask, _ = some_rows(SMALL, [6, 0, 3], width=16)
    embed = jax.jit(embed_apply(SMALL))
    params.pop("pooler")
    found = embed(params, tokens, mask)
    other = embed(params, np.where(mask, tokens, 7), mask)
    np.testing.assert_array_equal(found, other)
    alone = embed(params, tokens[2:, :3], mask[2:, :3])
    np.testing.assert_allclose(found[2], alone[0], atol=ABSOLUTE, rtol=0)
    np.testing.assert_array_equal(found[1], 0)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("normalize", [True, False])
def test_a_sentence_is_made_of_its_tokens(pooling, normalize):
    params = moved(init_params(SMALL))
    tokens, mask, _ = some_rows(SMALL, [5, 8])
    hidden, _ = jax.jit(bert_apply(SMALL))(params, tokens, mask)
    params.pop("pooler")
    found = jax.jit(embed_apply(SMALL, pooling=pooling, normalize=normalize))(params, tokens, mask)
    for row, length in enumerate((5, 8)):
        expected = hidden[row, :length].mean(axis=0) if pooling == "mean" else hidden[row, 0]
        if normalize:
            expected = expected / np.sqrt((expected**2).sum())
        np.testing.assert_allclose(found[row], expected, atol=ABSOLUTE, rtol=0)


def test_bfloat16_follows_float32():
    params = init_params(SMALL)
    narrow = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    tokens, mask, types = some_rows(SMALL, [12, 12])
    exact, _ = jax.jit(bert_apply(SMALL))(params, tokens, mask, types)
    hidden, pooled = jax.jit(bert_apply(SMALL.with_dtype("bfloat16")))(narrow, tokens, mask, types)
    assert hidden.dtype == pooled.dtype == jnp.float32
    np.testing.assert_allclose(hidden, exact, atol=ABSOLUTE_BFLOAT16, rtol=0)


def test_operations_carry_their_names_and_layers_their_scopes():
    rows = jax.ShapeDtypeStruct((2, 5), "int32")
    eqns = jax.make_jaxpr(bert_apply(SMALL))(abstract_params(SMALL), rows, rows, rows).jaxpr.eqns
    names = [eqn.params["name"] for eqn in eqns if eqn.primitive.name == "composite"]
    layer = ["bidirectional_attention", "layer_norm", "mlp", "layer_norm"]
    assert names == [f"gimlax.{name}" for name in ["layer_norm", *layer * SMALL.num_layers]]
    scopes = {str(eqn.source_info.name_stack) for eqn in eqns}
    assert {"embed", "pooler", "layers.0/attention", "layers.1/mlp"} <= scopes


def test_shapes_of_the_published_models_need_no_weights():
    counts = {}
    for config in (BERT_BASE, BERT_LARGE, MINILM_L6):
        leaves = jax.tree.leaves(abstract_params(config))
        assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves)
        counts[config.width] = sum(leaf.size for leaf in leaves)
    assert counts == {768: 109_482_240, 1024: 335_141_888, 384: 22_713_216}


def test_abstract_params_describe_real_ones(config):
    described = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), abstract_params(config))
    real = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), init_params(config))
    assert described == real


def test_faults_are_said():
    with pytest.raises(SpecError, match=r"num_layers is 0.*width is 24.* num_heads 5"):
        dataclasses.replace(SMALL, num_layers=0, num_heads=5)
    rows = jax.ShapeDtypeStruct((1, 17), "int32")
    with pytest.raises(SpecError, match="17 long, the model knows 16"):
        jax.eval_shape(bert_apply(SMALL), abstract_params(SMALL), rows, rows)
