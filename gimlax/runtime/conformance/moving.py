"""What moves numbers, chooses among them, or changes what they are stored as."""

import functools
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from gimlax.runtime.conformance.making import Built, operation, some

__all__: list[str] = []


@operation
def embedding(dtype: Any, rng: np.random.Generator) -> Built:
    tokens = rng.integers(0, 77, (3, 5)).astype(np.int32)
    return lambda table, tokens: table[tokens], (some(dtype, rng, 77, 33), tokens)


@operation
def take_along_axis(dtype: Any, rng: np.random.Generator) -> Built:
    which = rng.integers(0, 77, (5, 3)).astype(np.int32)
    fn = functools.partial(jnp.take_along_axis, axis=-1)
    return fn, (some(dtype, rng, 5, 77), which)


@operation
def scatter(dtype: Any, rng: np.random.Generator) -> Built:
    rows = rng.permutation(21)[:6].astype(np.int32)
    return lambda x, i, y: x.at[i].set(y), (some(dtype, rng, 21, 9), rows, some(dtype, rng, 6, 9))


@operation
def scatter_add(dtype: Any, rng: np.random.Generator) -> Built:
    rows = rng.integers(0, 5, 12).astype(np.int32)  # rows come more than once
    return lambda x, i, y: x.at[i].add(y), (some(dtype, rng, 5, 9), rows, some(dtype, rng, 12, 9))


@operation
def dynamic_slice(dtype: Any, rng: np.random.Generator) -> Built:
    fn = lambda x, i: lax.dynamic_slice(x, (i, 0), (5, 9))  # noqa: E731
    return fn, (some(dtype, rng, 21, 9), np.int32(18))  # beyond the end: it is clamped


@operation
def dynamic_update_slice(dtype: Any, rng: np.random.Generator) -> Built:
    fn = lambda x, y, i: lax.dynamic_update_slice(x, y, (i, 0))  # noqa: E731
    return fn, (some(dtype, rng, 21, 9), some(dtype, rng, 5, 9), np.int32(7))


@operation
def iota(dtype: Any, rng: np.random.Generator) -> Built:
    del rng
    return lambda x: x + lax.broadcasted_iota(dtype, (5, 9), 1), (np.zeros((5, 9), dtype),)


@operation
def where(dtype: Any, rng: np.random.Generator) -> Built:
    return jnp.where, (rng.random((5, 9)) < 0.5, some(dtype, rng, 5, 9), some(dtype, rng, 5, 9))


@operation
def concatenate(dtype: Any, rng: np.random.Generator) -> Built:
    fn = lambda x, y: jnp.concatenate([x, y, x], axis=1)  # noqa: E731
    return fn, (some(dtype, rng, 5, 9), some(dtype, rng, 5, 4))


@operation
def pad(dtype: Any, rng: np.random.Generator) -> Built:
    fn = lambda x: lax.pad(x, jnp.zeros((), x.dtype), ((1, 2, 0), (0, 3, 1)))  # noqa: E731
    return fn, (some(dtype, rng, 5, 9),)


@operation
def transpose(dtype: Any, rng: np.random.Generator) -> Built:
    fn = lambda x: x.transpose(0, 2, 1, 3).reshape(2, 7, -1)  # noqa: E731
    return fn, (some(dtype, rng, 2, 3, 7, 5),)


@operation
def reverse(dtype: Any, rng: np.random.Generator) -> Built:
    return lambda x: lax.rev(x, (1,)), (some(dtype, rng, 5, 9),)


@operation
def strided_slice(dtype: Any, rng: np.random.Generator) -> Built:
    return lambda x: x[1::2, ::3], (some(dtype, rng, 9, 11),)


@operation
def convert(dtype: Any, rng: np.random.Generator) -> Built:
    def fn(x: Any) -> Any:
        there = x.astype(dtype)
        return there, there.astype(jnp.float32)

    if jnp.issubdtype(dtype, np.inexact):
        # Powers of two from the smallest to the largest number of the dtype are exact in it.
        info = jnp.finfo(dtype)
        powers = np.arange(max(info.minexp, -100), min(info.maxexp, 100), dtype=np.float32)
        return fn, (np.concatenate([np.exp2(powers), -np.exp2(powers)]),)
    most = 1 if dtype == np.bool_ else min(int(jnp.iinfo(dtype).max), 2**20)
    return fn, (rng.integers(-most, most + 1, (5, 9)).astype(np.float32),)


@operation
def bitcast(dtype: Any, rng: np.random.Generator) -> Built:
    other = {2: jnp.uint16, 4: jnp.uint32}[dtype.itemsize]
    fn = lambda x: lax.bitcast_convert_type(x, other)  # noqa: E731
    return fn, (some(dtype, rng, 5, 9),)


@operation
def quantise(dtype: Any, rng: np.random.Generator) -> Built:
    is_whole = jnp.issubdtype(dtype, np.integer)
    most = float(jnp.iinfo(dtype).max if is_whole else jnp.finfo(dtype).max)

    def fn(x: Any) -> Any:
        scaled = x / (jnp.max(jnp.abs(x), axis=-1, keepdims=True) / most)
        return jnp.round(scaled).astype(dtype) if is_whole else scaled.astype(dtype)

    # Rows of numbers that are scaled to numbers of the dtype and a little, never to a half.
    steps = rng.integers(-int(min(most, 100)), int(min(most, 100)) + 1, (5, 33)) + 0.2
    steps[:, 0] = most
    return fn, ((steps * np.exp2(rng.integers(-8, 3, (5, 1)))).astype(np.float32),)


@operation
def dequantise(dtype: Any, rng: np.random.Generator) -> Built:
    def fn(blocks: Any, scales: Any, x: Any) -> Any:
        weights = (blocks.astype(jnp.float32) * scales).reshape(24, 64)
        return weights, x @ weights.T

    scales = np.exp(rng.uniform(-4, -2, (24, 2, 1))).astype(np.float32)
    return fn, (some(dtype, rng, 24, 2, 32), scales, some(np.dtype(np.float32), rng, 5, 64))


@operation
def unpack_nibbles(dtype: Any, rng: np.random.Generator) -> Built:
    def fn(packed: Any) -> Any:
        low, high = (packed << 4) >> 4, packed >> 4  # with their signs
        return jnp.stack([low, high], axis=-1).reshape(packed.shape[0], -1)

    return fn, (rng.integers(-128, 128, (5, 9)).astype(dtype),)
