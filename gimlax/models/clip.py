"""CLIP's text encoder (Radford et al. 2021) in Flax NNX, as Stable Diffusion asks for it.

A causal transformer with norms in front. Two things come out: the tokens before the last layer, and
the whole text as one vector, which is what the last layer says at the token that ends it.
"""

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from gimlax.errors import SpecError
from gimlax.models.composites import ACTIVATIONS, attention, mlp
from gimlax.models.decoder import DType, Params, weight
from gimlax.models.layers import Dense, LayerNorm, head_faults, size_faults

LEGACY_END = 2  # which configs say where the token of the highest id ends a text


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipConfig:
    """Sizes of a text encoder, and the dtype of its parameters and of its arithmetic.

    `projection_width` is that of the whole text, `activation` a key of `ACTIVATIONS`, `end_id` the
    token that ends a text.
    """

    width: int
    num_layers: int
    num_heads: int
    mlp_width: int
    projection_width: int
    activation: str = "quick_gelu"
    vocab_size: int = 49408
    max_context: int = 77
    end_id: int = LEGACY_END
    norm_eps: float = 1e-5
    param_dtype: DType = "float32"
    compute_dtype: DType = "float32"

    def __post_init__(self) -> None:
        faults = size_faults(self) + head_faults(self.width, self.num_heads)
        if self.activation not in ACTIVATIONS:
            faults.append(f"activation is {self.activation!r}; known are {', '.join(ACTIVATIONS)}")
        if faults:
            raise SpecError("ClipConfig: " + "; ".join(faults))

    def build(self, *, rngs: nnx.Rngs | None) -> "Clip":
        """The model of these sizes; without `rngs` its parameters are shapes."""
        return Clip(self, rngs=rngs)

    def with_dtype(self, dtype: DType) -> "ClipConfig":
        """The same model with parameters and computation in `dtype`."""
        return dataclasses.replace(self, param_dtype=dtype, compute_dtype=dtype)


CLIP_L = ClipConfig(width=768, num_layers=12, num_heads=12, mlp_width=3072, projection_width=768)
CLIP_G = ClipConfig(
    width=1280,
    num_layers=32,
    num_heads=20,
    mlp_width=5120,
    projection_width=1280,
    activation="gelu",
)


class Layer(nnx.Module):
    """Attention and MLP, each on a normed copy of the stream."""

    def __init__(self, config: ClipConfig, *, rngs: nnx.Rngs | None) -> None:
        self.config = config
        dtype, width, eps = config.param_dtype, config.width, config.norm_eps
        square = functools.partial(Dense, dtype, width, width, rngs=rngs)
        self.attention_norm = LayerNorm(dtype, width, eps, rngs=rngs)
        self.query, self.key, self.value, self.output = square(), square(), square(), square()
        self.mlp_norm = LayerNorm(dtype, width, eps, rngs=rngs)
        self.up = Dense(dtype, width, config.mlp_width, rngs=rngs)
        self.down = Dense(dtype, config.mlp_width, width, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        def heads(rows: jax.Array) -> jax.Array:  # [batch, token, head, size]
            return rows.reshape(*x.shape[:2], self.config.num_heads, -1)

        with jax.named_scope("attention"):
            normed = self.attention_norm(x)
            projected = (heads(of(normed)) for of in (self.query, self.key, self.value))
            x = x + self.output(attention(*projected, np.int32(0)))
        with jax.named_scope("mlp"):
            dense = (*self.up.cast(x.dtype), *self.down.cast(x.dtype))
            return x + mlp(self.mlp_norm(x), *dense, activation=self.config.activation)


class Clip(nnx.Module):
    """The encoder; with `rngs=None` its parameters are shapes and cost no memory."""

    def __init__(self, config: ClipConfig, *, rngs: nnx.Rngs | None) -> None:
        self.config = config
        dtype, width = config.param_dtype, config.width
        self.embed = weight(rngs, dtype, config.vocab_size, width)
        self.positions = weight(rngs, dtype, config.max_context, width)
        self.layers = nnx.List([Layer(config, rngs=rngs) for _ in range(config.num_layers)])
        self.norm = LayerNorm(dtype, width, config.norm_eps, rngs=rngs)
        self.project = Dense(dtype, width, config.projection_width, rngs=rngs, bias=False)

    def __call__(self, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Encodes `tokens`; see `clip_apply` for shapes."""
        length = tokens.shape[1]
        if length > self.config.max_context:
            raise SpecError(
                f"tokens are {length} long, the model knows {self.config.max_context} positions; "
                "cut them"
            )
        with jax.named_scope("embed"):
            x = jnp.take(self.embed[...], tokens, axis=0) + self.positions[...][:length]
            hidden = x = x.astype(self.config.compute_dtype)
        for index, layer in enumerate(self.layers):
            hidden = x
            with jax.named_scope(f"layers.{index}"):
                x = layer(x)
        with jax.named_scope("pooled"):
            ends = tokens if self.config.end_id == LEGACY_END else tokens == self.config.end_id
            last = jnp.argmax(ends, axis=1)[:, None, None]  # the first of the highest
            whole = jnp.take_along_axis(x, last, axis=1)[:, 0]
            whole = self.project(self.norm(whole))
        return hidden.astype(jnp.float32), whole.astype(jnp.float32)


def clip_apply(config: ClipConfig) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """The model as `apply(params, tokens) -> (hidden, whole)`.

    `params` are as `abstract_params` describes them, `tokens` int32 [batch, length], padded behind
    the token that ends a text. It returns float32 [batch, length, width], as it is before the last
    layer, and [batch, projection_width].
    """
    graphdef = nnx.graphdef(config.build(rngs=None))

    def clip(params: Params, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
        return nnx.merge(graphdef, params)(tokens)

    return clip
