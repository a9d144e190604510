"""BERT (Devlin et al. 2019) in Flax NNX: an encoder, and sentence embeddings made of what it says.

Every token sees every other, in both directions, so there is no cache and no state: `mask` says
which tokens are there, and padding is seen by none. Norms stand behind what they norm (post-LN),
so what crosses from layer to layer is a normed stream. A sentence is the mean of its tokens, or its
first one, scaled to length 1.
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
from gimlax.models.composites import project
from gimlax.models.decoder import DType, Params, weight

Pooling = Literal["mean", "cls"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BertConfig:
    """Sizes of a BERT, and the dtype of its parameters and of its arithmetic.

    `num_types` are the kinds of tokens (sentence A, sentence B); `pooler` says whether there is a
    layer on top of the first token. Raises `SpecError` with everything that is wrong.
    """

    vocab_size: int
    width: int
    num_layers: int
    num_heads: int
    mlp_width: int
    max_context: int = 512
    num_types: int = 2
    norm_eps: float = 1e-12
    pooler: bool = True
    param_dtype: DType = "float32"
    compute_dtype: DType = "float32"

    def __post_init__(self) -> None:
        faults = [
            f"{field.name} is {getattr(self, field.name)}; give a positive number"
            for field in dataclasses.fields(self)
            if field.type in (int, float) and not 0 < getattr(self, field.name) < float("inf")
        ]
        if self.num_heads > 0 and self.width % self.num_heads:
            faults.append(
                f"width is {self.width}, no multiple of num_heads {self.num_heads}; "
                "heads divide the width between them"
            )
        if faults:
            raise SpecError("BertConfig: " + "; ".join(faults))

    def build(self, *, rngs: nnx.Rngs | None) -> "Bert":
        """The model of these sizes; without `rngs` its parameters are shapes."""
        return Bert(self, rngs=rngs)

    def with_dtype(self, dtype: DType) -> "BertConfig":
        """The same model with parameters and computation in `dtype`."""
        return dataclasses.replace(self, param_dtype=dtype, compute_dtype=dtype)


BERT_BASE = BertConfig(vocab_size=30522, width=768, num_layers=12, num_heads=12, mlp_width=3072)
BERT_LARGE = BertConfig(vocab_size=30522, width=1024, num_layers=24, num_heads=16, mlp_width=4096)
MINILM_L6 = BertConfig(vocab_size=30522, width=384, num_layers=6, num_heads=12, mlp_width=1536)


@functools.partial(jax.lax.composite, name="gimlax.layer_norm", version=1)
def layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array, *, eps: float) -> jax.Array:
    """Ba et al. 2016, in float32: `x [..., width]`, `scale` and `bias` [width] -> like `x`."""
    wide = x.astype(jnp.float32)
    centred = wide - jnp.mean(wide, axis=-1, keepdims=True)
    normed = centred * jax.lax.rsqrt(jnp.mean(centred * centred, axis=-1, keepdims=True) + eps)
    return (normed * scale.astype(jnp.float32) + bias.astype(jnp.float32)).astype(x.dtype)


@functools.partial(jax.lax.composite, name="gimlax.bidirectional_attention", version=1)
def bidirectional_attention(
    query: jax.Array, keys: jax.Array, values: jax.Array, mask: jax.Array
) -> jax.Array:
    """Attention of every token to every token that is there.

    Args:
      query, keys, values: [batch, token, head, size].
      mask: [batch, token], 0 for padding; what a row without any token says means nothing, but it
        is finite.

    Returns:
      [batch, token, head * size] in the dtype of `query`.
    """
    dot = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    scores = dot("btnd,bsnd->bnts", query, keys) * query.shape[-1] ** -0.5
    lowest = jnp.finfo(jnp.float32).min
    scores = jnp.where((mask != 0)[:, None, None, :], scores, lowest)
    shares = jax.nn.softmax(scores, axis=-1).astype(query.dtype)
    mixed = dot("bnts,bsnd->btnd", shares, values)
    return mixed.reshape(*query.shape[:2], -1).astype(query.dtype)


@functools.partial(jax.lax.composite, name="gimlax.mlp", version=1)
def mlp(
    x: jax.Array, up: jax.Array, up_bias: jax.Array, down: jax.Array, down_bias: jax.Array
) -> jax.Array:
    """GELU (Hendrycks and Gimpel 2016, by erf) between two projections: `x [..., width]`."""
    wide = project(x, up) + up_bias.astype(jnp.float32)
    hidden = jax.nn.gelu(wide, approximate=False).astype(x.dtype)
    return (project(hidden, down) + down_bias.astype(jnp.float32)).astype(x.dtype)


def mean_pooled(hidden: jax.Array, mask: jax.Array) -> jax.Array:
    """The mean of the tokens that are there: `hidden [batch, token, width]` -> [batch, width]."""
    there = (mask != 0)[..., None].astype(jnp.float32)
    return (hidden * there).sum(axis=1) / jnp.maximum(there.sum(axis=1), 1)


class Dense(nnx.Module):
    """A projection with a bias."""

    def __init__(self, config: BertConfig, width: int, out: int, *, rngs: nnx.Rngs | None) -> None:
        make = jax.ShapeDtypeStruct if rngs is None else jnp.zeros
        self.weight = weight(rngs, config.param_dtype, out, width)
        self.bias = nnx.Param(make((out,), config.param_dtype))

    def cast(self, dtype: Any) -> tuple[jax.Array, jax.Array]:
        """Weight and bias, for computation in `dtype`."""
        return self.weight[...].astype(dtype), self.bias[...]

    def __call__(self, x: jax.Array) -> jax.Array:
        matrix, bias = self.cast(x.dtype)
        return (project(x, matrix) + bias.astype(jnp.float32)).astype(x.dtype)


class LayerNorm(nnx.Module):
    """A learned scale and shift, ones and zeros at the start."""

    def __init__(self, config: BertConfig, *, rngs: nnx.Rngs | None) -> None:
        shape = (config.width,)
        self.eps = config.norm_eps
        if rngs is None:
            shapes = jax.ShapeDtypeStruct(shape, config.param_dtype)
            self.scale, self.bias = nnx.Param(shapes), nnx.Param(shapes)
        else:
            self.scale = nnx.Param(jnp.ones(shape, config.param_dtype))
            self.bias = nnx.Param(jnp.zeros(shape, config.param_dtype))

    def __call__(self, x: jax.Array) -> jax.Array:
        return layer_norm(x, self.scale[...], self.bias[...], eps=self.eps)


class Layer(nnx.Module):
    """Attention and MLP, each added to the stream and normed with it."""

    def __init__(self, config: BertConfig, *, rngs: nnx.Rngs | None) -> None:
        self.num_heads = config.num_heads
        square = functools.partial(Dense, config, config.width, config.width, rngs=rngs)
        self.query, self.key, self.value, self.output = square(), square(), square(), square()
        self.attention_norm = LayerNorm(config, rngs=rngs)
        self.up = Dense(config, config.width, config.mlp_width, rngs=rngs)
        self.down = Dense(config, config.mlp_width, config.width, rngs=rngs)
        self.mlp_norm = LayerNorm(config, rngs=rngs)

    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        def heads(rows: jax.Array) -> jax.Array:  # [batch, token, head, size]
            return rows.reshape(*x.shape[:2], self.num_heads, -1)

        with jax.named_scope("attention"):
            projected = (heads(of(x)) for of in (self.query, self.key, self.value))
            x = self.attention_norm(x + self.output(bidirectional_attention(*projected, mask)))
        with jax.named_scope("mlp"):
            hidden = mlp(x, *self.up.cast(x.dtype), *self.down.cast(x.dtype))
            x = self.mlp_norm(x + hidden)
        return x


class Bert(nnx.Module):
    """The encoder; with `rngs=None` its parameters are shapes and cost no memory."""

    def __init__(self, config: BertConfig, *, rngs: nnx.Rngs | None) -> None:
        self.config = config
        table = functools.partial(weight, rngs, config.param_dtype)
        self.embed = table(config.vocab_size, config.width)
        self.positions = table(config.max_context, config.width)
        self.types = table(config.num_types, config.width)
        self.embed_norm = LayerNorm(config, rngs=rngs)
        self.layers = nnx.List([Layer(config, rngs=rngs) for _ in range(config.num_layers)])
        if config.pooler:
            self.pooler = Dense(config, config.width, config.width, rngs=rngs)

    def __call__(
        self, tokens: jax.Array, mask: jax.Array, types: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array | None]:
        """Encodes `tokens`; see `bert_apply` for shapes."""
        length = tokens.shape[1]
        if length > self.config.max_context:
            raise SpecError(
                f"tokens are {length} long, the model knows {self.config.max_context} positions; "
                "cut them"
            )
        with jax.named_scope("embed"):
            kinds = self.types[...][:1] if types is None else jnp.take(self.types[...], types, 0)
            x = jnp.take(self.embed[...], tokens, axis=0) + kinds + self.positions[...][:length]
            x = self.embed_norm(x.astype(self.config.compute_dtype))
        for index, layer in enumerate(self.layers):
            with jax.named_scope(f"layers.{index}"):
                x = layer(x, mask)
        if not self.config.pooler:
            return x.astype(jnp.float32), None
        with jax.named_scope("pooler"):
            return x.astype(jnp.float32), jnp.tanh(self.pooler(x[:, 0]).astype(jnp.float32))


def bert_apply(
    config: BertConfig,
) -> Callable[..., tuple[jax.Array, jax.Array | None]]:
    """The model as `apply(params, tokens, mask, types=None) -> (hidden, pooled)`.

    Its arguments:
      params: as `abstract_params` describes them.
      tokens: int32 [batch, length].
      mask: int32 [batch, length], 0 for padding.
      types: int32 [batch, length], the kind of each token; all 0 when left out.

    It returns float32 [batch, length, width] and, of a model with a pooler, [batch, width].
    """
    graphdef = nnx.graphdef(config.build(rngs=None))

    def bert(
        params: Params, tokens: jax.Array, mask: jax.Array, types: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array | None]:
        return nnx.merge(graphdef, params)(tokens, mask, types)

    return bert


def embed_apply(
    config: BertConfig, *, pooling: Pooling = "mean", normalize: bool = True
) -> Callable[..., jax.Array]:
    """Sentence embeddings as `apply(params, tokens, mask) -> [batch, width]` float32.

    `pooling` takes the mean of the tokens or the first one; `normalize` scales to length 1. The
    model is one without a pooler.
    """
    encode = bert_apply(dataclasses.replace(config, pooler=False))

    def embed(params: Params, tokens: jax.Array, mask: jax.Array) -> jax.Array:
        hidden, _ = encode(params, tokens, mask)
        with jax.named_scope("pooling"):
            pooled = mean_pooled(hidden, mask) if pooling == "mean" else hidden[:, 0]
            if normalize:
                length = jnp.linalg.norm(pooled, axis=-1, keepdims=True)
                pooled = pooled / jnp.maximum(length, 1e-12)
            return pooled

    return embed
