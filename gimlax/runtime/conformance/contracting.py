"""Products of matrices, and what is built of them: attention, norms, MLPs, experts."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from gimlax.runtime.conformance.making import Built, operation, some, wide

__all__: list[str] = []


@operation
def matmul(dtype: Any, rng: np.random.Generator) -> Built:
    fn = functools.partial(jnp.matmul, preferred_element_type=wide(dtype))
    return fn, (some(dtype, rng, 33, 70), some(dtype, rng, 70, 45))


@operation
def matmul_same_dtype(dtype: Any, rng: np.random.Generator) -> Built:
    return jnp.matmul, (some(dtype, rng, 33, 70), some(dtype, rng, 70, 45))


@operation
def batched_dot(dtype: Any, rng: np.random.Generator) -> Built:
    fn = functools.partial(jnp.einsum, "bhqd,bhkd->bhqk", preferred_element_type=jnp.float32)
    return fn, (some(dtype, rng, 2, 3, 9, 17), some(dtype, rng, 2, 3, 11, 17))


def _attend(q: jax.Array, k: jax.Array, v: jax.Array, first: Any = 0) -> jax.Array:
    """`q [batch, token, group, shared, size]`, `k`, `v [batch, context, group, size]`."""
    scores = jnp.einsum("btgsd,bcgd->bgstc", q, k, preferred_element_type=jnp.float32)
    rows = first + jnp.arange(q.shape[1])
    seen = jnp.arange(k.shape[1])[None] <= rows[:, None]
    scores = jnp.where(seen, scores / q.shape[-1] ** 0.5, -jnp.inf)
    weights = jax.nn.softmax(scores).astype(q.dtype)
    out = jnp.einsum("bgstc,bcgd->btgsd", weights, v, preferred_element_type=jnp.float32)
    return out.astype(q.dtype)


@operation
def attention(dtype: Any, rng: np.random.Generator) -> Built:
    q = some(dtype, rng, 2, 13, 2, 3, 16)
    return _attend, (q, some(dtype, rng, 2, 13, 2, 16), some(dtype, rng, 2, 13, 2, 16))


@operation
def attention_over_cache(dtype: Any, rng: np.random.Generator) -> Built:
    def fn(q: Any, k: Any, v: Any, cache: Any, position: Any) -> Any:
        keys = lax.dynamic_update_slice_in_dim(cache[0], k, position, axis=1)
        values = lax.dynamic_update_slice_in_dim(cache[1], v, position, axis=1)
        return _attend(q, keys, values, position), keys, values

    cache = some(dtype, rng, 2, 2, 21, 2, 16)
    row = some(dtype, rng, 2, 1, 2, 16)
    return fn, (some(dtype, rng, 2, 1, 2, 3, 16), row, row[::-1], cache, np.int32(11))


@operation
def softmax(dtype: Any, rng: np.random.Generator) -> Built:
    return jax.nn.softmax, (some(dtype, rng, 5, 131, scale=5),)


@operation
def logsumexp(dtype: Any, rng: np.random.Generator) -> Built:
    return functools.partial(jax.nn.logsumexp, axis=-1), (some(dtype, rng, 5, 131, scale=5),)


@operation
def rms_norm(dtype: Any, rng: np.random.Generator) -> Built:
    def fn(x: Any, scale: Any) -> Any:
        wide = x.astype(jnp.float32)
        normed = wide * lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + 1e-5)
        return normed.astype(x.dtype) * scale

    return fn, (some(dtype, rng, 7, 131), some(dtype, rng, 131))


def _standardised(x: Any, axes: tuple[int, ...]) -> Any:
    mean = jnp.mean(x, axis=axes, keepdims=True)
    variance = jnp.mean((x - mean) ** 2, axis=axes, keepdims=True)
    return (x - mean) * lax.rsqrt(variance + jnp.asarray(1e-5, x.dtype))


@operation
def layer_norm(dtype: Any, rng: np.random.Generator) -> Built:
    return lambda x: _standardised(x, (-1,)), (some(dtype, rng, 7, 131),)


@operation
def group_norm(dtype: Any, rng: np.random.Generator) -> Built:
    def fn(x: Any) -> Any:
        return _standardised(x.reshape(2, 5, 5, 4, 8), (1, 2, 4)).reshape(x.shape)

    return fn, (some(dtype, rng, 2, 5, 5, 32),)


@operation
def rotary(dtype: Any, rng: np.random.Generator) -> Built:
    def fn(x: Any, position: Any) -> Any:
        half = x.shape[-1] // 2
        frequency = 10000.0 ** (-jnp.arange(half, dtype=jnp.float32) / half)
        angle = (position + jnp.arange(x.shape[1]))[:, None, None] * frequency
        first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
        cos, sin = jnp.cos(angle), jnp.sin(angle)
        turned = [first * cos - second * sin, second * cos + first * sin]
        return jnp.concatenate(turned, axis=-1).astype(x.dtype)

    return fn, (some(dtype, rng, 2, 9, 3, 16), np.int32(1000))


@operation
def gated_mlp(dtype: Any, rng: np.random.Generator) -> Built:
    def fn(x: Any, gate: Any, up: Any, down: Any) -> Any:
        return (jax.nn.silu(x @ gate) * (x @ up)) @ down

    wide = some(dtype, rng, 32, 75, scale=32**-0.5), some(dtype, rng, 32, 75, scale=32**-0.5)
    return fn, (some(dtype, rng, 5, 32), *wide, some(dtype, rng, 75, 32, scale=75**-0.5))


@operation
def conv_2d(dtype: Any, rng: np.random.Generator) -> Built:
    def fn(x: Any, kernel: Any) -> Any:
        names = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(x, kernel, (2, 1), "SAME", dimension_numbers=names)

    return fn, (some(dtype, rng, 2, 9, 11, 5), some(dtype, rng, 3, 3, 5, 7, scale=0.2))


@operation
def conv_depthwise(dtype: Any, rng: np.random.Generator) -> Built:
    def fn(x: Any, kernel: Any) -> Any:
        names = ("NWC", "WIO", "NWC")
        return lax.conv_general_dilated(
            x, kernel, (1,), [(3, 0)], dimension_numbers=names, feature_group_count=x.shape[-1]
        )

    return fn, (some(dtype, rng, 2, 13, 24), some(dtype, rng, 4, 1, 24))


@operation
def ragged_dot(dtype: Any, rng: np.random.Generator) -> Built:
    sizes = np.array([5, 0, 9, 3], np.int32)  # one expert has no token
    fn = functools.partial(lax.ragged_dot, preferred_element_type=jnp.float32)
    return fn, (some(dtype, rng, 17, 24), some(dtype, rng, 4, 24, 15), sizes)
