"""Llama in Flax NNX, as one function of parameters, cache, tokens and position.

Prefill and decode are the same function at two shapes: `length` tokens are written into a static
cache at `position` and attend to everything at or before their own position. Nothing about the
cache is hidden in the module: it comes in and goes out as a list with one `{'k', 'v'}` per layer,
so a program that is cut between layers keeps each layer's cache where that layer runs. Only the
residual stream crosses from layer to layer; rotary angles and masks are cheap, so each layer makes
its own from `position`.

Operations are named with `jax.lax.composite` for compilers and cost models that know the names
(`gimlax.rms_norm`, `gimlax.rotary`, `gimlax.cache_update`, `gimlax.attention`, `gimlax.gated_mlp`);
whoever does not know them sees the plain operations inside.

Weights are stored `[out, in]`, as checkpoint files store them, so reading a file transposes
nothing. Dots accumulate in float32 whatever the dtype of their operands.
"""

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from gimlax.errors import SpecError

DType = Literal["float32", "bfloat16", "float16"]
LayerCache = dict[str, Any]  # 'k', 'v': [batch, context, kv head, size], arrays or shapes
Cache = list[LayerCache]
Params = dict[str, Any]

MIN_ROWS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaConfig:
    """Sizes of a Llama and the dtype of each kind of number in it.

    `max_context` is what the model was trained for; a cache may be shorter. Raises `SpecError` with
    everything that is wrong.
    """

    vocab_size: int
    width: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_size: int
    mlp_width: int
    max_context: int
    rope_theta: float = 10000.0
    norm_eps: float = 1e-5
    tied: bool = False
    param_dtype: DType = "float32"
    compute_dtype: DType = "float32"
    cache_dtype: DType = "float32"

    def __post_init__(self) -> None:
        faults = []
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type in (int, float) and not 0 < value < float("inf"):
                faults.append(f"{field.name} is {value}; give a positive number")
        if self.num_kv_heads > 0 and self.num_heads % self.num_kv_heads:
            faults.append(
                f"num_heads is {self.num_heads}, no multiple of num_kv_heads {self.num_kv_heads}; "
                "each key/value head serves the same number of query heads"
            )
        if self.head_size % 2:
            faults.append(f"head_size is {self.head_size}; rotary embedding needs an even one")
        if faults:
            raise SpecError("LlamaConfig: " + "; ".join(faults))

    def with_dtype(self, dtype: DType) -> "LlamaConfig":
        """The same model with parameters, computation and cache in `dtype`."""
        return dataclasses.replace(self, param_dtype=dtype, compute_dtype=dtype, cache_dtype=dtype)


SMOLLM2_135M = LlamaConfig(
    vocab_size=49152,
    width=576,
    num_layers=30,
    num_heads=9,
    num_kv_heads=3,
    head_size=64,
    mlp_width=1536,
    max_context=8192,
    rope_theta=100000.0,
    norm_eps=1e-5,
    tied=True,
)
LLAMA3_8B = LlamaConfig(
    vocab_size=128256,
    width=4096,
    num_layers=32,
    num_heads=32,
    num_kv_heads=8,
    head_size=128,
    mlp_width=14336,
    max_context=8192,
    rope_theta=500000.0,
    norm_eps=1e-5,
    tied=False,
)
LLAMA3_70B = LlamaConfig(
    vocab_size=128256,
    width=8192,
    num_layers=80,
    num_heads=64,
    num_kv_heads=8,
    head_size=128,
    mlp_width=28672,
    max_context=8192,
    rope_theta=500000.0,
    norm_eps=1e-5,
    tied=False,
)


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
def rotary(x: jax.Array, position: jax.Array, *, theta: float) -> jax.Array:
    """Su et al. 2021 with the two halves of a head as pairs: `x [batch, token, head, size]`."""
    half = x.shape[-1] // 2
    frequency = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
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
    query: jax.Array, keys: jax.Array, values: jax.Array, position: jax.Array
) -> jax.Array:
    """Causal attention of new tokens over a cache that already holds them.

    Args:
      query: [batch, token, head, size], rotated.
      keys: [batch, context, kv head, size], rotated.
      values: [batch, context, kv head, size].
      position: int32 [] or [batch], of the first token. A token attends to rows of the cache at or
        before its own position, so rows beyond (padding, older requests) never matter.

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
    visible = jnp.arange(context) <= absolute_positions(position, length)[..., None]
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


def weight(rngs: nnx.Rngs | None, dtype: DType, *shape: int) -> nnx.Param[Any]:
    """A matrix `[out, in]` of normal numbers whose products keep the scale of their input.

    Without `rngs` it is a shape only. (`nnx.eval_shape` gives the same and takes seconds for 80
    layers, because it traces every initialiser.)
    """
    if rngs is None:
        return nnx.Param(jax.ShapeDtypeStruct(shape, dtype))
    values = jax.random.normal(rngs.params(), shape, jnp.float32) * shape[-1] ** -0.5
    return nnx.Param(values.astype(dtype))


class RMSNorm(nnx.Module):
    """A learned scale, all ones at the start."""

    def __init__(self, config: LlamaConfig, *, rngs: nnx.Rngs | None) -> None:
        make = jax.ShapeDtypeStruct if rngs is None else jnp.ones
        self.eps = config.norm_eps
        self.scale = nnx.Param(make((config.width,), config.param_dtype))

    def __call__(self, x: jax.Array) -> jax.Array:
        return rms_norm(x, self.scale[...], eps=self.eps)


class Attention(nnx.Module):
    """Grouped-query self-attention that reads and returns its layer's cache."""

    def __init__(self, config: LlamaConfig, *, rngs: nnx.Rngs | None) -> None:
        self.config = config
        make = functools.partial(weight, rngs, config.param_dtype)
        heads_width = config.num_heads * config.head_size
        kv_width = config.num_kv_heads * config.head_size
        self.query = make(heads_width, config.width)
        self.key = make(kv_width, config.width)
        self.value = make(kv_width, config.width)
        self.output = make(config.width, heads_width)

    def __call__(
        self, x: jax.Array, cache: LayerCache, position: jax.Array
    ) -> tuple[jax.Array, LayerCache]:
        def heads(weight: nnx.Param[jax.Array]) -> jax.Array:  # [batch, token, head, size]
            rows = project(x, weight[...].astype(x.dtype)).astype(x.dtype)
            return rows.reshape(*x.shape[:2], -1, self.config.head_size)

        theta = self.config.rope_theta
        query = rotary(heads(self.query), position, theta=theta)
        key = rotary(heads(self.key), position, theta=theta)
        keys = cache_update(cache["k"], key, position)
        values = cache_update(cache["v"], heads(self.value), position)
        mixed = attention(query, keys, values, position)
        out = project(mixed, self.output[...].astype(x.dtype)).astype(x.dtype)
        return out, {"k": keys, "v": values}


class GatedMLP(nnx.Module):
    """The feed-forward half of a layer."""

    def __init__(self, config: LlamaConfig, *, rngs: nnx.Rngs | None) -> None:
        make = functools.partial(weight, rngs, config.param_dtype)
        self.gate = make(config.mlp_width, config.width)
        self.up = make(config.mlp_width, config.width)
        self.down = make(config.width, config.mlp_width)

    def __call__(self, x: jax.Array) -> jax.Array:
        gate, up, down = (w[...].astype(x.dtype) for w in (self.gate, self.up, self.down))
        return gated_mlp(x, gate, up, down)


class Layer(nnx.Module):
    """Attention and MLP, each on a normed copy of the residual stream."""

    def __init__(self, config: LlamaConfig, *, rngs: nnx.Rngs | None) -> None:
        self.attention_norm = RMSNorm(config, rngs=rngs)
        self.attention = Attention(config, rngs=rngs)
        self.mlp_norm = RMSNorm(config, rngs=rngs)
        self.mlp = GatedMLP(config, rngs=rngs)

    def __call__(
        self, x: jax.Array, cache: LayerCache, position: jax.Array
    ) -> tuple[jax.Array, LayerCache]:
        with jax.named_scope("attention"):
            mixed, cache = self.attention(self.attention_norm(x), cache, position)
            x = x + mixed
        with jax.named_scope("mlp"):
            x = x + self.mlp(self.mlp_norm(x))
        return x, cache


class Llama(nnx.Module):
    """The whole model; with `rngs=None` its parameters are shapes and cost no memory."""

    def __init__(self, config: LlamaConfig, *, rngs: nnx.Rngs | None) -> None:
        self.config = config
        self.embed = weight(rngs, config.param_dtype, config.vocab_size, config.width)
        self.layers = nnx.List([Layer(config, rngs=rngs) for _ in range(config.num_layers)])
        self.norm = RMSNorm(config, rngs=rngs)
        if not config.tied:
            self.head = weight(rngs, config.param_dtype, config.vocab_size, config.width)

    def __call__(
        self,
        cache: Cache,
        tokens: jax.Array,
        position: jax.Array,
        last: jax.Array | None = None,
    ) -> tuple[jax.Array, Cache]:
        """Runs `tokens` at `position`; see `llama_apply` for shapes."""
        with jax.named_scope("embed"):
            x = jnp.take(self.embed[...], tokens, axis=0).astype(self.config.compute_dtype)
        updated = []
        for index, layer in enumerate(self.layers):
            with jax.named_scope(f"layers.{index}"):
                x, layer_cache = layer(x, cache[index], position)
            updated.append(layer_cache)
        with jax.named_scope("head"):
            if last is not None:
                rows = jnp.broadcast_to(last, tokens.shape[:1])
                x = jnp.take_along_axis(x, rows[:, None, None], axis=1)
            head = self.embed if self.config.tied else self.head
            logits = project(self.norm(x), head[...].astype(x.dtype))
        return logits, updated


def llama_apply(
    config: LlamaConfig,
) -> Callable[..., tuple[jax.Array, Cache]]:
    """The model as `apply(params, cache, tokens, position, last=None) -> (logits, cache)`.

    Its arguments:
      params: as `abstract_params` describes them.
      cache: one `{'k', 'v'}` per layer, each [batch, context, kv head, size]; what comes back
        replaces it (`carried={1: 1}` when traced).
      tokens: int32 [batch, length].
      position: int32 [] or [batch], the absolute position of the first of `tokens`. That
        `position + length` stays within the context is for the caller to check: it is a value.
      last: row of the only wanted logits, int32 [] or [batch]; all rows when left out.

    It returns float32 logits [batch, length or 1, vocab] and the cache. A prompt may be padded
    behind its end: decoding from its true length overwrites the padded rows before they are
    attended to.
    """
    graphdef = nnx.graphdef(Llama(config, rngs=None))

    def llama(
        params: Params,
        cache: Cache,
        tokens: jax.Array,
        position: jax.Array,
        last: jax.Array | None = None,
    ) -> tuple[jax.Array, Cache]:
        return nnx.merge(graphdef, params)(cache, tokens, position, last)

    return llama


def abstract_params(config: LlamaConfig) -> Params:
    """Shapes and dtypes of the parameters as nested dicts: `['layers'][3]['mlp']['up']`."""
    return nnx.to_pure_dict(nnx.state(Llama(config, rngs=None)))


def init_params(config: LlamaConfig, *, seed: int = 0) -> Params:
    """Random parameters, as `abstract_params` describes them."""
    return nnx.to_pure_dict(nnx.state(Llama(config, rngs=nnx.Rngs(seed))))


def abstract_cache(config: LlamaConfig, batch: int, context: int) -> Cache:
    """Shapes of the cache of `batch` sequences of up to `context` tokens."""
    if not 0 < context <= config.max_context:
        raise SpecError(
            f"cache context is {context} tokens, the model was trained for {config.max_context}; "
            f"give 1 to {config.max_context}"
        )
    shape = (batch, context, config.num_kv_heads, config.head_size)
    leaf = jax.ShapeDtypeStruct(shape, jnp.dtype(config.cache_dtype))
    return [{"k": leaf, "v": leaf} for _ in range(config.num_layers)]


def init_cache(config: LlamaConfig, batch: int, context: int) -> Cache:
    """An empty cache; see `abstract_cache`."""
    return jax.tree.map(
        lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), abstract_cache(config, batch, context)
    )
