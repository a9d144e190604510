"""Mixtral 8x7B and 8x22B (Jiang et al. 2024) in Flax NNX.

A decoder (`gimlax.models.decoder`) with a layer of experts behind each attention: a router gives
each token to the few experts that it scores highest, and their outputs are summed by a softmax over
these scores. Which way the experts are computed is not decided here: see `gimlax.experts`.
"""

import dataclasses
import functools
from dataclasses import dataclass

import jax
from flax import nnx

from gimlax.experts import expert_layer
from gimlax.models.composites import project
from gimlax.models.decoder import Attention, Decoder, DecoderConfig, Layer, weight


@dataclass(frozen=True, slots=True, kw_only=True)
class MixtralConfig(DecoderConfig):
    """Sizes of a Mixtral; see `DecoderConfig`.

    Attributes:
        num_experts: of each layer.
        num_chosen: experts of each token.
        sliding_window: how many tokens up to its own a token attends to; None for all.
    """

    num_experts: int
    num_chosen: int
    sliding_window: int | None = None

    def faults(self) -> list[str]:
        """Everything that is wrong, a sentence each."""
        found = DecoderConfig.faults(self)
        if self.num_chosen > self.num_experts:
            found.append(
                f"num_chosen is {self.num_chosen}, and there are num_experts {self.num_experts}"
            )
        if self.sliding_window is not None and self.sliding_window < 1:
            found.append(f"sliding_window is {self.sliding_window}; give a positive number or None")
        return found

    def build(self, *, rngs: nnx.Rngs | None) -> "Mixtral":
        """The model of these sizes; without `rngs` its parameters are shapes."""
        return Mixtral(self, rngs=rngs)


class Experts(nnx.Module):
    """A router and the experts between which it chooses."""

    def __init__(self, config: MixtralConfig, *, rngs: nnx.Rngs | None) -> None:
        self.num_chosen = config.num_chosen
        make = functools.partial(weight, rngs, config.param_dtype)
        self.router = make(config.num_experts, config.width)
        self.gate = make(config.num_experts, config.mlp_width, config.width)
        self.up = make(config.num_experts, config.mlp_width, config.width)
        self.down = make(config.num_experts, config.width, config.mlp_width)

    def __call__(self, x: jax.Array) -> jax.Array:
        rows = x.reshape(-1, x.shape[-1])
        scores = project(rows, self.router[...].astype(x.dtype))  # [row, expert]
        best, chosen = jax.lax.top_k(scores, self.num_chosen)
        gate, up, down = (w[...].astype(x.dtype) for w in (self.gate, self.up, self.down))
        shares = jax.nn.softmax(best, axis=-1)
        num_experts = gate.shape[0]
        mixed = expert_layer(rows, shares, chosen, gate, up, down, num_experts=num_experts)
        return mixed.reshape(x.shape)


class Mixtral(Decoder):
    """The whole model; with `rngs=None` its parameters are shapes and cost no memory."""

    def __init__(self, config: MixtralConfig, *, rngs: nnx.Rngs | None) -> None:
        attention = functools.partial(Attention, config, rngs=rngs, window=config.sliding_window)
        experts = functools.partial(Experts, config, rngs=rngs)
        super().__init__(
            config, functools.partial(Layer, config, attention, experts, rngs=rngs), rngs=rngs
        )


MIXTRAL_8X7B = MixtralConfig(
    vocab_size=32000,
    width=4096,
    num_layers=32,
    num_heads=32,
    num_kv_heads=8,
    head_size=128,
    mlp_width=14336,
    max_context=32768,
    rope_theta=1e6,
    norm_eps=1e-5,
    num_experts=8,
    num_chosen=2,
)
MIXTRAL_8X22B = dataclasses.replace(
    MIXTRAL_8X7B, width=6144, num_layers=56, num_heads=48, mlp_width=16384, max_context=65536
)
