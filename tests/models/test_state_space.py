"""Mamba and Mamba-2 as functions: one function at two shapes, and a state that is used once."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gimlax.errors import SpecError
from gimlax.models import mamba, mamba2
from gimlax.models.decoder import abstract_params, init_params
from gimlax.models.state_space import abstract_state, init_state, state_space_apply

MAMBA = mamba.MambaConfig(
    vocab_size=61,
    width=20,
    num_layers=2,
    inner_width=36,
    state_size=5,
    step_rank=3,
    chunk=4,
)
MAMBA2 = mamba2.Mamba2Config(
    vocab_size=61,
    width=20,
    num_layers=2,
    inner_width=48,
    state_size=5,
    head_size=8,
    num_groups=2,
    chunk=4,
)
CONFIGS = {
    "mamba": MAMBA,
    "mamba, untied, biases": dataclasses.replace(MAMBA, tied=False, bias=True, conv_bias=False),
    "mamba, short convolution, one token at a time": dataclasses.replace(
        MAMBA, conv_size=2, chunk=1
    ),
    "mamba-2": MAMBA2,
    "mamba-2, untied, biases": dataclasses.replace(MAMBA2, tied=False, bias=True, conv_bias=False),
    "mamba-2, one group, steps clipped": dataclasses.replace(
        MAMBA2, num_groups=1, conv_size=2, step_limits=(0.01, 0.05)
    ),
    "mamba-2, a head a group": dataclasses.replace(MAMBA2, num_groups=6),
}
ONE_OF_EACH = {"mamba": MAMBA, "mamba-2": MAMBA2}
ABSOLUTE = 5e-6  # float32 against float32 at another shape
ABSOLUTE_TWIN = 1e-5  # float32 against float64
ABSOLUTE_BFLOAT16 = 0.1  # bfloat16 against float32; logits are of order 1
START = jnp.int32(0)


@pytest.fixture(params=CONFIGS, name="config")
def config_fixture(request):
    return CONFIGS[request.param]


@pytest.fixture(params=ONE_OF_EACH, name="plain")
def plain_fixture(request):
    return ONE_OF_EACH[request.param]


def some_params(config):
    """Random ones, vectors too: a bias of zero or a scale of one would hide where it goes."""
    params = init_params(config)
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(5), len(leaves))
    moved = [x + 0.1 * jax.random.normal(key, x.shape) for x, key in zip(leaves, keys)]
    return jax.tree.unflatten(tree, moved)


def some_tokens(config, batch, length, seed=0):
    return jax.random.randint(jax.random.key(seed), (batch, length), 0, config.vocab_size)


def assert_close(found, expected):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=ABSOLUTE, rtol=0), found, expected
    )


def silu(x):
    return x / (1 + np.exp(-x))


def softplus(x):
    return np.log1p(np.exp(x))


def logits_in_numpy(config, params, tokens):
    """The same models token by token and channel by channel: the slow twin. [token, vocab]"""
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    mix = mamba_in_numpy if isinstance(config, mamba.MambaConfig) else mamba2_in_numpy

    def norm(x, scale):
        return x / np.sqrt((x * x).mean() + config.norm_eps) * scale

    stream = params["embed"][np.asarray(tokens)]
    for index in range(config.num_layers):
        layer = params["layers"][index]
        normed = [norm(x, layer["norm"]["scale"]) for x in stream]
        stream = stream + mix(config, layer["mixer"], normed)
    head = params["embed"] if config.tied else params["head"]
    return np.array([head @ norm(x, params["norm"]["scale"]) for x in stream])


def convolved(config, weights, inputs):
    """What each input becomes with those before it."""
    rows = [np.zeros_like(inputs[0])] * (config.conv_size - 1) + list(inputs)
    out = []
    for t in range(len(inputs)):
        mixed = sum(weights["conv"][:, 0, k] * rows[t + k] for k in range(config.conv_size))
        out.append(silu(mixed + weights.get("conv_bias", 0)))
    return out


def mamba_in_numpy(config, weights, normed):
    both = [weights["input"] @ x + weights.get("input_bias", 0) for x in normed]
    xs = convolved(config, weights, [row[: config.inner_width] for row in both])
    h = np.zeros((config.inner_width, config.state_size))
    decay, out = -np.exp(weights["decay_log"]), []
    for x, row in zip(xs, both):
        low, b, c = np.split(
            weights["select"] @ x, [config.step_rank, config.step_rank + config.state_size]
        )
        step = softplus(weights["step"] @ low + weights["step_bias"])
        for d in range(config.inner_width):
            h[d] = np.exp(step[d] * decay[d]) * h[d] + step[d] * b * x[d]
        y = (h @ c + weights["skip"] * x) * silu(row[config.inner_width :])
        out.append(weights["output"] @ y + weights.get("output_bias", 0))
    return np.array(out)


def mamba2_in_numpy(config, weights, normed):
    inner, shared = config.inner_width, config.num_groups * config.state_size
    rows = [weights["input"] @ x + weights.get("input_bias", 0) for x in normed]
    split = [np.split(row, [inner, inner + config.conv_channels]) for row in rows]
    mixed = convolved(config, weights, [row for _, row, _ in split])
    h = np.zeros((config.num_heads, config.head_size, config.state_size))
    decay, out = -np.exp(weights["decay_log"]), []
    for (gate, _, step), row in zip(split, mixed):
        x, b, c = np.split(row, [inner, inner + shared])
        b, c = (part.reshape(config.num_groups, -1) for part in (b, c))
        step = np.clip(softplus(step + weights["step_bias"]), *config.step_limits)
        y = np.zeros((config.num_heads, config.head_size))
        for head, part in enumerate(x.reshape(config.num_heads, -1)):
            group = head * config.num_groups // config.num_heads
            kept = np.exp(step[head] * decay[head])
            h[head] = kept * h[head] + step[head] * np.outer(part, b[group])
            y[head] = h[head] @ c[group] + weights["skip"][head] * part
        groups = (y.reshape(-1) * silu(gate)).reshape(config.num_groups, -1)
        size = np.sqrt((groups**2).mean(axis=1, keepdims=True) + config.norm_eps)
        normed_y = (groups / size).reshape(-1) * weights["scale"]
        out.append(weights["output"] @ normed_y + weights.get("output_bias", 0))
    return np.array(out)


def test_logits_are_those_of_the_slow_twin(config):
    params, tokens = some_params(config), some_tokens(config, 1, 11)
    logits, _ = jax.jit(state_space_apply(config))(params, init_state(config, 1), tokens, START)
    expected = logits_in_numpy(config, params, tokens[0])
    np.testing.assert_allclose(logits[0], expected, atol=ABSOLUTE_TWIN, rtol=0)
    assert np.abs(expected).max() > 1


def test_decoding_token_by_token_equals_prefill(config):
    params, tokens = some_params(config), some_tokens(config, 2, 11)
    apply = jax.jit(state_space_apply(config))
    whole, filled = apply(params, init_state(config, 2), tokens, START)
    state = init_state(config, 2)
    for t in range(11):
        logits, state = apply(params, state, tokens[:, t : t + 1], jnp.int32(t))
        np.testing.assert_allclose(logits[:, 0], whole[:, t], atol=ABSOLUTE, rtol=0)
    assert_close(state, filled)


@pytest.mark.parametrize("first", [2, 8])
def test_prefill_in_two_parts_equals_prefill(plain, first):
    params, tokens = some_params(plain), some_tokens(plain, 2, 11)
    apply = jax.jit(state_space_apply(plain))
    whole, filled = apply(params, init_state(plain, 2), tokens, START)
    _, state = apply(params, init_state(plain, 2), tokens[:, :first], START)
    rest, state = apply(params, state, tokens[:, first:], jnp.int32(first))
    assert_close((rest, state), (whole[:, first:], filled))


@pytest.mark.parametrize("length", [1, 5, 12])
def test_padding_behind_a_prompt_never_matters(plain, length):
    params, tokens = some_params(plain), some_tokens(plain, 1, 12)
    apply = jax.jit(state_space_apply(plain))
    whole, filled = apply(params, init_state(plain, 1), tokens[:, :length], START)
    padded = jnp.where(jnp.arange(12) < length, tokens, 60)
    logits, state = apply(params, init_state(plain, 1), padded, START, jnp.int32(length - 1))
    assert logits.shape == (1, 1, plain.vocab_size)
    assert_close((logits[:, 0], state), (whole[:, -1], filled))


def test_sequences_of_different_lengths_do_not_touch_each_other(plain):
    params, tokens = some_params(plain), some_tokens(plain, 2, 8)
    apply = jax.jit(state_space_apply(plain))
    lengths = jnp.array([3, 6], jnp.int32)
    logits, state = apply(
        params, init_state(plain, 2), tokens, jnp.zeros(2, jnp.int32), lengths - 1
    )
    step, _ = apply(params, state, jnp.take_along_axis(tokens, lengths[:, None], 1), lengths)
    for row in range(2):
        alone, _ = apply(params, init_state(plain, 1), tokens[row : row + 1], START)
        assert_close(logits[row, 0], alone[0, lengths[row] - 1])
        assert_close(step[row, 0], alone[0, lengths[row]])


def test_a_sequence_that_begins_does_not_see_the_one_before(plain):
    params, tokens = some_params(plain), some_tokens(plain, 2, 9)
    apply = jax.jit(state_space_apply(plain))
    _, used = apply(params, init_state(plain, 2), tokens, START)
    logits, state = apply(params, used, tokens[:, :4], jnp.array([0, 9]))
    fresh, anew = apply(params, init_state(plain, 2), tokens[:, :4], START)
    assert_close((logits[0], state[0]["ssm"][0]), (fresh[0], anew[0]["ssm"][0]))
    assert np.abs(logits[1] - fresh[1]).max() > 0.01  # that one goes on


def test_a_pass_that_is_applied_twice_shows(plain):
    params, tokens = some_params(plain), some_tokens(plain, 1, 9)
    apply = jax.jit(state_space_apply(plain))
    _, state = apply(params, init_state(plain, 1), tokens[:, :8], START)
    once, state = apply(params, state, tokens[:, 8:], jnp.int32(8))
    twice, _ = apply(params, state, tokens[:, 8:], jnp.int32(8))
    assert np.abs(once - twice).max() > 0.01


@pytest.mark.parametrize(("batch", "length"), [(1, 1), (8, 1), (2, 11)])
def test_bfloat16_follows_float32(plain, batch, length):
    config = plain.with_dtype("bfloat16")
    params, tokens = init_params(plain), some_tokens(plain, batch, length)
    narrow = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    exact, _ = jax.jit(state_space_apply(plain))(params, init_state(plain, batch), tokens, START)
    logits, state = jax.jit(state_space_apply(config))(
        narrow, init_state(config, batch), tokens, START
    )
    assert logits.dtype == jnp.float32
    assert {leaf.dtype for layer in state for leaf in (layer["conv"],)} == {jnp.dtype("bfloat16")}
    assert {leaf.dtype for layer in state for leaf in (layer["ssm"],)} == {jnp.dtype("float32")}
    np.testing.assert_allclose(logits, exact, atol=ABSOLUTE_BFLOAT16, rtol=0)


def traced(config, length):
    return jax.make_jaxpr(state_space_apply(config))(
        abstract_params(config),
        abstract_state(config, 1),
        jax.ShapeDtypeStruct((1, length), "int32"),
        jax.ShapeDtypeStruct((), "int32"),
    ).jaxpr


@pytest.mark.parametrize("length", [1, 9])
def test_operations_carry_their_names_and_layers_their_scopes(plain, length):
    eqns = traced(plain, length).eqns
    names = [eqn.params["name"] for eqn in eqns if eqn.primitive.name == "composite"]
    one = isinstance(plain, mamba.MambaConfig)
    mixer = ["selective_scan"] if one else ["state_space_dual", "gated_rms_norm"]
    expected = ["rms_norm", "causal_conv", *mixer] * plain.num_layers + ["rms_norm"]
    assert names == [f"gimlax.{name}" for name in expected]
    scopes = {str(eqn.source_info.name_stack) for eqn in eqns}
    assert {"embed", "head", "layers.0", "layers.1"} <= scopes


def test_only_the_residual_stream_crosses_from_layer_to_layer(plain):
    jaxpr = traced(plain, 3)

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
    assert {var.aval.shape for var in crossing} == {(1, 3, plain.width)}
    assert len(crossing) == plain.num_layers


PUBLISHED = {
    "MAMBA_130M": 129_135_360,
    "MAMBA_370M": 371_516_416,
    "MAMBA_790M": 793_204_224,
    "MAMBA_1_4B": 1_372_178_432,
    "MAMBA_2_8B": 2_768_345_600,
    "MAMBA2_130M": 128_989_632,
    "MAMBA2_370M": 368_346_624,
    "MAMBA2_780M": 780_161_280,
    "MAMBA2_1_3B": 1_343_757_312,
    "MAMBA2_2_7B": 2_702_599_680,
    "CODESTRAL_MAMBA_7B": 7_285_403_648,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_shapes_of_the_published_models_need_no_weights(name):
    module = mamba if name.startswith("MAMBA_") else mamba2
    leaves = jax.tree.leaves(abstract_params(getattr(module, name)))
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves)
    assert sum(leaf.size for leaf in leaves) == PUBLISHED[name]


def test_abstract_params_and_state_describe_real_ones(config):
    for described, real in (
        (abstract_params(config), init_params(config)),
        (abstract_state(config, 2), init_state(config, 2)),
    ):
        assert jax.tree.map(lambda x: (x.shape, x.dtype), described) == jax.tree.map(
            lambda x: (x.shape, x.dtype), real
        )


def test_everything_wrong_with_a_config_is_said_at_once():
    with pytest.raises(SpecError) as caught:
        dataclasses.replace(
            MAMBA2, width=0, head_size=7, conv_size=1, step_limits=(2.0, 1.0), norm_eps=float("nan")
        )
    for words in ("Mamba2Config: width is 0", "head_size 7", "conv_size is 1", "2.0 and 1.0"):
        assert words in str(caught.value)
    with pytest.raises(SpecError, match="MambaConfig: step_rank is -1"):
        dataclasses.replace(MAMBA, step_rank=-1)
    with pytest.raises(SpecError, match=r"num_groups is 4.* 6 heads"):
        dataclasses.replace(MAMBA2, num_groups=4)
