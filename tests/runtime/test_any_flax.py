"""Flax models of every family that gimlax has never seen, cut over two backends, equal themselves
uncut."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

from gimlax.errors import BackendError
from gimlax.graph import chain
from gimlax.models import from_linen, from_nnx, from_stateful_nnx
from gimlax.runtime import gather
from tests.runtime.conftest import on_cpu, trace_specimen
from tests.runtime.test_execution import assert_within
from tests.zoo import Specimen, normal

WIDTH = 16


class Mlp(nnx.Module):
    def __init__(self, rngs):
        sizes = (6, WIDTH, WIDTH, WIDTH, 3)
        self.layers = nnx.List([nnx.Linear(a, b, rngs=rngs) for a, b in zip(sizes, sizes[1:])])

    def __call__(self, x):
        for layer in self.layers[:-1]:
            x = nnx.relu(layer(x))
        return self.layers[-1](x)


class Cnn(linen.Module):
    """Batch statistics are read, not changed, at inference."""

    @linen.compact
    def __call__(self, x, train=False):
        for features in (4, 8):
            x = linen.Conv(features, (3, 3))(x)
            x = linen.relu(linen.BatchNorm(use_running_average=not train)(x))
            x = linen.avg_pool(x, (2, 2), strides=(2, 2))
        return linen.Dense(5)(x.reshape(x.shape[0], -1))


class Encoder(nnx.Module):
    """A transformer's layer with dropout everywhere that the paper has it."""

    def __init__(self, rngs):
        self.norms = nnx.List([nnx.LayerNorm(WIDTH, rngs=rngs) for _ in range(2)])
        self.attention = nnx.MultiHeadAttention(2, WIDTH, decode=False, dropout_rate=0.1, rngs=rngs)
        self.up = nnx.Linear(WIDTH, 32, rngs=rngs)
        self.down = nnx.Linear(32, WIDTH, rngs=rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)

    def __call__(self, x):
        x = x + self.dropout(self.attention(self.norms[0](x)))
        return x + self.dropout(self.down(nnx.gelu(self.up(self.norms[1](x)))))


class Transformer(nnx.Module):
    def __init__(self, rngs):
        self.embed = nnx.Embed(30, WIDTH, rngs=rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)
        self.layers = nnx.List([Encoder(rngs) for _ in range(2)])
        self.head = nnx.Linear(WIDTH, 30, rngs=rngs)

    def __call__(self, tokens):
        x = self.dropout(self.embed(tokens))
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


class Lstm(nnx.Module):
    """Two layers, each a scan over time of its own, one forwards and one backwards."""

    def __init__(self, rngs):
        self.first = nnx.RNN(nnx.LSTMCell(6, WIDTH, rngs=rngs))
        self.second = nnx.RNN(nnx.OptimizedLSTMCell(WIDTH, WIDTH, rngs=rngs), reverse=True)
        self.head = nnx.Linear(WIDTH, 4, rngs=rngs)

    def __call__(self, x):
        return self.head(self.second(self.first(x)))


class ViT(linen.Module):
    @linen.compact
    def __call__(self, images):
        x = linen.Conv(WIDTH, (4, 4), strides=(4, 4), name="patches")(images)
        x = x.reshape(x.shape[0], -1, WIDTH)
        first = self.param("class", linen.initializers.normal(), (1, 1, WIDTH))
        x = jnp.concatenate([jnp.broadcast_to(first, (x.shape[0], 1, WIDTH)), x], axis=1)
        x = x + self.param("places", linen.initializers.normal(), (1, *x.shape[1:]))
        y = linen.LayerNorm()(x)
        x = x + linen.MultiHeadDotProductAttention(num_heads=2)(y, y)
        y = linen.gelu(linen.Dense(32)(linen.LayerNorm()(x)))
        x = x + linen.Dense(WIDTH)(y)
        return linen.Dense(7)(linen.LayerNorm()(x)[:, 0])


class StateSpace(nnx.Module):
    """h = a(x) h + b(x), all tokens at once by an associative scan."""

    def __init__(self, rngs):
        self.decay = nnx.Linear(WIDTH, WIDTH, rngs=rngs)
        self.input = nnx.Linear(WIDTH, WIDTH, rngs=rngs)
        self.output = nnx.Linear(WIDTH, WIDTH, rngs=rngs)

    def __call__(self, x):
        def then(one, other):
            return one[0] * other[0], other[0] * one[1] + other[1]

        pair = nnx.sigmoid(self.decay(x)), self.input(x)
        _, states = jax.lax.associative_scan(then, pair, axis=1)
        return x + self.output(nnx.silu(states))


class Hybrid(nnx.Module):
    """State-space layers with attention between them, as in Jamba."""

    def __init__(self, rngs):
        self.layers = nnx.List([StateSpace(rngs), Encoder(rngs), StateSpace(rngs)])
        self.head = nnx.Linear(WIDTH, 3, rngs=rngs)

    def __call__(self, x):
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


class Hosted(nnx.Module):
    """Something that only numpy can do stands in the middle."""

    def __init__(self, rngs):
        self.first, self.second, self.third, self.fourth = (
            nnx.Linear(WIDTH, WIDTH, rngs=rngs) for _ in range(4)
        )

    def __call__(self, x):
        x = nnx.tanh(self.second(nnx.tanh(self.first(x))))
        shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
        x = jax.pure_callback(lambda rows: np.sort(rows, axis=-1), shape, x)
        return self.fourth(nnx.tanh(self.third(x)))


def nnx_specimen(make, *inputs):
    module = make(nnx.Rngs(0))
    module.eval()
    fn, variables = from_nnx(module)
    return Specimen(fn=fn, args=(variables, *inputs))


def carrying_specimen(make, *inputs):
    """One that changes variables when it is called, as `nnx.RNN` counts its random streams."""
    fn, params, state = from_stateful_nnx(make(nnx.Rngs(0)))
    return Specimen(fn=fn, args=(params, state, *inputs), carried={1: 1})


def linen_specimen(module, *inputs):
    variables = jax.jit(module.init)(jax.random.key(0), *inputs)
    if "batch_stats" in variables:  # as training leaves them
        variables["batch_stats"] = jax.tree.map(lambda x: x + 0.3, variables["batch_stats"])
    return Specimen(fn=from_linen(module), args=(variables, *inputs))


TOKENS = np.arange(12, dtype=np.int32).reshape(2, 6) * 7 % 30
KINDS = {
    "mlp": lambda: nnx_specimen(Mlp, normal(5, 6)),
    "cnn with batch statistics": lambda: linen_specimen(Cnn(), 4 * normal(2, 8, 8, 3)),
    "transformer with dropout": lambda: nnx_specimen(Transformer, TOKENS),
    "lstm": lambda: carrying_specimen(Lstm, normal(2, 5, 6)),
    "vision transformer": lambda: linen_specimen(ViT(), normal(2, 8, 8, 3)),
    "state space and attention": lambda: nnx_specimen(Hybrid, normal(2, 5, WIDTH)),
}


def some_boundaries(found, most=3):
    """The first and the last boundary and some between, of those where a cut may be."""
    legal = [b for b in range(1, found.num_segments) if not found.splits(b)]
    assert len(legal) > 1
    return sorted({legal[i * (len(legal) - 1) // (most - 1)] for i in range(most)})


@pytest.mark.parametrize("kind", KINDS)
def test_cut_over_two_backends_it_equals_itself_uncut(kind, deploy):
    specimen = KINDS[kind]()
    expected = on_cpu(specimen.fn, *specimen.args)
    assert float(jnp.abs(jax.tree.leaves(expected)[0]).max()) > 0.05
    found = chain(trace_specimen(specimen))
    for boundary in some_boundaries(found):
        (step,) = deploy(found, ("plugin", "cpu"), cuts=(boundary,)).values()
        outputs = gather(step(step.place(specimen.args[0]), *specimen.args[1:]))
        if specimen.carried:  # a key and what counts its draws are no numbers to be near
            jax.tree.map(assert_equal, outputs[1], expected[1])
        near = slice(1) if specimen.carried else slice(None)
        assert_within(outputs[near], expected[near], 5e-6)


def assert_equal(found, expected):
    if jnp.issubdtype(expected.dtype, jax.dtypes.prng_key):
        found, expected = map(jax.random.key_data, (found, expected))
    np.testing.assert_array_equal(found, expected)


def test_a_function_of_the_host_runs_between_two_stages_of_another_backend(deploy):
    specimen = nnx_specimen(Hosted, normal(3, WIDTH))
    params, inputs = specimen.args
    expected = on_cpu(specimen.fn, *specimen.args)
    found = chain(trace_specimen(specimen))
    assert found.names == ("first", "second", "third", "fourth")
    (step,) = deploy(found, ("plugin", "cpu", "plugin"), cuts=(1, 2)).values()
    assert_within(gather(step(step.place(params), inputs)), expected, 5e-6)
    with pytest.raises(BackendError, match="callback"):
        deploy(found, ("cpu", "plugin"), cuts=(1,))
