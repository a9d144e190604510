"""Narrowed and widened again, every element is within the bound that is stated."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gimlax import fabric
from gimlax.errors import SpecError
from gimlax.fabric import NARROWINGS, Tag, forms, narrow, narrowing_bound, narrows, widen
from gimlax.fabric.narrowing import BLOCK
from tests.fabric.children import WATCHDOG_S

finite = st.floats(-(2.0**127), 2.0**127, width=32)
shapes = st.sampled_from([(), (1,), (3, BLOCK), (2, BLOCK + 1), (0,), (4, 0), (2, 3, 5)])
arrays = shapes.flatmap(lambda shape: hnp.arrays(np.float32, shape, elements=finite))


def slow_bound(array, to):
    """Element by element, from the table of the module."""
    bound = np.zeros(array.shape)
    for place in np.ndindex(array.shape):
        if to == "bfloat16":
            bound[place] = abs(float(array[place])) / 256 + 2.0**-126
        else:
            row = array[place[:-1]] if place else array[None]
            first = (place[-1] if place else 0) // BLOCK * BLOCK
            m = max(abs(float(x)) for x in row[first : first + BLOCK])
            bound[place] = m / 254 * (1 + 2.0**-20) + 2.0**-119
    return bound


def off(array, to):
    narrowed = narrow(jnp.asarray(array), to)
    wide = widen(narrowed, to)
    assert (wide.shape, wide.dtype) == (array.shape, np.float32)
    return np.abs(np.asarray(wide, np.float64) - array), narrowed


@pytest.mark.parametrize("to", NARROWINGS)
@given(array=arrays)
def test_errors_are_within_the_bound(to, array):
    bound = narrowing_bound(array, to)
    assert np.allclose(bound, slow_bound(array, to), rtol=1e-14, atol=0)
    assert (off(array, to)[0] <= bound).all()


@pytest.mark.parametrize("to", NARROWINGS)
@pytest.mark.parametrize("scale", [1e-40, 1e-30, 1.0, 1e30])
def test_errors_are_within_the_bound_at_any_scale(to, scale):
    array = (np.random.default_rng(1).standard_normal((64, 576)) * scale).astype(np.float32)
    error, _ = off(array, to)
    assert (error <= narrowing_bound(array, to)).all()
    if scale == 1.0:  # and the bound is not far above them
        assert error.max() > 0.4 * narrowing_bound(array, to).max()


@pytest.mark.parametrize(("to", "share"), [("bfloat16", 0.5), ("int8", 0.25 + 1 / BLOCK)])
def test_fewer_bytes_cross(to, share):
    array = jnp.ones((16, 4 * BLOCK))
    assert sum(x.nbytes for x in narrow(array, to)) == share * array.nbytes


@pytest.mark.parametrize("to", NARROWINGS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_seen_at_the_other_end(to, bad):
    array = np.ones((2, 2 * BLOCK), np.float32)
    array[1, BLOCK + 3] = bad
    wide = np.asarray(widen(narrow(jnp.asarray(array), to), to))
    assert not np.isfinite(wide[1, BLOCK + 3])
    assert np.isfinite(wide[:, :BLOCK]).all() and np.isfinite(wide[0]).all()
    if to == "int8":
        assert np.isnan(wide[1, BLOCK:]).all()


@pytest.mark.parametrize("to", NARROWINGS)
def test_over_a_link(to):
    array = jnp.linspace(-3, 5, 4 * 130).reshape(4, 130)
    with (
        fabric.listen("ring", "a -> b") as receiver,
        fabric.connect(receiver.offer) as sender,
    ):
        sender.send(Tag(pass_number=0), narrow(array, to))
        parts = receiver.receive(WATCHDOG_S).parts
        device = jax.devices("cpu")[0]
        wide = widen([fabric.land(part.data, device).array for part in parts], to)
        assert (np.asarray(wide) == np.asarray(widen(narrow(array, to), to))).all()
        del parts, wide


@pytest.mark.parametrize("to", NARROWINGS)
@pytest.mark.parametrize("shape", [(), (1,), (5, 2), (3, BLOCK + 1), (2, 3, 2 * BLOCK), (4, 0)])
def test_both_ends_know_beforehand_what_goes(to, shape):
    narrowed = narrow(jnp.ones(shape), to)
    assert forms(shape, to) == tuple((x.shape, x.dtype.name) for x in narrowed)
    is_smaller = sum(x.nbytes for x in narrowed) < jnp.ones(shape).nbytes
    assert narrows(shape, "float32", to) == is_smaller
    assert not narrows(shape, "float32", "")
    assert not narrows(shape, "bfloat16", to)


@pytest.mark.parametrize(
    ("last", "devices", "expected"),
    [
        (BLOCK + 1, (1, 1), True),
        (2 * BLOCK, (1, 2), True),
        (2 * BLOCK, (4, 1), False),
        (BLOCK + 2, (2, 1), False),
        (6 * BLOCK, (2, 3), True),
        (4 * BLOCK, (2, 3), False),
    ],
)
def test_integers_go_only_where_no_shard_cuts_a_block(last, devices, expected):
    assert narrows((8, last), "float32", "int8", *devices) == expected
    assert narrows((8, last), "float32", "bfloat16", *devices)


def test_what_cannot_be_narrowed_is_refused():
    with pytest.raises(SpecError, match=r"a bfloat16 array is not narrowed to int8; only float32"):
        narrow(jnp.ones(3, jnp.bfloat16), "int8")
    with pytest.raises(SpecError, match=r"there is no narrowing to 'int4'; give bfloat16 or int8"):
        narrow(jnp.ones(3), "int4")
    with pytest.raises(SpecError, match=r"which is no array narrowed to int8"):
        widen([jnp.ones((2, 70), jnp.int8), jnp.ones((2, 1))], "int8")
    with pytest.raises(SpecError, match=r"\[\('float16', \(3,\)\)\] came, which is no array narr"):
        widen([jnp.ones(3, jnp.float16)], "bfloat16")
