"""Mamba-2 (Dao and Gu 2024) in Flax NNX: one decay for each head, which makes products of a scan.

Every head keeps a matrix [head size, state size] and does, at every token,
h = exp(step · a) h + step · x bᵀ and y = h c + skip · x; heads of a group share b and c. A single
token is done as written. Many are done in chunks by the state-space duality of the paper (section
6): within a chunk y is a masked product of all tokens with each other, as in attention, and what a
chunk adds to the state is another product; an associative scan over chunks, not tokens, gives the
state that each begins with.
"""

import functools
import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx

from gimlax.models.decoder import weight
from gimlax.models.state_space import (
    LayerState,
    Stack,
    StateSpaceConfig,
    carried_over,
    causal_conv,
    one_after_the_other,
    projected,
    step_bias,
    valid_rows,
    vector,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mamba2Config(StateSpaceConfig):
    """Sizes of a Mamba-2.

    `inner_width` is divided into heads of `head_size`; `num_groups` groups of heads have their own
    b and c, and a norm of their own. Steps are clipped to `step_limits`. `chunk` tokens are done
    at once, which changes no result: with 512 tokens of 24 heads, one core of an EPYC 9004 takes
    27 ms with 32, 9 ms with 64, 18 ms with 256 (November 2026).
    """

    head_size: int = 64
    num_groups: int = 1
    step_limits: tuple[float, float] = (0.0, math.inf)
    chunk: int = 64

    def build(self, *, rngs: nnx.Rngs | None) -> Stack:
        return Stack(self, Mixer, rngs=rngs)

    def own_faults(self) -> list[str]:
        faults = []
        if self.head_size > 0 and self.inner_width % self.head_size:
            faults.append(
                f"inner_width is {self.inner_width}, no multiple of head_size {self.head_size}; "
                "give heads that fill it"
            )
        elif self.head_size > 0 and self.num_groups > 0 and self.num_heads % self.num_groups:
            faults.append(
                f"num_groups is {self.num_groups}, which does not divide the {self.num_heads} "
                "heads; each group serves the same number of heads"
            )
        low, high = self.step_limits
        if not 0 <= low < high:
            faults.append(f"step_limits are {low} and {high}; give two that rise from 0 on")
        return faults

    @property
    def num_heads(self) -> int:
        return self.inner_width // self.head_size

    @property
    def conv_channels(self) -> int:
        return self.inner_width + 2 * self.num_groups * self.state_size

    @property
    def state_shape(self) -> tuple[int, ...]:
        return self.num_heads, self.head_size, self.state_size


def published(width: int, num_layers: int) -> Mamba2Config:
    """Sizes as the models of the paper share them; the vocabulary is GPT-NeoX's, padded to 16."""
    return Mamba2Config(
        vocab_size=50288, width=width, num_layers=num_layers, inner_width=2 * width, state_size=128
    )


MAMBA2_130M = published(768, 24)
MAMBA2_370M = published(1024, 48)
MAMBA2_780M = published(1536, 48)
MAMBA2_1_3B = published(2048, 48)
MAMBA2_2_7B = published(2560, 64)
CODESTRAL_MAMBA_7B = Mamba2Config(
    vocab_size=32768,
    width=4096,
    num_layers=64,
    inner_width=8192,
    state_size=128,
    num_groups=8,
    tied=False,
)


@functools.partial(jax.lax.composite, name="gimlax.state_space_dual", version=1)
def state_space_dual(
    x: jax.Array,
    step: jax.Array,
    decay: jax.Array,
    gate_in: jax.Array,
    gate_out: jax.Array,
    skip: jax.Array,
    state: jax.Array,
    *,
    chunk: int,
) -> tuple[jax.Array, jax.Array]:
    """The recurrence over some tokens, in float32.

    Args:
      x: [batch, token, head, size].
      step: float32 [batch, token, head]; a token of step 0 leaves the state as it is.
      decay: float32 [head], negative: a of the paper.
      gate_in: [batch, token, group, state]: b of the paper.
      gate_out: [batch, token, group, state]: c of the paper.
      skip: [head].
      state: float32 [batch, head, size, state], before the first token.
      chunk: tokens that are done at once.

    Returns:
      float32 [batch, token, head, size], and the state behind the last token.
    """
    x, gate_in, gate_out, skip = (rows.astype(jnp.float32) for rows in (x, gate_in, gate_out, skip))
    batch, length, heads, size = x.shape
    groups, states = gate_in.shape[2:]
    grouped = (groups, heads // groups)  # the heads of a group side by side
    over = length if length <= chunk else chunk
    split = functools.partial(in_chunks, chunk=over)  # [batch, chunk, token, ...]
    step = split(step.reshape(batch, length, *grouped))
    drive = split(x.reshape(batch, length, *grouped, size)) * step[..., None]
    gate_in, gate_out = split(gate_in), split(gate_out)

    summed = jnp.cumsum(step * decay.reshape(grouped), axis=2)  # of the logarithm of what is kept
    by_head = summed.transpose(0, 1, 3, 4, 2)  # [batch, chunk, group, head, token]
    earlier = jnp.tril(jnp.ones((over, over), bool))
    kept = jnp.exp(jnp.where(earlier, by_head[..., :, None] - by_head[..., None, :], -jnp.inf))
    scores = jnp.einsum("bntgs,bnugs->bngtu", gate_out, gate_in)
    within = jnp.einsum("bnghtu,bnughp->bntghp", scores[:, :, :, None] * kept, drive)

    until_end = jnp.exp(summed[:, :, -1:] - summed)[..., None]
    added = jnp.einsum("bnughp,bnugs->bnghps", drive * until_end, gate_in)
    whole = jnp.exp(summed[:, :, -1])[..., None, None]  # [batch, chunk, group, head, 1, 1]
    whole, added = jax.lax.associative_scan(one_after_the_other, (whole, added), axis=1)
    state = state.reshape(batch, 1, *grouped, size, states)
    after = whole * state + added
    before = jnp.concatenate([state, after[:, :-1]], axis=1)
    across = jnp.einsum("bntgs,bnghps->bntghp", gate_out, before) * jnp.exp(summed)[..., None]

    mixed = (within + across).reshape(batch, -1, heads, size)[:, :length]
    return mixed + skip[:, None] * x, after[:, -1].reshape(batch, heads, size, states)


def in_chunks(rows: jax.Array, chunk: int) -> jax.Array:
    """`[batch, token, ...]` as `[batch, chunk, token, ...]`, the last one padded with zeros."""
    padded = jnp.pad(rows, ((0, 0), (0, -rows.shape[1] % chunk), *[(0, 0)] * (rows.ndim - 2)))
    return padded.reshape(rows.shape[0], -1, chunk, *rows.shape[2:])


@functools.partial(jax.lax.composite, name="gimlax.gated_rms_norm", version=1)
def gated_rms_norm(
    x: jax.Array, gate: jax.Array, scale: jax.Array, *, num_groups: int, eps: float
) -> jax.Array:
    """`x [..., width]` times SiLU of `gate`, each group of the width normed by itself: float32."""
    gated = x.astype(jnp.float32) * jax.nn.silu(gate.astype(jnp.float32))
    grouped = gated.reshape(*x.shape[:-1], num_groups, -1)
    mean_square = jnp.mean(grouped * grouped, axis=-1, keepdims=True)
    normed = grouped * jax.lax.rsqrt(mean_square + eps)
    return normed.reshape(x.shape) * scale.astype(jnp.float32)


class Mixer(nnx.Module):
    """Projects, convolves and scans, and norms the gated result."""

    def __init__(self, config: Mamba2Config, *, rngs: nnx.Rngs | None) -> None:
        self.config = config
        inner, channels, heads = config.inner_width, config.conv_channels, config.num_heads
        matrix = functools.partial(weight, rngs, config.param_dtype)
        fill = functools.partial(vector, rngs, config.param_dtype)
        self.input = matrix(inner + channels + heads, config.width)
        self.conv = matrix(channels, 1, config.conv_size)
        self.step_bias = step_bias(rngs, config.param_dtype, heads)
        self.decay_log = fill((heads,), lambda: jnp.log(jnp.linspace(1.0, 16.0, heads)))
        self.skip = fill((heads,), lambda: jnp.ones(()))
        self.scale = fill((inner,), lambda: jnp.ones(()))
        self.output = matrix(config.width, inner)
        if config.conv_bias:
            self.conv_bias = fill((channels,), lambda: jnp.zeros(()))
        if config.bias:
            self.input_bias = fill((inner + channels + heads,), lambda: jnp.zeros(()))
            self.output_bias = fill((config.width,), lambda: jnp.zeros(()))

    def __call__(
        self, x: jax.Array, state: LayerState, position: jax.Array, last: jax.Array | None
    ) -> tuple[jax.Array, LayerState]:
        config, dtype, rows = self.config, x.dtype, x.shape[:2]
        window, memory = (carried_over(state[name], position) for name in ("conv", "ssm"))
        wide = projected(x, self.input, self.input_bias if config.bias else None)
        edges = config.inner_width, config.inner_width + config.conv_channels
        gate, both, step = jnp.split(wide, edges, axis=-1)
        conv_bias = self.conv_bias[...] if config.conv_bias else None
        both, window = causal_conv(window, both.astype(dtype), self.conv[...], conv_bias, last)
        edges = config.inner_width, config.inner_width + config.num_groups * config.state_size
        x, gate_in, gate_out = jnp.split(both, edges, axis=-1)

        step = jax.nn.softplus(step + self.step_bias[...].astype(jnp.float32))
        step = jnp.clip(step, *config.step_limits)
        if last is not None:
            step = jnp.where(valid_rows(last, rows[1])[..., None], step, 0)
        mixed, memory = state_space_dual(
            x.reshape(*rows, config.num_heads, config.head_size),
            step,
            -jnp.exp(self.decay_log[...].astype(jnp.float32)),
            gate_in.reshape(*rows, config.num_groups, config.state_size),
            gate_out.reshape(*rows, config.num_groups, config.state_size),
            self.skip[...],
            memory.astype(jnp.float32),
            chunk=config.chunk,
        )
        normed = gated_rms_norm(
            mixed.reshape(*rows, config.inner_width),
            gate,
            self.scale[...],
            num_groups=config.num_groups,
            eps=config.norm_eps,
        ).astype(dtype)
        out = projected(normed, self.output, self.output_bias if config.bias else None)
        return out, {"conv": window, "ssm": memory.astype(state["ssm"].dtype)}
