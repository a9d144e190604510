"""How far arrays are apart: steps against counting them one by one, bounds, and what is not
finite."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gimlax.planning import Tolerance
from gimlax.planning.tolerances import BETWEEN_CLIENTS, tolerance
from gimlax.runtime.probing.comparing import compare_arrays, is_finite

NARROW = ["float8_e4m3fn", "float8_e5m2", "float4_e2m1fn", "float8_e3m4", "float8_e4m3b11fnuz"]
NONE = Tolerance(dtype="", computed_in="float32", absolute=0.0, relative=0.0, ulp=0.0)


def all_numbers(dtype):
    """Every finite number of a narrow dtype once, in order: the slow twin of counting steps."""
    bits = jnp.finfo(dtype).bits
    everything = np.arange(2**bits, dtype=np.uint8).view(jnp.dtype(dtype)).astype(np.float32)
    return sorted(set(everything[np.isfinite(everything)].tolist()))


@pytest.mark.parametrize("dtype", NARROW)
def test_steps_are_what_counting_gives(dtype):
    numbers = all_numbers(dtype)
    rng = np.random.default_rng(0)
    for _ in range(200):
        a, b = rng.integers(0, len(numbers), 2)
        pair = [np.asarray([numbers[k]]).astype(dtype) for k in (a, b)]
        assert compare_arrays(*pair, NONE).ulp == abs(int(a) - int(b))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@given(value=st.floats(-1e4, 1e4), steps=st.integers(0, 5))
def test_a_step_is_the_next_number(dtype, value, steps):
    start = np.asarray([value]).astype(jnp.dtype(dtype))
    found = start
    for _ in range(steps):
        found = np.nextafter(found, np.asarray(np.inf, found.dtype))
    for a, b in ((start, found), (found, start)):
        difference = compare_arrays(a, b, NONE)
        assert difference.ulp == steps
        assert difference.outside.any() == (steps > 0)


def within(found, expected, **bounds):
    allowed = Tolerance(dtype="float32", computed_in="float32", **bounds)
    return ~compare_arrays(np.float32(found), np.float32(expected), allowed).outside


def test_one_of_three_bounds_is_enough():
    strict = {"absolute": 0.0, "relative": 0.0, "ulp": 0.0}
    assert within([1.001, 100], [1, 100], **strict | {"relative": 1e-4}).all()
    assert not within([1.001, 1], [1, 1], **strict | {"relative": 1e-4}).all()
    assert within([1e-9], [0], **strict | {"absolute": 1e-8}).all()
    assert within([np.nextafter(np.float32(3), 4)], [3], **strict | {"ulp": 1.0}).all()
    assert not within([1.001], [1], **strict | {"ulp": 1.0}).all()


def test_the_error_is_that_of_the_element_furthest_off():
    found = compare_arrays(np.float32([1, 2.5, 4]), np.float32([1, 2, 4]), NONE)
    assert (found.absolute, found.relative, found.largest) == (0.5, 0.125, 4)
    assert found.ulp == 2**21
    np.testing.assert_array_equal(found.outside, [False, True, False])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_so_on_both_sides(value):
    allowed = tolerance(jnp.dtype("float32"), BETWEEN_CLIENTS)
    both = np.float32([1, value])
    assert not compare_arrays(both, both, allowed).outside.any()
    for other in (1.0, np.nan, np.inf, -np.inf):
        if np.array_equal(value, other, equal_nan=True):
            continue
        for a, b in ((both, np.float32([1, other])), (np.float32([1, other]), both)):
            difference = compare_arrays(a, b, allowed)
            assert difference.absolute == np.inf
            np.testing.assert_array_equal(difference.outside, [False, True])


def test_a_reference_beyond_the_range_is_what_the_dtype_has_for_it():
    allowed = tolerance(jnp.dtype("float16"), BETWEEN_CLIENTS)
    found, expected = np.float16([np.inf, 1]), np.float32([1e6, 1])
    assert not compare_arrays(found, expected, allowed).outside.any()
    assert compare_arrays(-found, expected, allowed).outside.all()


@pytest.mark.parametrize("dtype", ["int32", "int8", "int4", "bool", "uint8"])
def test_whole_numbers_must_be_equal(dtype):
    kind = jnp.dtype(dtype)
    a, b = np.asarray([1, 0, 1]).astype(kind), np.asarray([1, 1, 1]).astype(kind)
    difference = compare_arrays(a, b, tolerance(kind, BETWEEN_CLIENTS))
    assert difference.absolute == 1
    np.testing.assert_array_equal(difference.outside, [False, True, False])
    assert not compare_arrays(a, a, tolerance(kind, BETWEEN_CLIENTS)).outside.any()


def test_keys_complex_numbers_scalars_and_nothing():
    keys = jax.random.split(jax.random.key(0), 2)
    exact = tolerance(keys.dtype, BETWEEN_CLIENTS)
    assert not compare_arrays(keys, keys, exact).outside.any()
    assert compare_arrays(keys, keys[::-1], exact).outside.any()
    allowed = tolerance(jnp.dtype("complex64"), BETWEEN_CLIENTS)
    z = np.complex64([1 + 1j, 2])
    assert not compare_arrays(z * np.float32(1 + 1e-6), z, allowed).outside.any()
    assert compare_arrays(z * 1.001j, z * 1j, allowed).outside.any()
    assert compare_arrays(np.float32(3), np.float32(2), NONE).outside == True  # noqa: E712
    assert compare_arrays(np.zeros((0, 2), np.float32), np.zeros((0, 2), np.float32), NONE).ulp == 0


def test_is_finite():
    assert is_finite(np.int32([1])) and is_finite(jax.random.key(0)) and is_finite(np.float32(1))
    for dtype in ("float32", "bfloat16", "float16", "float8_e5m2", "complex64"):
        assert not is_finite(np.asarray([1, np.nan]).astype(jnp.dtype(dtype)))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", *NARROW[:2]])
@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_what_is_not_finite_is_no_neighbour_of_the_largest_number(dtype, wrong):
    """In bits it is the next one, which a tolerance of one step would let pass."""
    largest = np.asarray([1.0, float(jnp.finfo(dtype).max)]).astype(dtype)
    found = np.asarray([1.0, wrong]).astype(dtype)
    allowed = tolerance(largest.dtype, BETWEEN_CLIENTS)
    assert compare_arrays(found, largest, allowed).outside.tolist() == [False, True]
    assert compare_arrays(largest, found, allowed).outside.tolist() == [False, True]
