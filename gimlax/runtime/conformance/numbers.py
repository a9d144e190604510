"""Functions of single numbers, reductions and orders."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from gimlax.runtime.conformance.making import FUNCTIONS, Built, distinct, operation, positive, some

__all__: list[str] = []


@operation
def max_pool(dtype: Any, rng: np.random.Generator) -> Built:
    low = jnp.iinfo(dtype).min if jnp.issubdtype(dtype, np.integer) else -jnp.inf

    def fn(x: Any) -> Any:
        start = jnp.asarray(low, x.dtype)
        return lax.reduce_window(x, start, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), "SAME")

    return fn, (some(dtype, rng, 2, 9, 11, 5),)


@operation
def sort(dtype: Any, rng: np.random.Generator) -> Built:
    return jnp.sort, (distinct(dtype, rng, 2, 99),)


@operation
def argsort(dtype: Any, rng: np.random.Generator) -> Built:
    # Of equal numbers the first comes first: that is promised too.
    return jnp.argsort, (np.asarray(rng.integers(0, 9, (2, 99))).astype(dtype),)


@operation
def top_k(dtype: Any, rng: np.random.Generator) -> Built:
    return lambda x: lax.top_k(x, 5), (distinct(dtype, rng, 2, 99),)


@operation
def reduce_sum(dtype: Any, rng: np.random.Generator) -> Built:
    return lambda x: (x.sum(), x.sum(0), x.sum(-1)), (some(dtype, rng, 33, 77),)


@operation
def reduce_max(dtype: Any, rng: np.random.Generator) -> Built:
    return lambda x: (x.max(0), x.min(-1)), (some(dtype, rng, 33, 77),)


@operation
def reduce_prod(dtype: Any, rng: np.random.Generator) -> Built:
    fn = lambda x: x.prod(-1, dtype=x.dtype)  # noqa: E731
    return fn, (np.asarray(rng.choice([-2, -1, 1, 2], (9, 12))).astype(dtype),)


@operation
def any_and_all(dtype: Any, rng: np.random.Generator) -> Built:
    return lambda x: (x.any(-1), x.all(0)), (some(dtype, rng, 3, 7),)


@operation
def argmax(dtype: Any, rng: np.random.Generator) -> Built:
    fn = lambda x: (jnp.argmax(x, -1), jnp.argmin(x, 0))  # noqa: E731
    return fn, (distinct(dtype, rng, 9, 11),)


def _elementwise(name: str, fn: Callable[..., Any], make: Callable[..., np.ndarray]) -> None:
    FUNCTIONS[name] = lambda dtype, rng: (fn, (make(dtype, rng, 7, 131),))


_elementwise("exp", jnp.exp, functools.partial(some, scale=3))
_elementwise("log", jnp.log, positive)
_elementwise("expm1_log1p", lambda x: (jnp.expm1(x), jnp.log1p(x * x)), some)
_elementwise("tanh", jnp.tanh, functools.partial(some, scale=2))
_elementwise("erf", lax.erf, functools.partial(some, scale=2))
_elementwise("sigmoid", jax.nn.sigmoid, functools.partial(some, scale=5))
_elementwise("rsqrt", lax.rsqrt, positive)
_elementwise("sqrt", jnp.sqrt, positive)


@operation
def sin_cos(dtype: Any, rng: np.random.Generator) -> Built:
    most = min(1e5, float(jnp.finfo(dtype).max) / 2)
    return lambda x: (jnp.sin(x), jnp.cos(x)), (rng.uniform(-most, most, (7, 131)).astype(dtype),)


@operation
def power(dtype: Any, rng: np.random.Generator) -> Built:
    base, exponent = positive(dtype, rng, 7, 131), rng.uniform(-1, 1, (7, 131)).astype(dtype)
    return jnp.power, (base, exponent)


@operation
def divide(dtype: Any, rng: np.random.Generator) -> Built:
    x, y = some(dtype, rng, 7, 131), some(dtype, rng, 7, 131)
    y = np.where(y == 0, np.asarray(1, dtype), y)
    return (jnp.floor_divide if jnp.issubdtype(dtype, np.integer) else jnp.divide), (x, y)


@operation
def remainder(dtype: Any, rng: np.random.Generator) -> Built:
    # Whole numbers, so that a quotient is never within rounding of the next one.
    y = np.asarray(rng.choice([3, 5, 7], (7, 131))).astype(dtype)
    return jnp.remainder, (distinct(dtype, rng, 7, 131), y)


@operation
def rounding(dtype: Any, rng: np.random.Generator) -> Built:
    x = np.asarray(rng.integers(-40, 40, (7, 131)) / 4).astype(dtype)
    return lambda x: (jnp.round(x), jnp.floor(x), jnp.ceil(x), jnp.trunc(x), jnp.sign(x)), (x,)


@operation
def extremes(dtype: Any, rng: np.random.Generator) -> Built:
    x, y = some(dtype, rng, 7, 131), some(dtype, rng, 7, 131)
    if not jnp.issubdtype(dtype, np.integer):
        x[0, :3] = np.nan, np.inf, -np.inf
    return lambda x, y: (jnp.maximum(x, y), jnp.minimum(x, y), jnp.clip(x, -1, 1), -x), (x, y)


@operation
def comparisons(dtype: Any, rng: np.random.Generator) -> Built:
    x = some(dtype, rng, 7, 131)
    y = np.where(rng.random((7, 131)) < 0.3, x, some(dtype, rng, 7, 131))
    if jnp.issubdtype(dtype, np.inexact):
        x[0, 0] = np.nan
    return lambda x, y: (x == y, x != y, x < y, x <= y, x > y, x >= y), (x, y)


@operation
def bitwise(dtype: Any, rng: np.random.Generator) -> Built:
    x, y = some(dtype, rng, 7, 131), some(dtype, rng, 7, 131)
    if dtype == np.bool_:
        return lambda x, y: (x & y, x | y, x ^ y, ~x), (x, y)
    by = rng.integers(0, 7, (7, 131)).astype(dtype)
    return lambda x, y, by: (x & y, x | y, x ^ y, ~x, x << by, x >> by), (x, y, by)


@operation
def random_bits(dtype: Any, rng: np.random.Generator) -> Built:
    def fn(seed: Any) -> Any:
        key, other = jax.random.split(jax.random.fold_in(jax.random.key(seed), 7))
        bits = jax.random.bits(key, (5, 9))
        return bits, jax.random.randint(other, (7,), 0, 1000), jax.random.permutation(other, 9)

    return fn, (np.asarray(rng.integers(0, 1000), dtype),)


@operation
def random_floats(dtype: Any, rng: np.random.Generator) -> Built:
    def fn(seed: Any) -> Any:
        keys = jax.random.split(jax.random.key(seed), 3)
        draw = (jax.random.uniform, jax.random.normal, jax.random.gumbel)
        return [f(key, (5, 9), dtype) for f, key in zip(draw, keys, strict=True)]

    return fn, (np.int32(rng.integers(0, 1000)),)


@operation
def fft(dtype: Any, rng: np.random.Generator) -> Built:
    fn = lambda x: (jnp.fft.rfft(x), jnp.fft.ifft(x), jnp.fft.irfft(jnp.fft.rfft(x)))  # noqa: E731
    return fn, (some(dtype, rng, 3, 96),)
