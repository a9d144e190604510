"""Linen and NNX modules as functions of their variables."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

from gimlax.errors import TraceError
from gimlax.models import from_linen, from_nnx, from_stateful_nnx

ROWS = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
SHAPE = jax.ShapeDtypeStruct(ROWS.shape, ROWS.dtype)


class LinenNorm(linen.Module):
    @linen.compact
    def __call__(self, x, train=False):
        return linen.Dense(2)(linen.BatchNorm(use_running_average=not train)(x))


class Plain(nnx.Module):
    def __init__(self, rngs):
        self.layers = nnx.List([nnx.Linear(3, 3, rngs=rngs), nnx.Linear(3, 2, rngs=rngs)])

    def __call__(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


class Normed(Plain):
    def __init__(self, rngs):
        super().__init__(rngs)
        self.norm = nnx.BatchNorm(3, rngs=rngs)

    def __call__(self, x):
        return super().__call__(self.norm(x))


def test_a_linen_module_is_a_function_of_its_variables():
    module = LinenNorm()
    variables = module.init(jax.random.key(0), ROWS)
    fn = from_linen(module)
    assert fn.__name__ == "LinenNorm"
    np.testing.assert_array_equal(fn(variables, ROWS), module.apply(variables, ROWS))


def test_what_a_linen_module_changes_comes_out_when_asked_for():
    module = LinenNorm()
    variables = module.init(jax.random.key(0), ROWS)
    outputs, updates = from_linen(module, train=True, mutable=["batch_stats"])(variables, ROWS)
    expected, expected_updates = module.apply(variables, ROWS, train=True, mutable=["batch_stats"])
    np.testing.assert_array_equal(outputs, expected)
    jax.tree.map(np.testing.assert_array_equal, updates, expected_updates)


def test_an_nnx_module_is_a_function_of_its_variables():
    module = Plain(nnx.Rngs(0))
    fn, variables = from_nnx(module)
    assert fn.__name__ == "Plain"
    np.testing.assert_array_equal(jax.jit(fn)(variables, ROWS), jax.jit(module)(ROWS))
    doubled = jax.tree.map(lambda leaf: 2 * leaf, variables)
    assert not np.allclose(fn(doubled, ROWS), fn(variables, ROWS))


def test_a_module_of_shapes_is_enough():
    fn, variables = from_nnx(nnx.eval_shape(lambda: Plain(nnx.Rngs(0))))
    assert {type(leaf) for leaf in jax.tree.leaves(variables)} == {jax.ShapeDtypeStruct}
    assert jax.eval_shape(fn, variables, SHAPE).shape == (4, 2)
    linen_variables = jax.eval_shape(LinenNorm().init, jax.random.key(0), SHAPE)
    assert jax.eval_shape(from_linen(LinenNorm()), linen_variables, SHAPE).shape == (4, 2)


def test_a_change_that_would_be_lost_is_refused():
    fn, variables = from_nnx(Normed(nnx.Rngs(0)))
    with pytest.raises(TraceError, match=r"Normed changes .* norm.mean, norm.var .*from_stateful"):
        jax.eval_shape(fn, variables, SHAPE)


def test_a_module_that_only_reads_its_statistics_needs_no_carrying():
    module = Normed(nnx.Rngs(0))
    module.eval()
    fn, variables = from_nnx(module)
    np.testing.assert_array_equal(fn(variables, ROWS), module(ROWS))


def test_changes_are_carried():
    module = Normed(nnx.Rngs(0))
    fn, params, state = from_stateful_nnx(module)
    assert set(state["norm"]) == {"mean", "var"}
    assert set(params["norm"]) == {"scale", "bias"}
    for _ in range(2):
        outputs, state = jax.jit(fn)(params, state, jnp.asarray(ROWS))
        np.testing.assert_allclose(outputs, module(ROWS), atol=1e-6)
    np.testing.assert_allclose(state["norm"]["mean"], module.norm.mean[...], atol=1e-6)
