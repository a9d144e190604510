"""The operations that our decoders are made of, named for compilers and cost models.

Each is a `jax.lax.composite` (`gimlax.rms_norm`, `gimlax.rotary`, `gimlax.cache_update`,
`gimlax.attention`, `gimlax.gated_mlp`); whoever does not know the names sees the plain operations
inside. Weights are `[out, in]`, as checkpoint files store them, so reading a file transposes
nothing. Dots accumulate in float32 whatever the dtype of their operands.
"""

import functools
import math

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
