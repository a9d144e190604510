"""FLOPs against XLA's own count where contractions dominate, and against sums done by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gimlax import _jax
from gimlax.graph import trace
from gimlax.graph.counting import count_jaxpr
from tests import zoo

WEIGHTS = zoo.normal(64, 96)
INPUT = zoo.normal(32, 64)


def work(fn, *args):
    return count_jaxpr(trace(fn, *args).jaxpr)


def conv(w, x):
    return jax.lax.conv_general_dilated(x, w, (1, 1), "VALID")


@pytest.mark.parametrize(
    ("fn", "args"),
    [
        (lambda w, x: x @ w, (WEIGHTS, INPUT)),
        (
            lambda w, x: jnp.einsum("bij,bkj->bik", x, w),
            (zoo.normal(4, 8, 16), zoo.normal(4, 6, 16)),
        ),
        (conv, (zoo.normal(8, 4, 3, 3), zoo.normal(2, 4, 16, 16))),
    ],
)
def test_contractions_agree_with_xla(fn, args):
    theirs = jax.jit(fn).lower(*args).compile().cost_analysis()
    ours = work(fn, *args)
    assert sum(ours.flops.values()) == pytest.approx(theirs["flops"], rel=0.01)
    if fn is not conv:  # there XLA's CPU backend counts what its own loops read
        assert ours.bytes_accessed == pytest.approx(theirs["bytes accessed"], rel=0.01)


def test_loops_multiply_branches_take_the_largest_composites_count_inside():
    once = work(lambda w, x: x @ w, np.eye(8), np.ones((4, 8)))

    def looped(w, x):
        return jax.lax.scan(lambda c, _: (c @ w, None), x, length=5)[0]

    assert work(looped, np.eye(8), np.ones((4, 8))) == once.times(5)

    def branched(w, x):
        return jax.lax.cond(x[0, 0] > 0, lambda: x @ w, lambda: x)

    assert work(branched, np.eye(8), np.ones((4, 8))).flops["float32"] >= once.flops["float32"]

    def composed(w, x):
        return jax.lax.composite(lambda a, b: a @ b, "mine.dot")(x, w)

    assert work(composed, np.eye(8), np.ones((4, 8))) == once


def test_a_dot_counts_in_the_dtype_of_its_operands():
    half = work(
        lambda w, x: jax.lax.dot(x, w, preferred_element_type=jnp.float32),
        jnp.ones((8, 8), jnp.bfloat16),
        jnp.ones((4, 8), jnp.bfloat16),
    )
    assert half.flops == {"bfloat16": 2 * 4 * 8 * 8}
    assert half.bytes_accessed == 2 * (64 + 32) + 4 * 32


def test_a_gather_and_an_update_in_place_move_only_their_rows():
    rows = work(lambda table, i: table[i], np.ones((1000, 8), np.float32), np.arange(2))
    assert 2 * 2 * 8 * 4 <= rows.bytes_accessed < 1000

    def update(table, x):
        return jax.lax.dynamic_update_slice(table, x, (3, 0))

    assert work(update, np.ones((1000, 8)), np.ones((1, 8))).bytes_accessed == 2 * 8 * 4


def test_bytes_of_unusual_dtypes():
    assert _jax.nbytes(jax.ShapeDtypeStruct((3,), jnp.int4)) == 2
    assert _jax.nbytes(jax.ShapeDtypeStruct((5,), jnp.float8_e4m3fn)) == 5
    assert _jax.nbytes(jax.eval_shape(lambda: jax.random.key(0))) == 8
