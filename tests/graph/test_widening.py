"""A widened jaxpr computes in float32 what the function means, and keeps what is not narrow."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gimlax import _jax
from gimlax.graph import trace
from gimlax.graph.widening import is_narrow, widen_arrays, widened
from tests import zoo

HALF = jnp.bfloat16


def wide(fn, *args):
    closed = trace(fn, *args).jaxpr
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(args)]
    run = widened(closed)
    assert not any(map(is_narrow, made_inside(jax.make_jaxpr(run)(*widen_arrays(leaves)))))
    return jax.jit(run)(*widen_arrays(leaves))


def made_inside(closed):
    """The dtypes of everything that is computed, at any depth."""
    for eqn in closed.jaxpr.eqns:
        yield from (var.aval.dtype for var in eqn.outvars)
        for body in _jax.inner_jaxprs(eqn):
            yield from made_inside(body)


@jax.custom_jvp
def bent(x):
    return jnp.sin(x) * jnp.asarray(1.5, x.dtype)


bent.defjvp(lambda primals, tangents: (bent(*primals), tangents[0]))


def branches(w, x):
    def body(carry, row):
        carry = jnp.tanh(carry @ row.astype(carry.dtype))
        return carry, jax.nn.relu(carry).sum()

    x, sums = jax.lax.scan(body, x, w)
    x = jax.lax.cond(x.sum() > 0, lambda x: x + 1, lambda x: x - 1, x)
    return jax.lax.while_loop(lambda s: s[1] < 3, lambda s: (s[0] * 0.5, s[1] + 1), (x, 0)), sums


def composed(x):
    double = jax.lax.composite(lambda x: jnp.tanh(x) * jnp.asarray(2, x.dtype), "some.double")
    return bent(double(x)).at[0].add(jnp.ones((), x.dtype)).max(0), jnp.sort(x, axis=-1)


def pooled(x):
    return jax.lax.reduce_window(x, jnp.asarray(0, x.dtype), jax.lax.add, (2, 2), (1, 1), "SAME")


def expected(fn, *args):
    """The same function, run on arguments in float32: its dtypes follow from theirs."""
    return jax.tree.leaves(jax.jit(fn)(*jax.tree.map(lambda a: a.astype(np.float32), args)))


@pytest.mark.parametrize(
    ("fn", "shapes"),
    [(branches, [(4, 6, 6), (3, 6)]), (composed, [(3, 6)]), (pooled, [(5, 6)])],
    ids=["control flow", "calls", "windows"],
)
def test_it_computes_in_float32(fn, shapes):
    args = [zoo.normal(*shape, seed=i).astype(HALF) for i, shape in enumerate(shapes)]
    found = wide(fn, *args)
    for mine, theirs in zip(found, expected(fn, *args), strict=True):
        assert mine.dtype == theirs.dtype
        np.testing.assert_allclose(mine, theirs, rtol=1e-6, atol=1e-6)


def test_conversions_and_asked_for_precision_do_not_round():
    def fn(x, w):
        y = jnp.matmul(x.astype(HALF), w.astype(HALF), precision=jax.lax.Precision.DEFAULT)
        return y.astype(jnp.float8_e4m3fn).astype(jnp.float32)

    x, w = zoo.normal(5, 7), zoo.normal(7, 3, seed=1)
    (found,) = wide(fn, x, w)
    np.testing.assert_allclose(found, x @ w, rtol=1e-6, atol=1e-6)


def test_bits_are_those_of_the_dtype_that_was_written():
    (found,) = widened(trace(lambda x: x.view(jnp.uint16), np.ones(3, HALF)).jaxpr)(
        np.ones(3, np.float32)
    )
    np.testing.assert_array_equal(found, np.ones(3, HALF).view(np.uint16))


def test_constants_of_the_function_are_widened():
    table = jnp.arange(6, dtype=HALF) / 7
    (found,) = wide(lambda i: table[i] * table[i], np.int32(3))
    value = np.float32(np.asarray(table)[3])
    assert found.dtype == np.float32 and found == value * value


def test_what_has_no_narrow_float_is_the_same_bit_for_bit():
    specimen = zoo.scanned()
    leaves = jax.tree.leaves(specimen.args)
    found = jax.jit(widened(trace(specimen.fn, *specimen.args).jaxpr))(*leaves)
    theirs = jax.tree.leaves(jax.jit(specimen.fn)(*specimen.args))
    jax.tree.map(np.testing.assert_array_equal, list(found), theirs)


def test_which_dtypes_are_narrow():
    assert all(map(is_narrow, (jnp.bfloat16, jnp.float16, jnp.float8_e5m2, jnp.float4_e2m1fn)))
    assert not any(map(is_narrow, (np.float32, np.float64, np.int8, np.bool_, np.complex64)))
