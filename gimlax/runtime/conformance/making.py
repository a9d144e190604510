"""What the operations are made with: a register of them by name, and numbers to try them on.

Inputs are small, odd in size (tiles that do not fill up are where kernels go wrong), and never
within rounding of a tie, so that what is discontinuous has one right answer.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

__all__ = ["FUNCTIONS", "Built", "distinct", "operation", "positive", "some", "wide"]

Built = tuple[Callable[..., Any], tuple[Any, ...]]
"""A function and its arguments."""

FUNCTIONS: dict[str, Callable[[Any, np.random.Generator], Built]] = {}
"""By name, what makes an operation in a dtype from a source of random numbers."""


def operation(function: Callable[[Any, np.random.Generator], Built]) -> Any:
    """Puts a function into the register under its own name."""
    FUNCTIONS[function.__name__] = function
    return function


def some(dtype: Any, rng: np.random.Generator, *shape: int, scale: float = 1.0) -> np.ndarray:
    """Numbers of a dtype: normal, all of a small range, or flags."""
    if dtype == np.bool_:
        return rng.random(shape) < 0.5
    if jnp.issubdtype(dtype, np.integer):
        most = min(int(jnp.iinfo(dtype).max), 100)
        return rng.integers(-most, most + 1, shape).astype(dtype)
    return np.asarray(scale * rng.standard_normal(shape)).astype(dtype)


def distinct(dtype: Any, rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Numbers that differ from each other by more than any rounding, in any order."""
    count = int(np.prod(shape))
    return np.asarray(rng.permutation(count) - count // 2).reshape(shape).astype(dtype)


def positive(dtype: Any, rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Positive numbers of many magnitudes."""
    return np.exp(rng.uniform(-6, 6, shape)).astype(dtype)


def wide(dtype: Any) -> Any:
    return jnp.int32 if jnp.issubdtype(dtype, np.integer) else jnp.float32
