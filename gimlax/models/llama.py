"""Llama 3, 3.1 and 3.2 (and SmolLM2, which is one) in Flax NNX.

A decoder (`gimlax.models.decoder`) with a gated MLP behind each attention. From 3.1 on rotary
frequencies are scaled, so that the model reads a longer context than it was first trained for.
"""

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass

import jax
from flax import nnx

from gimlax.models.composites import gated_mlp
from gimlax.models.decoder import (
    Attention,
    Cache,
    Decoder,
    DecoderConfig,
    Layer,
    decoder_apply,
    weight,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeScaling:
    """The scaling that files call `rope_type: llama3`; `rotary` says what it does."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_context: int

    def faults(self) -> list[str]:
        """Everything that is wrong, a sentence each."""
        found = [
            f"rope_scaling.{field.name} is {getattr(self, field.name)}; give a positive number"
            for field in dataclasses.fields(self)
            if not 0 < getattr(self, field.name) < float("inf")
        ]
        if not self.low_freq_factor < self.high_freq_factor:
            found.append(
                f"rope_scaling.low_freq_factor is {self.low_freq_factor}, not below "
                f"high_freq_factor {self.high_freq_factor}"
            )
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaConfig(DecoderConfig):
    """Sizes of a Llama; see `DecoderConfig`."""

    rope_scaling: RopeScaling | None = None

    def faults(self) -> list[str]:
        """Everything that is wrong, a sentence each."""
        own = self.rope_scaling.faults() if self.rope_scaling else []
        return DecoderConfig.faults(self) + own

    def build(self, *, rngs: nnx.Rngs | None) -> "Llama":
        """The model of these sizes; without `rngs` its parameters are shapes."""
        return Llama(self, rngs=rngs)


class GatedMLP(nnx.Module):
    """The feed-forward half of a layer."""

    def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs | None) -> None:
        make = functools.partial(weight, rngs, config.param_dtype)
        self.gate = make(config.mlp_width, config.width)
        self.up = make(config.mlp_width, config.width)
        self.down = make(config.width, config.mlp_width)

    def __call__(self, x: jax.Array) -> jax.Array:
        gate, up, down = (w[...].astype(x.dtype) for w in (self.gate, self.up, self.down))
        return gated_mlp(x, gate, up, down)


class Llama(Decoder):
    """The whole model; with `rngs=None` its parameters are shapes and cost no memory."""

    def __init__(self, config: LlamaConfig, *, rngs: nnx.Rngs | None) -> None:
        scaling = config.rope_scaling
        rope = tuple(dataclasses.asdict(scaling).items()) if scaling else ()
        attention = functools.partial(Attention, config, rngs=rngs, rope=rope)
        mlp = functools.partial(GatedMLP, config, rngs=rngs)
        super().__init__(
            config, functools.partial(Layer, config, attention, mlp, rngs=rngs), rngs=rngs
        )


def llama_apply(config: LlamaConfig) -> Callable[..., tuple[jax.Array, Cache]]:
    """A Llama as `apply(params, cache, tokens, position, last=None)`; see `decoder_apply`."""
    return decoder_apply(config)


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
LLAMA3_70B = dataclasses.replace(
    LLAMA3_8B, width=8192, num_layers=80, num_heads=64, mlp_width=28672
)
LLAMA31_8B = dataclasses.replace(
    LLAMA3_8B,
    max_context=131072,
    rope_scaling=RopeScaling(
        factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_context=8192
    ),
)
LLAMA31_405B = dataclasses.replace(
    LLAMA31_8B, width=16384, num_layers=126, num_heads=128, mlp_width=53248
)
LLAMA32_1B = LlamaConfig(
    vocab_size=128256,
    width=2048,
    num_layers=16,
    num_heads=32,
    num_kv_heads=8,
    head_size=64,
    mlp_width=8192,
    max_context=131072,
    rope_theta=500000.0,
    norm_eps=1e-5,
    tied=True,
    rope_scaling=RopeScaling(
        factor=32.0, low_freq_factor=1.0, high_freq_factor=4.0, original_context=8192
    ),
)
LLAMA32_3B = dataclasses.replace(LLAMA32_1B, width=3072, num_layers=28, num_heads=24, head_size=128)
