"""The Llama as a function: one function at two shapes, a cache that is all the state there is."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gimlax import models
from gimlax.errors import SpecError
from gimlax.models import (
    Llama,
    LlamaConfig,
    RopeScaling,
    abstract_cache,
    abstract_params,
    init_cache,
    init_params,
    llama_apply,
)

GROUPED = LlamaConfig(
    vocab_size=61,
    width=24,
    num_layers=3,
    num_heads=6,
    num_kv_heads=2,
    head_size=8,  # num_heads * head_size is not width
    mlp_width=40,
    max_context=64,
    tied=True,
)
CONFIGS = {
    "grouped, tied": GROUPED,
    "grouped, untied": dataclasses.replace(GROUPED, tied=False),
    "one key/value head per head": dataclasses.replace(GROUPED, num_kv_heads=6),
    "one key/value head for all": dataclasses.replace(GROUPED, num_kv_heads=1),
    "rotary frequencies kept, blended and divided": dataclasses.replace(
        GROUPED,
        rope_theta=100.0,  # wavelengths 6.3, 20, 63, 199, where 8 and 32 are the bounds
        rope_scaling=RopeScaling(
            factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_context=32
        ),
    ),
}
ABSOLUTE = 5e-6  # float32 against float32 at another shape
ABSOLUTE_BFLOAT16 = 0.15  # bfloat16 against float32; logits are of order 1


@pytest.fixture(params=CONFIGS, name="config")
def config_fixture(request):
    return CONFIGS[request.param]


def some_tokens(config, batch, length, seed=0):
    return jax.random.randint(jax.random.key(seed), (batch, length), 0, config.vocab_size)


def logits_in_numpy(config, params, tokens):
    """The same model in loops over heads and positions, no cache: the slow twin. [token, vocab]"""
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)

    def norm(x, scale):
        return x / np.sqrt((x * x).mean() + config.norm_eps) * scale

    def scaled(frequency):
        scaling = config.rope_scaling
        if scaling is None:
            return frequency
        low = scaling.original_context / scaling.low_freq_factor
        high = scaling.original_context / scaling.high_freq_factor
        length = 2 * np.pi / frequency
        if length < high:
            return frequency
        if length > low:
            return frequency / scaling.factor
        smooth = (scaling.original_context / length - scaling.low_freq_factor) / (
            scaling.high_freq_factor - scaling.low_freq_factor
        )
        return (1 - smooth) * frequency / scaling.factor + smooth * frequency

    def rotate(head, position):
        half = config.head_size // 2
        out = np.empty_like(head)
        for i in range(half):
            angle = position * scaled(config.rope_theta ** (-2 * i / config.head_size))
            a, b = head[i], head[i + half]
            out[i] = a * np.cos(angle) - b * np.sin(angle)
            out[i + half] = b * np.cos(angle) + a * np.sin(angle)
        return out

    stream = params["embed"][np.asarray(tokens)]
    for layer in (params["layers"][i] for i in range(config.num_layers)):
        weights = layer["attention"]
        normed = [norm(x, layer["attention_norm"]["scale"]) for x in stream]
        split = lambda rows: rows.reshape(-1, config.head_size)  # noqa: E731
        keys = [
            [rotate(head, t) for head in split(weights["key"] @ x)] for t, x in enumerate(normed)
        ]
        values = [split(weights["value"] @ x) for x in normed]
        out = []
        for t, x in enumerate(normed):
            mixed = []
            for h, head in enumerate(split(weights["query"] @ x)):
                shared = h * config.num_kv_heads // config.num_heads
                turned = rotate(head, t)
                scores = np.array([turned @ keys[s][shared] for s in range(t + 1)])
                shares = np.exp(scores / np.sqrt(config.head_size))
                shares /= shares.sum()
                mixed.append(sum(shares[s] * values[s][shared] for s in range(t + 1)))
            x = stream[t] + weights["output"] @ np.concatenate(mixed)
            inner = norm(x, layer["mlp_norm"]["scale"])
            gate = layer["mlp"]["gate"] @ inner
            hidden = gate / (1 + np.exp(-gate)) * (layer["mlp"]["up"] @ inner)
            out.append(x + layer["mlp"]["down"] @ hidden)
        stream = np.array(out)
    head = params["embed"] if config.tied else params["head"]
    return np.array([head @ norm(x, params["norm"]["scale"]) for x in stream])


def test_logits_are_those_of_the_slow_twin(config):
    params, tokens = init_params(config), some_tokens(config, 1, 7)
    logits, _ = jax.jit(llama_apply(config))(params, init_cache(config, 1, 9), tokens, jnp.int32(0))
    np.testing.assert_allclose(
        logits[0], logits_in_numpy(config, params, tokens[0]), atol=ABSOLUTE, rtol=0
    )


def test_decoding_token_by_token_equals_prefill(config):
    params, tokens = init_params(config), some_tokens(config, 2, 10)
    apply = jax.jit(llama_apply(config))
    whole, filled = apply(params, init_cache(config, 2, 12), tokens, jnp.int32(0))
    cache = init_cache(config, 2, 12)
    for t in range(10):
        logits, cache = apply(params, cache, tokens[:, t : t + 1], jnp.int32(t))
        np.testing.assert_allclose(logits[:, 0], whole[:, t], atol=ABSOLUTE, rtol=0)
    for one, other in zip(jax.tree.leaves(cache), jax.tree.leaves(filled), strict=True):
        np.testing.assert_allclose(one, other, atol=ABSOLUTE, rtol=0)


def test_prefill_in_two_parts_equals_prefill():
    params, tokens = init_params(GROUPED), some_tokens(GROUPED, 2, 10)
    apply = jax.jit(llama_apply(GROUPED))
    whole, _ = apply(params, init_cache(GROUPED, 2, 12), tokens, jnp.int32(0))
    _, cache = apply(params, init_cache(GROUPED, 2, 12), tokens[:, :6], jnp.int32(0))
    rest, _ = apply(params, cache, tokens[:, 6:], jnp.int32(6))
    np.testing.assert_allclose(rest, whole[:, 6:], atol=ABSOLUTE, rtol=0)


def test_padding_behind_a_prompt_never_matters():
    params, tokens = init_params(GROUPED), some_tokens(GROUPED, 1, 8)
    apply = jax.jit(llama_apply(GROUPED))
    whole, _ = apply(params, init_cache(GROUPED, 1, 16), tokens, jnp.int32(0))
    padded = jnp.concatenate([tokens[:, :5], jnp.full((1, 7), 60)], axis=1)
    logits, cache = apply(params, init_cache(GROUPED, 1, 16), padded, jnp.int32(0), jnp.int32(4))
    assert logits.shape == (1, 1, GROUPED.vocab_size)
    np.testing.assert_allclose(logits[:, 0], whole[:, 4], atol=ABSOLUTE, rtol=0)
    for t in range(5, 8):
        logits, cache = apply(params, cache, tokens[:, t : t + 1], jnp.int32(t))
        np.testing.assert_allclose(logits[:, 0], whole[:, t], atol=ABSOLUTE, rtol=0)


def test_sequences_at_different_positions_do_not_touch_each_other():
    params, tokens = init_params(GROUPED), some_tokens(GROUPED, 2, 8)
    apply = jax.jit(llama_apply(GROUPED))
    lengths = jnp.array([3, 6], jnp.int32)
    logits, cache = apply(
        params, init_cache(GROUPED, 2, 8), tokens, jnp.zeros(2, jnp.int32), lengths - 1
    )
    step, _ = apply(params, cache, jnp.take_along_axis(tokens, lengths[:, None], 1), lengths)
    for row in range(2):
        alone, _ = apply(params, init_cache(GROUPED, 1, 8), tokens[row : row + 1], jnp.int32(0))
        np.testing.assert_allclose(logits[row, 0], alone[0, lengths[row] - 1], atol=ABSOLUTE)
        np.testing.assert_allclose(step[row, 0], alone[0, lengths[row]], atol=ABSOLUTE)


@pytest.mark.parametrize(("batch", "length"), [(1, 1), (8, 1), (2, 5)])
def test_bfloat16_follows_float32(batch, length):
    config = GROUPED.with_dtype("bfloat16")
    params, tokens = init_params(GROUPED), some_tokens(GROUPED, batch, length)
    narrow = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    exact, _ = jax.jit(llama_apply(GROUPED))(
        params, init_cache(GROUPED, batch, 8), tokens, jnp.int32(0)
    )
    logits, cache = jax.jit(llama_apply(config))(
        narrow, init_cache(config, batch, 8), tokens, jnp.int32(0)
    )
    assert logits.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(cache)} == {jnp.dtype("bfloat16")}
    np.testing.assert_allclose(logits, exact, atol=ABSOLUTE_BFLOAT16, rtol=0)


def test_dtypes_are_separate_choices():
    config = dataclasses.replace(
        GROUPED, param_dtype="bfloat16", compute_dtype="float32", cache_dtype="float16"
    )
    assert {leaf.dtype for leaf in jax.tree.leaves(abstract_params(config))} == {
        jnp.dtype("bfloat16")
    }
    params, cache = init_params(config), init_cache(config, 1, 8)
    jaxpr = jax.make_jaxpr(llama_apply(config))(params, cache, some_tokens(config, 1, 3), 0)
    stream = {
        eqn.outvars[0].aval.dtype
        for eqn in jaxpr.eqns
        if eqn.primitive.name == "add" and eqn.outvars[0].aval.shape == (1, 3, config.width)
    }
    assert stream == {jnp.dtype("float32")}
    assert {leaf.dtype for leaf in jax.tree.leaves(cache)} == {jnp.dtype("float16")}


def test_operations_carry_their_names_and_layers_their_scopes():
    jaxpr = jax.make_jaxpr(llama_apply(GROUPED))(
        abstract_params(GROUPED),
        abstract_cache(GROUPED, 1, 8),
        jax.ShapeDtypeStruct((1, 3), "int32"),
        jax.ShapeDtypeStruct((), "int32"),
    )
    composites = [eqn for eqn in jaxpr.eqns if eqn.primitive.name == "composite"]
    per_layer = {"rms_norm": 2, "rotary": 2, "cache_update": 2, "attention": 1, "gated_mlp": 1}
    counts = {name: GROUPED.num_layers * count for name, count in per_layer.items()}
    counts["rms_norm"] += 1
    names = [eqn.params["name"] for eqn in composites]
    assert {name: names.count(f"gimlax.{name}") for name in counts} == counts
    assert len(names) == sum(counts.values())
    assert {eqn.params["version"] for eqn in composites} == {1}
    scopes = {str(eqn.source_info.name_stack) for eqn in jaxpr.eqns}
    assert {"embed", "head", "layers.0/attention", "layers.2/mlp"} <= scopes


def test_only_the_residual_stream_crosses_from_layer_to_layer():
    jaxpr = jax.make_jaxpr(llama_apply(GROUPED))(
        abstract_params(GROUPED),
        abstract_cache(GROUPED, 1, 8),
        jax.ShapeDtypeStruct((1, 3), "int32"),
        jax.ShapeDtypeStruct((), "int32"),
    ).jaxpr

    def layer_of(eqn):
        scope = str(eqn.source_info.name_stack).split("/")[0]
        return int(scope.split(".")[1]) if scope.startswith("layers.") else None

    made = {var: layer_of(eqn) for eqn in jaxpr.eqns for var in eqn.outvars}
    crossing = {
        var
        for eqn in jaxpr.eqns
        for var in eqn.invars
        if isinstance(var, type(jaxpr.invars[0]))  # not a literal
        and made.get(var) is not None
        and made[var] != layer_of(eqn)
    }
    assert len(crossing) == GROUPED.num_layers
    assert {var.aval.shape for var in crossing} == {(1, 3, GROUPED.width)}


PUBLISHED = {
    "SMOLLM2_135M": 134_515_008,
    "LLAMA32_1B": 1_235_814_400,
    "LLAMA32_3B": 3_212_749_824,
    "LLAMA3_8B": 8_030_261_248,
    "LLAMA31_8B": 8_030_261_248,
    "LLAMA3_70B": 70_553_706_496,
    "LLAMA31_405B": 405_853_388_800,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_presets_have_as_many_parameters_as_published_and_need_no_weights(name):
    leaves = jax.tree.leaves(abstract_params(getattr(models, name)))
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves)
    assert sum(leaf.size for leaf in leaves) == PUBLISHED[name]


def test_abstract_params_describe_real_ones(config):
    described = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), abstract_params(config))
    real = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), init_params(config))
    assert described == real
    assert ("head" in real) is not config.tied


def test_the_module_is_the_function():
    from flax import nnx

    module = Llama(GROUPED, rngs=nnx.Rngs(3))
    tokens = some_tokens(GROUPED, 1, 4)
    direct, _ = nnx.jit(module)(init_cache(GROUPED, 1, 8), tokens, jnp.int32(0))
    logits, _ = jax.jit(llama_apply(GROUPED))(
        init_params(GROUPED, seed=3), init_cache(GROUPED, 1, 8), tokens, jnp.int32(0)
    )
    np.testing.assert_allclose(direct, logits, atol=ABSOLUTE, rtol=0)


def test_everything_wrong_with_a_config_is_said_at_once():
    with pytest.raises(SpecError) as caught:
        dataclasses.replace(GROUPED, width=0, num_kv_heads=4, head_size=7, norm_eps=float("nan"))
    for words in ("width is 0", "num_heads is 6", "num_kv_heads 4", "head_size is 7", "norm_eps"):
        assert words in str(caught.value)


def test_everything_wrong_with_a_scaling_is_said_with_it():
    scaling = RopeScaling(
        factor=-1.0, low_freq_factor=4.0, high_freq_factor=2.0, original_context=32
    )
    with pytest.raises(SpecError, match=r"LlamaConfig: .*factor is -1.*4.0, not below .* 2.0"):
        dataclasses.replace(GROUPED, rope_scaling=scaling)


@pytest.mark.parametrize("context", [0, 65])
def test_a_cache_longer_than_the_model_knows_is_refused(context):
    with pytest.raises(SpecError, match=f"context is {context} tokens.* 64"):
        init_cache(GROUPED, 1, context)
