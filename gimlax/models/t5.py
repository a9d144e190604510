"""The encoder of T5 1.1 (Raffel et al. 2020, Shazeer 2020) in Flax NNX.

Every token sees every other; how far they are from each other adds a learned number to their score,
one for each head and *bucket* of distances, near ones exact and far ones in logarithmic steps. The
numbers are the same in all layers, so each layer looks its own up and nothing but the stream
crosses from layer to layer. Scores are not scaled, and nothing has a bias.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from gimlax.errors import SpecError
from gimlax.models.composites import attention_scores, mixed_values, project, rms_norm
from gimlax.models.decoder import DType, Params, weight
from gimlax.models.layers import Dense, filled, size_faults


@dataclass(frozen=True, slots=True, kw_only=True)
class T5Config:
    """Sizes of an encoder, and the dtype of its parameters and of its arithmetic.

    Distances beyond `max_distance` share the last of `num_buckets`, half of which are for each
    direction.
    """

    width: int
    num_layers: int
    num_heads: int
    mlp_width: int
    head_size: int = 64
    vocab_size: int = 32128
    num_buckets: int = 32
    max_distance: int = 128
    norm_eps: float = 1e-6
    param_dtype: DType = "float32"
    compute_dtype: DType = "float32"

    def __post_init__(self) -> None:
        faults = size_faults(self)
        if self.num_buckets % 4 or not self.max_distance > self.num_buckets // 4:
            faults.append(
                f"num_buckets is {self.num_buckets} and max_distance {self.max_distance}; needed "
                "are a multiple of 4 and more than a quarter of it"
            )
        if faults:
            raise SpecError("T5Config: " + "; ".join(faults))

    def build(self, *, rngs: nnx.Rngs | None) -> "T5":
        """The model of these sizes; without `rngs` its parameters are shapes."""
        return T5(self, rngs=rngs)

    def with_dtype(self, dtype: DType) -> "T5Config":
        """The same model with parameters and computation in `dtype`."""
        return dataclasses.replace(self, param_dtype=dtype, compute_dtype=dtype)


T5_XXL = T5Config(width=4096, num_layers=24, num_heads=64, mlp_width=10240)


def distance_buckets(length: int, num_buckets: int, max_distance: int) -> np.ndarray:
    """The bucket of each pair of tokens, by how far the second is behind the first.

    # int32 [length, length]
    """
    distance = np.arange(length)[None] - np.arange(length)[:, None]
    half = num_buckets // 2
    exact = half // 2
    far = np.maximum(np.abs(distance), exact).astype(np.float32)
    steps = np.log(far / np.float32(exact)) / np.float32(math.log(max_distance / exact))
    large = np.minimum(exact + (steps * (half - exact)).astype(np.int32), half - 1)
    near = np.where(np.abs(distance) < exact, np.abs(distance), large)
    return (near + np.where(distance > 0, half, 0)).astype(np.int32)


@functools.partial(jax.lax.composite, name="gimlax.distance_attention", version=1)
def distance_attention(
    query: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    table: jax.Array,
    *,
    num_buckets: int,
    max_distance: int,
) -> jax.Array:
    """Attention of every token to every token, with a number for their distance.

    `query`, `keys`, `values` are [batch, token, head, size], `table` [bucket, head]; it returns
    [batch, token, head * size] in the dtype of `query`.
    """
    buckets = distance_buckets(query.shape[1], num_buckets, max_distance)
    added = jnp.take(table.astype(jnp.float32), buckets, axis=0).transpose(2, 0, 1)
    return mixed_values(attention_scores(query, keys) + added, values)


@functools.partial(jax.lax.composite, name="gimlax.gated_gelu_mlp", version=1)
def gated_gelu_mlp(x: jax.Array, gate: jax.Array, up: jax.Array, down: jax.Array) -> jax.Array:
    """GEGLU (Shazeer 2020): `x [..., width]`; `gate`, `up` [mlp, width]; `down` [width, mlp]."""
    hidden = jax.nn.gelu(project(x, gate), approximate=True) * project(x, up)
    return project(hidden.astype(x.dtype), down).astype(x.dtype)


class Layer(nnx.Module):
    """Attention and MLP, each on a normed copy of the stream."""

    def __init__(self, config: T5Config, *, rngs: nnx.Rngs | None) -> None:
        self.config = config
        dtype, width = config.param_dtype, config.width
        dense = functools.partial(Dense, dtype, rngs=rngs, bias=False)
        inner = config.num_heads * config.head_size
        self.attention_norm = filled(rngs, dtype, width, value=1)
        self.query, self.key, self.value = (dense(width, inner) for _ in range(3))
        self.output = dense(inner, width)
        self.mlp_norm = filled(rngs, dtype, width, value=1)
        make = functools.partial(weight, rngs, dtype)
        self.gate = make(config.mlp_width, width)
        self.up = make(config.mlp_width, width)
        self.down = make(width, config.mlp_width)

    def __call__(self, x: jax.Array, table: jax.Array) -> jax.Array:
        config = self.config

        def heads(rows: jax.Array) -> jax.Array:  # [batch, token, head, size]
            return rows.reshape(*x.shape[:2], config.num_heads, -1)

        with jax.named_scope("attention"):
            normed = rms_norm(x, self.attention_norm[...], eps=config.norm_eps)
            projected = (heads(of(normed)) for of in (self.query, self.key, self.value))
            mixed = distance_attention(
                *projected,
                table,
                num_buckets=config.num_buckets,
                max_distance=config.max_distance,
            )
            x = x + self.output(mixed)
        with jax.named_scope("mlp"):
            normed = rms_norm(x, self.mlp_norm[...], eps=config.norm_eps)
            parts = (part[...].astype(x.dtype) for part in (self.gate, self.up, self.down))
            return x + gated_gelu_mlp(normed, *parts)


class T5(nnx.Module):
    """The encoder; with `rngs=None` its parameters are shapes and cost no memory."""

    def __init__(self, config: T5Config, *, rngs: nnx.Rngs | None) -> None:
        self.config = config
        dtype = config.param_dtype
        self.embed = weight(rngs, dtype, config.vocab_size, config.width)
        self.distances = weight(rngs, dtype, config.num_buckets, config.num_heads)
        self.layers = nnx.List([Layer(config, rngs=rngs) for _ in range(config.num_layers)])
        self.norm = filled(rngs, dtype, config.width, value=1)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Encodes `tokens`; see `t5_apply` for shapes."""
        with jax.named_scope("embed"):
            x = jnp.take(self.embed[...], tokens, axis=0).astype(self.config.compute_dtype)
        for index, layer in enumerate(self.layers):
            with jax.named_scope(f"layers.{index}"):
                x = layer(x, self.distances[...])
        return rms_norm(x, self.norm[...], eps=self.config.norm_eps).astype(jnp.float32)


def t5_apply(config: T5Config) -> Callable[..., jax.Array]:
    """The model as `apply(params, tokens) -> hidden`.

    `params` are as `abstract_params` describes them, `tokens` int32 [batch, length]; there is no
    mask, since Stable Diffusion was trained with padding in sight. It returns float32 [batch,
    length, width].
    """
    graphdef = nnx.graphdef(config.build(rngs=None))

    def t5(params: Params, tokens: jax.Array) -> jax.Array:
        return nnx.merge(graphdef, params)(tokens)

    return t5
