"""The operations that our models are made of, named for compilers and cost models.

Each is a `jax.lax.composite` (`gimlax.rms_norm`, `gimlax.rotary`, `gimlax.cache_update`,
`gimlax.attention`, `gimlax.gated_mlp`; of encoders `gimlax.layer_norm`, `gimlax.modulated_norm`,
`gimlax.bidirectional_attention`, `gimlax.mlp`); whoever does not know the names sees the plain
operations inside. Weights are `[out, in]`, as checkpoint files store them, so reading a file
transposes nothing. Dots accumulate in float32 whatever the dtype of their operands.
"""

import functools
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType

import jax
import jax.numpy as jnp

MIN_ROWS = 8


def project(x: jax.Array, weight: jax.Array) -> jax.Array:
    """`x [..., in]` times `weight [out, in]`, accumulated in float32: `[..., out]` float32.

    Few rows of two bytes are padded to `MIN_ROWS`: XLA's CPU backend has no fast path for them (a
    decode step of SmolLM2 in bfloat16 takes 40 ms instead of 200 on two cores of an EPYC 9004,
    November 2026), and matrix units of accelerators work on eight rows at least anyway.
    """
    num_rows = x.size // x.shape[-1]
    if x.dtype.itemsize == 2 and num_rows < MIN_ROWS:
        rows = jnp.pad(x.reshape(num_rows, -1), ((0, MIN_ROWS - num_rows), (0, 0)))
        return dot_last(rows, weight)[:num_rows].reshape(*x.shape[:-1], -1)
    return dot_last(x, weight)


def dot_last(x: jax.Array, weight: jax.Array) -> jax.Array:
    """`x [..., in]` times `weight [out, in]` in float32."""
    last = (((x.ndim - 1,), (1,)), ((), ()))
    return jax.lax.dot_general(x, weight, last, preferred_element_type=jnp.float32)


@functools.partial(jax.lax.composite, name="gimlax.rms_norm", version=1)
def rms_norm(x: jax.Array, scale: jax.Array, *, eps: float) -> jax.Array:
    """Zhang and Sennrich 2019, in float32: `x [..., width]`, `scale [width]` -> like `x`."""
    wide = x.astype(jnp.float32)
    mean_square = jnp.mean(wide * wide, axis=-1, keepdims=True)
    normed = wide * jax.lax.rsqrt(mean_square + eps)
    return normed.astype(x.dtype) * scale.astype(x.dtype)


def absolute_positions(position: jax.Array, length: int) -> jax.Array:
    """Positions of `length` tokens from `position` ([] or [batch]) on: [1 or batch, length]."""
    return jnp.reshape(position, (-1, 1)) + jnp.arange(length, dtype=jnp.int32)


@functools.partial(jax.lax.composite, name="gimlax.rotary", version=1)
def rotary(
    x: jax.Array,
    position: jax.Array,
    *,
    theta: float,
    factor: float = 1.0,
    low_freq_factor: float = 1.0,
    high_freq_factor: float = 4.0,
    original_context: int = 8192,
) -> jax.Array:
    """Su et al. 2021 with the two halves of a head as pairs: `x [batch, token, head, size]`.

    With a `factor` beyond 1 as Llama 3.1 has it: frequencies that turn less than `low_freq_factor`
    times within `original_context` tokens are divided by it, those that turn more than
    `high_freq_factor` times are kept, and those in between go over from one to the other.
    """
    half = x.shape[-1] // 2
    frequency = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    if factor != 1.0:
        turns = original_context * frequency / (2 * math.pi)
        kept = (turns - low_freq_factor) / (high_freq_factor - low_freq_factor)
        kept = jnp.clip(kept, 0.0, 1.0)
        frequency = frequency * (kept + (1 - kept) / factor)
    angle = absolute_positions(position, x.shape[1])[..., None] * frequency  # [batch, token, half]
    cos, sin = jnp.cos(angle)[:, :, None], jnp.sin(angle)[:, :, None]
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x.dtype)


@functools.partial(jax.lax.composite, name="gimlax.cache_update", version=1)
def cache_update(cache: jax.Array, rows: jax.Array, position: jax.Array) -> jax.Array:
    """Writes `rows [batch, token, head, size]` into `cache [batch, context, head, size]`."""
    rows = rows.astype(cache.dtype)
    if position.ndim == 0:
        return jax.lax.dynamic_update_slice_in_dim(cache, rows, position, axis=1)
    write = functools.partial(jax.lax.dynamic_update_slice_in_dim, axis=0)
    return jax.vmap(write)(cache, rows, position)


@functools.partial(jax.lax.composite, name="gimlax.attention", version=1)
def attention(
    query: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    position: jax.Array,
    *,
    window: int | None = None,
) -> jax.Array:
    """Causal attention of new tokens over a cache that already holds them.

    Args:
      query: [batch, token, head, size], rotated.
      keys: [batch, context, kv head, size], rotated.
      values: [batch, context, kv head, size].
      position: int32 [] or [batch], of the first token. A token attends to rows of the cache at or
        before its own position, so rows beyond (padding, older requests) never matter.
      window: how many rows up to its own a token attends to; None for all.

    Returns:
      [batch, token, head * size] in the dtype of `query`.
    """
    batch, length, _, size = query.shape
    context, num_kv_heads = keys.shape[1:3]
    grouped = query.reshape(batch, length, num_kv_heads, -1, size).transpose(0, 2, 3, 1, 4)
    rows = grouped.reshape(batch, num_kv_heads, -1, size)  # one matrix per key/value head
    dot = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    scores = dot("bkrd,bskd->bkrs", rows, keys.astype(query.dtype)) * size**-0.5
    scores = scores.reshape(*grouped.shape[:-1], context)  # [batch, kv head, group, token, context]
    own = absolute_positions(position, length)[..., None]
    visible = jnp.arange(context) <= own
    if window is not None:
        visible &= jnp.arange(context) > own - window
    scores = jnp.where(visible[:, None, None], scores, -jnp.inf)
    shares = jnp.exp(scores - scores.max(axis=-1, keepdims=True))
    rows = shares.astype(query.dtype).reshape(batch, num_kv_heads, -1, context)
    mixed = dot("bkrs,bskd->bkrd", rows, values.astype(query.dtype)).reshape(grouped.shape)
    mixed = mixed / shares.sum(axis=-1, keepdims=True)  # fewer numbers than the shares
    return mixed.transpose(0, 3, 1, 2, 4).reshape(batch, length, -1).astype(query.dtype)


@functools.partial(jax.lax.composite, name="gimlax.gated_mlp", version=1)
def gated_mlp(x: jax.Array, gate: jax.Array, up: jax.Array, down: jax.Array) -> jax.Array:
    """SwiGLU (Shazeer 2020): `x [..., width]`; `gate`, `up` [mlp, width]; `down` [width, mlp]."""
    hidden = jax.nn.silu(project(x, gate)) * project(x, up)
    return project(hidden.astype(x.dtype), down).astype(x.dtype)


@functools.partial(jax.lax.composite, name="gimlax.layer_norm", version=1)
def layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array, *, eps: float) -> jax.Array:
    """Ba et al. 2016, in float32: `x [..., width]`, `scale` and `bias` [width] -> like `x`."""
    normed = centred_norm(x, eps)
    return (normed * scale.astype(jnp.float32) + bias.astype(jnp.float32)).astype(x.dtype)


@functools.partial(jax.lax.composite, name="gimlax.modulated_norm", version=1)
def modulated_norm(x: jax.Array, scale: jax.Array, shift: jax.Array, *, eps: float) -> jax.Array:
    """A layer norm whose scale and shift come from elsewhere (Peebles and Xie 2022, adaLN).

    `x [batch, token, width]`; `scale`, which is counted from 1, and `shift` [batch, 1, width].
    """
    normed = centred_norm(x, eps)
    return (normed * (1 + scale.astype(jnp.float32)) + shift.astype(jnp.float32)).astype(x.dtype)


def centred_norm(x: jax.Array, eps: float) -> jax.Array:
    """`x [..., width]` with mean 0 and variance 1 along its last dim, in float32."""
    wide = x.astype(jnp.float32)
    centred = wide - jnp.mean(wide, axis=-1, keepdims=True)
    return centred * jax.lax.rsqrt(jnp.mean(centred * centred, axis=-1, keepdims=True) + eps)


@functools.partial(jax.lax.composite, name="gimlax.bidirectional_attention", version=1)
def bidirectional_attention(
    query: jax.Array, keys: jax.Array, values: jax.Array, mask: jax.Array | None = None
) -> jax.Array:
    """Attention of every token to every token that is there.

    Args:
      query, keys, values: [batch, token, head, size].
      mask: [batch, token], 0 for padding; what a row without any token says means nothing, but it
        is finite. All are there where it is left out.

    Returns:
      [batch, token, head * size] in the dtype of `query`.
    """
    scores = attention_scores(query, keys) * query.shape[-1] ** -0.5
    if mask is not None:
        lowest = jnp.finfo(jnp.float32).min
        scores = jnp.where((mask != 0)[:, None, None, :], scores, lowest)
    return mixed_values(scores, values)


def attention_scores(query: jax.Array, keys: jax.Array) -> jax.Array:
    """Products of all pairs: two [batch, token, head, size] -> float32 [batch, head, token,
    token]."""
    return jnp.einsum("btnd,bsnd->bnts", query, keys, preferred_element_type=jnp.float32)


def mixed_values(scores: jax.Array, values: jax.Array) -> jax.Array:
    """Values in the shares that scores give them: [batch, token, head * size] like `values`."""
    shares = jax.nn.softmax(scores, axis=-1).astype(values.dtype)
    mixed = jnp.einsum("bnts,bsnd->btnd", shares, values, preferred_element_type=jnp.float32)
    return mixed.reshape(*mixed.shape[:2], -1).astype(values.dtype)


@functools.partial(jax.lax.composite, name="gimlax.mlp", version=1)
def mlp(
    x: jax.Array,
    up: jax.Array,
    up_bias: jax.Array,
    down: jax.Array,
    down_bias: jax.Array,
    *,
    activation: str = "gelu",
) -> jax.Array:
    """An activation (a key of `ACTIVATIONS`) between two projections: `x [..., width]`."""
    wide = project(x, up) + up_bias.astype(jnp.float32)
    hidden = ACTIVATIONS[activation](wide).astype(x.dtype)
    return (project(hidden, down) + down_bias.astype(jnp.float32)).astype(x.dtype)


ACTIVATIONS: Mapping[str, Callable[[jax.Array], jax.Array]] = MappingProxyType(
    {  # GELU is that of Hendrycks and Gimpel 2016, in three forms
        "gelu": functools.partial(jax.nn.gelu, approximate=False),
        "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
        "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    }
)
