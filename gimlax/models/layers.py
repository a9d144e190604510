"""Modules that models beside decoders share: a projection with a bias, a norm, a look at sizes."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from gimlax.models.composites import layer_norm, project
from gimlax.models.decoder import DType, weight


class Dense(nnx.Module):
    """A projection, with a bias unless it is said to have none."""

    def __init__(
        self, dtype: DType, width: int, out: int, *, rngs: nnx.Rngs | None, bias: bool = True
    ) -> None:
        self.weight = weight(rngs, dtype, out, width)
        if bias:
            self.bias = filled(rngs, dtype, out)
        self.biased = bias

    def cast(self, dtype: Any) -> tuple[jax.Array, jax.Array]:
        """Weight and bias, for computation in `dtype`."""
        return self.weight[...].astype(dtype), self.bias[...]

    def __call__(self, x: jax.Array) -> jax.Array:
        found = project(x, self.weight[...].astype(x.dtype))
        if self.biased:
            found += self.bias[...].astype(jnp.float32)
        return found.astype(x.dtype)


class LayerNorm(nnx.Module):
    """A learned scale and shift, ones and zeros at the start."""

    def __init__(self, dtype: DType, width: int, eps: float, *, rngs: nnx.Rngs | None) -> None:
        self.eps = eps
        self.scale = filled(rngs, dtype, width, value=1)
        self.bias = filled(rngs, dtype, width)

    def __call__(self, x: jax.Array) -> jax.Array:
        return layer_norm(x, self.scale[...], self.bias[...], eps=self.eps)


def filled(rngs: nnx.Rngs | None, dtype: DType, *shape: int, value: float = 0) -> nnx.Param[Any]:
    """A parameter of one value everywhere; a shape only without `rngs`."""
    if rngs is None:
        return nnx.Param(jax.ShapeDtypeStruct(shape, dtype))
    return nnx.Param(jnp.full(shape, value, dtype))


def size_faults(config: Any) -> list[str]:
    """Numbers of a config that are not positive, a sentence each."""
    return [
        f"{field.name} is {getattr(config, field.name)}; give a positive number"
        for field in dataclasses.fields(config)
        if field.type in (int, float) and not 0 < getattr(config, field.name) < float("inf")
    ]


def head_faults(width: int, num_heads: int) -> list[str]:
    """Whether heads cannot divide a width between them."""
    if num_heads > 0 and width % num_heads:
        return [
            f"width is {width}, no multiple of num_heads {num_heads}; "
            "heads divide the width between them"
        ]
    return []
