"""What our decoders share: attention over a cache, norms, the residual stream, embedding and head.

Prefill and decode are the same function at two shapes: `length` tokens are written into a static
cache at `position` and attend to everything at or before their own position. Nothing about the
cache is hidden in the module: it comes in and goes out as a list with one `{'k', 'v'}` per layer,
so a program that is cut between layers keeps each layer's cache where that layer runs. Only the
residual stream crosses from layer to layer; rotary angles and masks are cheap, so each layer makes
its own from `position`. What stands behind each attention is the family's own.
"""

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol, Self

import jax
import jax.numpy as jnp
from flax import nnx

from gimlax.errors import SpecError
from gimlax.models.composites import attention, cache_update, project, rms_norm, rotary

DType = Literal["float32", "bfloat16", "float16"]
LayerCache = dict[str, Any]  # 'k', 'v': [batch, context, kv head, size], arrays or shapes
Cache = list[LayerCache]
Params = dict[str, Any]


class Buildable(Protocol):
    """Sizes of a model of any kind."""

    def build(self, *, rngs: nnx.Rngs | None) -> nnx.Module:
        """The model of these sizes; without `rngs` its parameters are shapes."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderConfig:
    """Sizes that every decoder has, and the dtype of each kind of number in it.

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
        if faults := self.faults():
            raise SpecError(f"{type(self).__name__}: " + "; ".join(faults))

    def faults(self) -> list[str]:
        """Everything that is wrong, a sentence each."""
        found = []
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type in (int, float) and not 0 < value < float("inf"):
                found.append(f"{field.name} is {value}; give a positive number")
        if self.num_kv_heads > 0 and self.num_heads % self.num_kv_heads:
            found.append(
                f"num_heads is {self.num_heads}, no multiple of num_kv_heads {self.num_kv_heads}; "
                "each key/value head serves the same number of query heads"
            )
        if self.head_size % 2:
            found.append(f"head_size is {self.head_size}; rotary embedding needs an even one")
        return found

    def with_dtype(self, dtype: DType) -> Self:
        """The same model with parameters, computation and cache in `dtype`."""
        return dataclasses.replace(self, param_dtype=dtype, compute_dtype=dtype, cache_dtype=dtype)

    def build(self, *, rngs: nnx.Rngs | None) -> "Decoder":
        """The model of these sizes; without `rngs` its parameters are shapes."""
        raise NotImplementedError


def weight(rngs: nnx.Rngs | None, dtype: DType, *shape: int) -> nnx.Param[Any]:
    """Matrices `[..., out, in]` of normal numbers whose products keep the scale of their input.

    Without `rngs` it is a shape only. (`nnx.eval_shape` gives the same and takes seconds for 80
    layers, because it traces every initialiser.)
    """
    if rngs is None:
        return nnx.Param(jax.ShapeDtypeStruct(shape, dtype))
    values = jax.random.normal(rngs.params(), shape, jnp.float32) * shape[-1] ** -0.5
    return nnx.Param(values.astype(dtype))


class RMSNorm(nnx.Module):
    """A learned scale, all ones at the start."""

    def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs | None) -> None:
        make = jax.ShapeDtypeStruct if rngs is None else jnp.ones
        self.eps = config.norm_eps
        self.scale = nnx.Param(make((config.width,), config.param_dtype))

    def __call__(self, x: jax.Array) -> jax.Array:
        return rms_norm(x, self.scale[...], eps=self.eps)


class Attention(nnx.Module):
    """Grouped-query self-attention that reads and returns its layer's cache.

    `rope` are attributes of `rotary` beside its theta, `window` is that of `attention`.
    """

    def __init__(
        self,
        config: DecoderConfig,
        *,
        rngs: nnx.Rngs | None,
        rope: tuple[tuple[str, float], ...] = (),
        window: int | None = None,
    ) -> None:
        self.config = config
        self.rope = rope
        self.window = window
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

        turn = functools.partial(rotary, theta=self.config.rope_theta, **dict(self.rope))
        query = turn(heads(self.query), position)
        key = turn(heads(self.key), position)
        keys = cache_update(cache["k"], key, position)
        values = cache_update(cache["v"], heads(self.value), position)
        seen = {} if self.window is None else {"window": self.window}
        mixed = attention(query, keys, values, position, **seen)
        out = project(mixed, self.output[...].astype(x.dtype)).astype(x.dtype)
        return out, {"k": keys, "v": values}


class Layer(nnx.Module):
    """Attention and what follows it, each on a normed copy of the residual stream."""

    def __init__(
        self,
        config: DecoderConfig,
        attention: Callable[[], Attention],
        mlp: Callable[[], Callable[[jax.Array], jax.Array]],
        *,
        rngs: nnx.Rngs | None,
    ) -> None:
        self.attention_norm = RMSNorm(config, rngs=rngs)
        self.attention = attention()
        self.mlp_norm = RMSNorm(config, rngs=rngs)
        self.mlp = mlp()

    def __call__(
        self, x: jax.Array, cache: LayerCache, position: jax.Array
    ) -> tuple[jax.Array, LayerCache]:
        with jax.named_scope("attention"):
            mixed, cache = self.attention(self.attention_norm(x), cache, position)
            x = x + mixed
        with jax.named_scope("mlp"):
            x = x + self.mlp(self.mlp_norm(x))
        return x, cache


class Decoder(nnx.Module):
    """The whole model; with `rngs=None` its parameters are shapes and cost no memory."""

    def __init__(
        self, config: DecoderConfig, layer: Callable[[], Layer], *, rngs: nnx.Rngs | None
    ) -> None:
        self.config = config
        self.embed = weight(rngs, config.param_dtype, config.vocab_size, config.width)
        self.layers = nnx.List([layer() for _ in range(config.num_layers)])
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
        """Runs `tokens` at `position`; see `decoder_apply` for shapes."""
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


def decoder_apply(config: DecoderConfig) -> Callable[..., tuple[jax.Array, Cache]]:
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
    module = config.build(rngs=None)
    graphdef = nnx.graphdef(module)

    def apply(
        params: Params,
        cache: Cache,
        tokens: jax.Array,
        position: jax.Array,
        last: jax.Array | None = None,
    ) -> tuple[jax.Array, Cache]:
        return nnx.merge(graphdef, params)(cache, tokens, position, last)

    apply.__name__ = type(module).__name__.lower()
    return apply


def abstract_params(config: Buildable) -> Params:
    """Shapes and dtypes of the parameters as nested dicts: `['layers'][3]['mlp']['up']`."""
    return nnx.to_pure_dict(nnx.state(config.build(rngs=None)))


def init_params(config: Buildable, *, seed: int = 0) -> Params:
    """Random parameters, as `abstract_params` describes them."""
    return nnx.to_pure_dict(nnx.state(config.build(rngs=nnx.Rngs(seed))))


def abstract_cache(config: DecoderConfig, batch: int, context: int) -> Cache:
    """Shapes of the cache of `batch` sequences of up to `context` tokens."""
    if not 0 < context <= config.max_context:
        raise SpecError(
            f"cache context is {context} tokens, the model was trained for {config.max_context}; "
            f"give 1 to {config.max_context}"
        )
    shape = (batch, context, config.num_kv_heads, config.head_size)
    leaf = jax.ShapeDtypeStruct(shape, jnp.dtype(config.cache_dtype))
    return [{"k": leaf, "v": leaf} for _ in range(config.num_layers)]


def init_cache(config: DecoderConfig, batch: int, context: int) -> Cache:
    """An empty cache; see `abstract_cache`."""
    return jax.tree.map(
        lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), abstract_cache(config, batch, context)
    )
