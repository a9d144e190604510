"""Mamba (Gu and Dao 2023) in Flax NNX: a recurrence whose step and gates depend on the input.

For each of `inner_width` channels it keeps `state_size` numbers h and does, at every token,
h = exp(step · a) h + step · b x and y = c · h + skip · x, where step, b and c are made from the
token. A single token is done as written. Many are done in chunks, one after the other, each by an
associative scan, which has all states of its chunk in memory at once.
"""

import functools
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
class MambaConfig(StateSpaceConfig):
    """Sizes of a Mamba.

    `step_rank` is the width that steps are projected through. `chunk` tokens are scanned at once:
    more ask for more memory and give a device more to do in parallel. With 512 tokens of 1,536
    channels, one core of an EPYC 9004 takes 12 ms with 1, 50 ms with 16, 95 ms with 64 (November
    2026).
    """

    step_rank: int
    chunk: int = 16

    def build(self, *, rngs: nnx.Rngs | None) -> Stack:
        return Stack(self, Mixer, rngs=rngs)

    def own_faults(self) -> list[str]:
        return []

    @property
    def conv_channels(self) -> int:
        return self.inner_width

    @property
    def state_shape(self) -> tuple[int, ...]:
        return self.inner_width, self.state_size


def published(width: int, num_layers: int) -> MambaConfig:
    """Sizes as the models of the paper share them; the vocabulary is GPT-NeoX's, padded to 8."""
    return MambaConfig(
        vocab_size=50280,
        width=width,
        num_layers=num_layers,
        inner_width=2 * width,
        state_size=16,
        step_rank=width // 16,
    )


MAMBA_130M = published(768, 24)
MAMBA_370M = published(1024, 48)
MAMBA_790M = published(1536, 48)
MAMBA_1_4B = published(2048, 48)
MAMBA_2_8B = published(2560, 64)


@functools.partial(jax.lax.composite, name="gimlax.selective_scan", version=1)
def selective_scan(
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
      x: [batch, token, channel].
      step: float32 [batch, token, channel]; a token of step 0 leaves the state as it is.
      decay: float32 [channel, state], negative: a of the paper.
      gate_in: float32 [batch, token, state]: b of the paper.
      gate_out: float32 [batch, token, state]: c of the paper.
      skip: [channel].
      state: float32 [batch, channel, state], before the first token.
      chunk: tokens that are scanned at once.

    Returns:
      float32 [batch, token, channel], and the state behind the last token.
    """
    length = x.shape[1]
    wide = x.astype(jnp.float32)

    def scan_chunk(state: jax.Array, rows: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        wide, step, gate_in, gate_out = rows
        kept = jnp.exp(step[..., None] * decay)  # [batch, token, channel, state]
        added = (step * wide)[..., None] * gate_in[:, :, None]
        kept, added = jax.lax.associative_scan(one_after_the_other, (kept, added), axis=1)
        states = kept * state[:, None] + added
        return states[:, -1], jnp.einsum("btcs,bts->btc", states, gate_out)

    rows = (wide, step, gate_in, gate_out)
    if length <= chunk:
        state, mixed = scan_chunk(state, rows)
    else:
        state, chunks = jax.lax.scan(scan_chunk, state, tuple(in_chunks(r, chunk) for r in rows))
        mixed = chunks.swapaxes(0, 1).reshape(x.shape[0], -1, x.shape[2])[:, :length]
    return mixed + skip.astype(jnp.float32) * wide, state


def in_chunks(rows: jax.Array, chunk: int) -> jax.Array:
    """`[batch, token, ...]` as `[chunk, batch, token, ...]`, the last one padded with zeros."""
    padded = jnp.pad(rows, ((0, 0), (0, -rows.shape[1] % chunk), *[(0, 0)] * (rows.ndim - 2)))
    return padded.reshape(rows.shape[0], -1, chunk, *rows.shape[2:]).swapaxes(0, 1)


class Mixer(nnx.Module):
    """Projects, convolves and scans, and gates the result."""

    def __init__(self, config: MambaConfig, *, rngs: nnx.Rngs | None) -> None:
        self.config = config
        inner, states, rank = config.inner_width, config.state_size, config.step_rank
        matrix = functools.partial(weight, rngs, config.param_dtype)
        fill = functools.partial(vector, rngs, config.param_dtype)
        self.input = matrix(2 * inner, config.width)
        self.conv = matrix(inner, 1, config.conv_size)
        self.select = matrix(rank + 2 * states, inner)
        self.step = matrix(inner, rank)
        self.step_bias = step_bias(rngs, config.param_dtype, inner)
        self.decay_log = fill((inner, states), lambda: jnp.log(jnp.arange(1.0, states + 1)))
        self.skip = fill((inner,), lambda: jnp.ones(()))
        self.output = matrix(config.width, inner)
        if config.conv_bias:
            self.conv_bias = fill((inner,), lambda: jnp.zeros(()))
        if config.bias:
            self.input_bias = fill((2 * inner,), lambda: jnp.zeros(()))
            self.output_bias = fill((config.width,), lambda: jnp.zeros(()))

    def __call__(
        self, x: jax.Array, state: LayerState, position: jax.Array, last: jax.Array | None
    ) -> tuple[jax.Array, LayerState]:
        config, dtype = self.config, x.dtype
        window, memory = (carried_over(state[name], position) for name in ("conv", "ssm"))
        both = projected(x, self.input, self.input_bias if config.bias else None).astype(dtype)
        x, gate = jnp.split(both, 2, axis=-1)
        conv_bias = self.conv_bias[...] if config.conv_bias else None
        x, window = causal_conv(window, x, self.conv[...], conv_bias, last)

        selected = projected(x, self.select, None)
        edges = config.step_rank, config.step_rank + config.state_size
        low, gate_in, gate_out = jnp.split(selected, edges, axis=-1)
        step = jax.nn.softplus(projected(low.astype(dtype), self.step, self.step_bias))
        if last is not None:
            step = jnp.where(valid_rows(last, x.shape[1])[..., None], step, 0)
        decay = -jnp.exp(self.decay_log[...].astype(jnp.float32))
        mixed, memory = selective_scan(
            x,
            step,
            decay,
            gate_in,
            gate_out,
            self.skip[...],
            memory.astype(jnp.float32),
            chunk=config.chunk,
        )
        gated = (mixed * jax.nn.silu(gate.astype(jnp.float32))).astype(dtype)
        out = projected(gated, self.output, self.output_bias if config.bias else None)
        return out, {"conv": window, "ssm": memory.astype(state["ssm"].dtype)}
