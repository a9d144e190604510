"""Two arrays compared: how far they are apart, and which elements are further than a tolerance.

An error is told three ways: absolute, relative to the largest finite magnitude of the reference,
and in steps (ULP) of the array's dtype at the element that is furthest off. What is not finite has
to be the same on both sides. Units: none.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gimlax.planning import Tolerance

__all__ = ["Difference", "compare_arrays", "is_finite", "narrowed"]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Difference:
    """How far an array is from its reference.

    Attributes:
        absolute, relative, ulp: the error of the element that is furthest off; infinite where one
            side is not finite and the other is.
        largest: the largest finite magnitude of the reference.
        outside: by element, whether it is further off than the tolerance allows.
    """

    absolute: float
    relative: float
    ulp: float
    largest: float
    outside: np.ndarray


def compare_arrays(found: Any, expected: Any, tolerance: Tolerance) -> Difference:
    """How far `found` is from `expected`.

    Args:
        found: an array of the dtype of the tolerance.
        expected: the reference, of that dtype or wider.
        tolerance: what is allowed.
    """
    found, expected = _plain(found), _plain(expected)
    dtype = found.dtype
    if not jnp.issubdtype(dtype, np.inexact):
        outside = found != expected.astype(dtype)
        apart = np.abs(found.astype(np.float64) - expected.astype(np.float64))
        return _difference(apart, apart, _largest(np.abs(expected.astype(np.float64))), outside)
    wide = np.complex128 if jnp.issubdtype(dtype, np.complexfloating) else np.float64
    mine, theirs = found.astype(wide), expected.astype(wide)
    with np.errstate(invalid="ignore", over="ignore"):
        apart = np.abs(mine - theirs)
        rounded = narrowed(expected, dtype)
        # A reference beyond the range of the dtype is rounded to what that has for it.
        same = (found == rounded) | (np.isnan(mine) & np.isnan(rounded.astype(wide)))
        apart = np.where(same & ~np.isfinite(rounded.astype(wide)), 0.0, apart)
    apart = np.where(np.isnan(apart), np.inf, apart)
    steps = _steps(found, rounded)
    # What the dtype cannot hold is no measure of what is allowed beside it.
    largest = _largest(np.where(np.isfinite(rounded.astype(wide)), np.abs(theirs), np.inf))
    outside = (apart > tolerance.bound(largest)) & (steps > tolerance.ulp)
    # Infinity is the bit neighbour of the largest number, and NaN in some dtypes.
    outside |= np.isfinite(mine) != np.isfinite(rounded.astype(wide))
    return _difference(apart, steps, largest, outside)


def is_finite(array: Any) -> bool:
    """Whether all of an array is; whole numbers, booleans and keys are."""
    if not hasattr(array, "dtype") or not jnp.issubdtype(array.dtype, np.inexact):
        return True
    wide = np.complex64 if jnp.issubdtype(array.dtype, np.complexfloating) else np.float32
    plain = np.asarray(array)
    return bool(np.isfinite(plain if plain.dtype.itemsize >= 4 else plain.astype(wide)).all())


def narrowed(array: Any, dtype: Any) -> Any:
    """A host array of the reference in the dtype that stands for it in the program."""
    if not hasattr(array, "dtype") or array.dtype == dtype:
        return array
    with np.errstate(over="ignore", invalid="ignore"):
        return np.asarray(array).astype(dtype)


def _plain(array: Any) -> np.ndarray:
    if isinstance(array, jax.Array) and jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        array = jax.random.key_data(array)
    return np.asarray(array)


def _difference(
    apart: np.ndarray, steps: np.ndarray, largest: float, outside: np.ndarray
) -> Difference:
    if not apart.size:
        return Difference(absolute=0.0, relative=0.0, ulp=0.0, largest=0.0, outside=outside)
    worst = np.unravel_index(int(np.argmax(apart)), apart.shape)
    absolute = float(apart[worst])
    relative = absolute / largest if largest else (0.0 if not absolute else float("inf"))
    return Difference(
        absolute=absolute,
        relative=relative,
        ulp=float(steps[worst]) if np.isfinite(absolute) else float("inf"),
        largest=largest,
        outside=np.asarray(outside),
    )


def _largest(magnitudes: np.ndarray) -> float:
    finite = magnitudes[np.isfinite(magnitudes)]
    return float(finite.max(initial=0.0))


def _steps(found: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Representable numbers between two arrays of one float dtype, element by element."""
    if jnp.issubdtype(found.dtype, np.complexfloating):
        pairs = ((np.real(found), np.real(expected)), (np.imag(found), np.imag(expected)))
        return np.maximum(*(_steps(a, b) for a, b in pairs))
    a, b = _rank(found), _rank(expected)
    across = np.abs(a).astype(np.float64) + np.abs(b).astype(np.float64)
    with np.errstate(over="ignore"):
        return np.where((a < 0) == (b < 0), np.abs(a - b).astype(np.float64), across)


def _rank(array: np.ndarray) -> np.ndarray:
    """The place of each element among all numbers of its dtype: 0 is zero, negatives go down."""
    size = array.dtype.itemsize
    # Numbers of less than a byte are stored in its low bits.
    sign_bit = np.uint64(min(jnp.finfo(array.dtype).bits, 8 * size) - 1)
    bits = array.copy().view(f"uint{8 * size}").astype(np.uint64)
    magnitude = (bits & ((np.uint64(1) << sign_bit) - np.uint64(1))).astype(np.int64)
    return np.where(bits >> sign_bit & np.uint64(1), -magnitude, magnitude)
