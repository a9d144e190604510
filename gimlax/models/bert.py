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
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from gimlax.errors import SpecError
from gimlax.models.composites import bidirectional_attention, mlp
from gimlax.models.decoder import DType, Params, weight
from gimlax.models.layers import Dense, LayerNorm, head_faults, size_faults

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
        faults = size_faults(self) + head_faults(self.width, self.num_heads)
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


def mean_pooled(hidden: jax.Array, mask: jax.Array) -> jax.Array:
    """The mean of the tokens that are there: `hidden [batch, token, width]` -> [batch, width]."""
    there = (mask != 0)[..., None].astype(jnp.float32)
    return (hidden * there).sum(axis=1) / jnp.maximum(there.sum(axis=1), 1)


class Layer(nnx.Module):
    """Attention and MLP, each added to the stream and normed with it."""

    def __init__(self, config: BertConfig, *, rngs: nnx.Rngs | None) -> None:
        self.num_heads = config.num_heads
        dtype, width, eps = config.param_dtype, config.width, config.norm_eps
        square = functools.partial(Dense, dtype, width, width, rngs=rngs)
        self.query, self.key, self.value, self.output = square(), square(), square(), square()
        self.attention_norm = LayerNorm(dtype, width, eps, rngs=rngs)
        self.up = Dense(dtype, width, config.mlp_width, rngs=rngs)
        self.down = Dense(dtype, config.mlp_width, width, rngs=rngs)
        self.mlp_norm = LayerNorm(dtype, width, eps, rngs=rngs)

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
        dtype, width = config.param_dtype, config.width
        table = functools.partial(weight, rngs, dtype)
        self.embed = table(config.vocab_size, config.width)
        self.positions = table(config.max_context, config.width)
        self.types = table(config.num_types, config.width)
        self.embed_norm = LayerNorm(dtype, width, config.norm_eps, rngs=rngs)
        self.layers = nnx.List([Layer(config, rngs=rngs) for _ in range(config.num_layers)])
        if config.pooler:
            self.pooler = Dense(dtype, width, width, rngs=rngs)

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
