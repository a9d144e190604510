"""Mixtral as a function: experts, a sliding window, and a cache that is all the state there is."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gimlax import models
from gimlax.errors import SpecError
from gimlax.models import (
    MixtralConfig,
    abstract_cache,
    abstract_params,
    decoder_apply,
    init_cache,
    init_params,
)

SMALL = MixtralConfig(
    vocab_size=61,
    width=24,
    num_layers=2,
    num_heads=6,
    num_kv_heads=2,
    head_size=8,
    mlp_width=20,
    max_context=64,
    num_experts=5,
    num_chosen=2,
)
CONFIGS = {
    "two of five": SMALL,
    "window": dataclasses.replace(SMALL, sliding_window=3),
    "one of three, tied": dataclasses.replace(SMALL, num_experts=3, num_chosen=1, tied=True),
}
ABSOLUTE = 5e-6  # float32 against float32 at another shape


@pytest.fixture(params=CONFIGS, name="config")
def config_fixture(request):
    return CONFIGS[request.param]


def some_tokens(config, batch, length, seed=0):
    return jax.random.randint(jax.random.key(seed), (batch, length), 0, config.vocab_size)


def test_decoding_token_by_token_equals_prefill(config):
    params, tokens = init_params(config), some_tokens(config, 2, 10)
    apply = jax.jit(decoder_apply(config))
    whole, filled = apply(params, init_cache(config, 2, 12), tokens, jnp.int32(0))
    cache = init_cache(config, 2, 12)
    for t in range(10):
        logits, cache = apply(params, cache, tokens[:, t : t + 1], jnp.int32(t))
        np.testing.assert_allclose(logits[:, 0], whole[:, t], atol=ABSOLUTE, rtol=0)
    for one, other in zip(jax.tree.leaves(cache), jax.tree.leaves(filled), strict=True):
        np.testing.assert_allclose(one, other, atol=ABSOLUTE, rtol=0)


def test_what_lies_before_the_window_does_not_matter():
    config = dataclasses.replace(SMALL, num_layers=1, sliding_window=3)
    params, tokens = init_params(config), some_tokens(config, 1, 8)
    apply = jax.jit(decoder_apply(config))
    run = lambda tokens: apply(params, init_cache(config, 1, 8), tokens, jnp.int32(0))[0][0]  # noqa: E731
    changed = run(tokens.at[0, 2].add(1)) - run(tokens)
    touched = np.flatnonzero(np.abs(np.asarray(changed)).max(-1))
    assert touched.tolist() == [2, 3, 4]


def test_a_layer_is_the_sum_of_the_chosen_experts():
    config = dataclasses.replace(SMALL, num_layers=1)
    from flax import nnx

    module = models.Mixtral(config, rngs=nnx.Rngs(1)).layers[0].mlp
    x = np.asarray(jax.random.normal(jax.random.key(2), (3, 4, config.width)))
    weights = {name: np.asarray(getattr(module, name)[...], np.float64) for name in ("gate", "up")}
    down, router = (np.asarray(getattr(module, name)[...]) for name in ("down", "router"))
    expected = np.zeros_like(x)
    for place in np.ndindex(x.shape[:2]):
        scores = np.exp(router @ x[place])
        scores /= scores.sum()
        best = np.argsort(-scores)[: config.num_chosen]
        for expert in best:
            gate, up = (weights[name][expert] @ x[place] for name in ("gate", "up"))
            share = scores[expert] / scores[best].sum()
            expected[place] += share * (down[expert] @ (gate / (1 + np.exp(-gate)) * up))
    np.testing.assert_allclose(jax.jit(module)(x), expected, atol=ABSOLUTE, rtol=0)


def test_bfloat16_follows_float32():
    config, params = SMALL.with_dtype("bfloat16"), init_params(SMALL)
    tokens = some_tokens(SMALL, 2, 9)
    narrow = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    exact, _ = jax.jit(decoder_apply(SMALL))(params, init_cache(SMALL, 2, 9), tokens, jnp.int32(0))
    logits, cache = jax.jit(decoder_apply(config))(
        narrow, init_cache(config, 2, 9), tokens, jnp.int32(0)
    )
    assert {leaf.dtype for leaf in jax.tree.leaves(cache)} == {jnp.dtype("bfloat16")}
    # A router's close scores may fall the other way, so a few tokens go to another expert.
    off = np.abs(np.asarray(logits - exact)).max(-1)
    assert np.median(off) < 0.15


PUBLISHED = {"MIXTRAL_8X7B": 46_702_792_704, "MIXTRAL_8X22B": 140_620_634_112}


@pytest.mark.parametrize("name", PUBLISHED)
def test_presets_have_as_many_parameters_as_published(name):
    leaves = jax.tree.leaves(abstract_params(getattr(models, name)))
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves)
    assert sum(leaf.size for leaf in leaves) == PUBLISHED[name]


def test_experts_carry_their_name():
    jaxpr = jax.make_jaxpr(decoder_apply(SMALL))(
        abstract_params(SMALL),
        abstract_cache(SMALL, 1, 8),
        jax.ShapeDtypeStruct((1, 3), "int32"),
        jax.ShapeDtypeStruct((), "int32"),
    )
    found = [eqn for eqn in jaxpr.eqns if eqn.params.get("name") == "gimlax.expert_layer"]
    assert len(found) == SMALL.num_layers
    assert {str(eqn.source_info.name_stack) for eqn in found} == {"layers.0/mlp", "layers.1/mlp"}


def test_everything_wrong_with_a_config_is_said_at_once():
    with pytest.raises(SpecError) as caught:
        dataclasses.replace(SMALL, num_chosen=6, sliding_window=0, width=0)
    for words in ("MixtralConfig: ", "width is 0", "num_chosen is 6", "sliding_window is 0"):
        assert words in str(caught.value)
