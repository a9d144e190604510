"""What Mamba and Mamba-2 have in common: a stack of layers, its state, a causal convolution.

A layer is one mixer on a normed copy of the residual stream, so the models differ in the mixer
alone. Prefill and decode are the same function at two shapes. The state of a layer does not grow
with the context: `conv` holds the last few inputs of a convolution, `ssm` what the recurrence knows
of everything before. Both come in and go out as a list with one dict per layer, so a program that
is cut between layers keeps each layer's state where that layer runs.

Unlike a cache of keys and values this state cannot be written twice: a pass that is applied again
changes it. Padding behind a prompt would change it too, so `last` says where each sequence ends and
tokens behind it leave the state as it is. At `position` 0 a sequence begins, and what the state
held before counts for nothing.
"""

import abc
import dataclasses
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import jax
import jax.numpy as jnp
from flax import nnx

from gimlax.errors import SpecError
from gimlax.models.composites import project, rms_norm
from gimlax.models.decoder import DType, Params, weight

LayerState = dict[str, Any]  # 'conv': [batch, row, channel], 'ssm': [batch, ...]; arrays or shapes
State = list[LayerState]

SHORTEST_STEP, LONGEST_STEP = 1e-3, 1e-1  # of the recurrence at the start (Gu and Dao 2023, 3.6)


@dataclass(frozen=True, slots=True, kw_only=True)
class StateSpaceConfig(abc.ABC):
    """Sizes that both models have, and the dtype of each kind of number.

    `inner_width` is the width inside a mixer, `state_size` the numbers that the recurrence keeps of
    each of its channels, `conv_size` the inputs that the convolution sees. The residual stream and
    the recurrent state stay in float32 when everything else is narrower, because errors in them add
    up. Raises `SpecError` with everything that is wrong.
    """

    vocab_size: int
    width: int
    num_layers: int
    inner_width: int
    state_size: int
    conv_size: int = 4
    norm_eps: float = 1e-5
    tied: bool = True
    bias: bool = False  # of the projections into and out of a mixer
    conv_bias: bool = True
    param_dtype: DType = "float32"
    compute_dtype: DType = "float32"
    residual_dtype: DType = "float32"
    state_dtype: DType = "float32"

    def __post_init__(self) -> None:
        faults = [
            f"{field.name} is {getattr(self, field.name)}; give a positive number"
            for field in dataclasses.fields(self)
            if field.type in (int, float) and not 0 < getattr(self, field.name) < math.inf
        ]
        if self.conv_size == 1:
            faults.append("conv_size is 1; a convolution over one input keeps no state, give 2 on")
        faults += self.own_faults()
        if faults:
            raise SpecError(f"{type(self).__name__}: {'; '.join(faults)}")

    @abc.abstractmethod
    def build(self, *, rngs: nnx.Rngs | None) -> "Stack":
        """The model of these sizes; without `rngs` its parameters are shapes and take no memory."""

    @abc.abstractmethod
    def own_faults(self) -> list[str]:
        """What is wrong with the sizes that only this model has."""

    @property
    @abc.abstractmethod
    def conv_channels(self) -> int:
        """Channels that pass through the convolution."""

    @property
    @abc.abstractmethod
    def state_shape(self) -> tuple[int, ...]:
        """Shape of the recurrent state of one sequence in one layer."""

    def with_dtype(self, dtype: DType) -> Self:
        """The same model with parameters and computation in `dtype`."""
        return dataclasses.replace(self, param_dtype=dtype, compute_dtype=dtype)


def valid_rows(last: jax.Array, length: int) -> jax.Array:
    """Which of `length` tokens are at or before `last` ([] or [batch]): [1 or batch, token]."""
    return jnp.arange(length) <= jnp.reshape(last, (-1, 1))


def carried_over(state: jax.Array, position: jax.Array) -> jax.Array:
    """`state [batch, ...]`, and zeros for sequences that begin: `position` ([] or [batch]) 0."""
    begins = jnp.reshape(position == 0, (-1, *[1] * (state.ndim - 1)))
    return jnp.where(begins, jnp.zeros((), state.dtype), state)


@functools.partial(jax.lax.composite, name="gimlax.causal_conv", version=1)
def causal_conv(
    window: jax.Array,
    x: jax.Array,
    taps: jax.Array,
    bias: jax.Array | None,
    last: jax.Array | None,
) -> tuple[jax.Array, jax.Array]:
    """SiLU of a convolution over time, each channel by itself, in float32.

    Args:
      window: [batch, size - 1, channel], the inputs before `x`.
      x: [batch, token, channel].
      taps: [channel, 1, size], the newest input last.
      bias: [channel], if there is one.
      last: int32 [] or [batch], the last token that counts; all when left out.

    Returns:
      [batch, token, channel] like `x`, and the window behind the last token that counts.
    """
    length, kept = x.shape[1], window.shape[1]
    rows = jnp.concatenate([window, x], axis=1)
    mixed = sum(
        rows[:, tap : tap + length].astype(jnp.float32) * taps[:, 0, tap].astype(jnp.float32)
        for tap in range(kept + 1)
    )
    if bias is not None:
        mixed = mixed + bias.astype(jnp.float32)
    if last is None:
        behind = rows[:, length:]
    elif last.ndim == 0:
        behind = jax.lax.dynamic_slice_in_dim(rows, last + 1, kept, axis=1)
    else:
        cut = functools.partial(jax.lax.dynamic_slice_in_dim, slice_size=kept, axis=0)
        behind = jax.vmap(cut)(rows, last + 1)
    return jax.nn.silu(mixed).astype(x.dtype), behind


def one_after_the_other(
    first: tuple[jax.Array, jax.Array], second: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    """h -> kept h + added, done twice, is once again of that form."""
    return first[0] * second[0], second[0] * first[1] + second[1]


def projected(
    x: jax.Array, matrix: nnx.Param[jax.Array], bias: nnx.Param[jax.Array] | None
) -> jax.Array:
    """`x` times a matrix of parameters in the dtype of `x`, and a bias: float32."""
    product = project(x, matrix[...].astype(x.dtype))
    return product if bias is None else product + bias[...].astype(jnp.float32)


def vector(
    rngs: nnx.Rngs | None, dtype: DType, shape: tuple[int, ...], fill: Callable[[], jax.Array]
) -> nnx.Param[Any]:
    """A parameter that starts as `fill` says, or a shape only, without `rngs`."""
    if rngs is None:
        return nnx.Param(jax.ShapeDtypeStruct(shape, dtype))
    return nnx.Param(jnp.broadcast_to(fill(), shape).astype(dtype))


def step_bias(rngs: nnx.Rngs | None, dtype: DType, size: int) -> nnx.Param[Any]:
    """A bias that makes steps of `SHORTEST_STEP` to `LONGEST_STEP`, spread evenly in logarithm."""

    def fill() -> jax.Array:
        assert rngs is not None
        low, high = math.log(SHORTEST_STEP), math.log(LONGEST_STEP)
        step = jnp.exp(jax.random.uniform(rngs.params(), (size,), minval=low, maxval=high))
        return step + jnp.log(-jnp.expm1(-step))  # the inverse of softplus

    return vector(rngs, dtype, (size,), fill)


class RMSNorm(nnx.Module):
    """A learned scale, all ones at the start; the result is in the dtype of computation."""

    def __init__(self, config: StateSpaceConfig, *, rngs: nnx.Rngs | None) -> None:
        self.config = config
        self.scale = vector(rngs, config.param_dtype, (config.width,), lambda: jnp.ones(()))

    def __call__(self, x: jax.Array) -> jax.Array:
        normed = rms_norm(x, self.scale[...], eps=self.config.norm_eps)
        return normed.astype(self.config.compute_dtype)


class Layer(nnx.Module):
    """A mixer on a normed copy of the residual stream."""

    def __init__(
        self, config: StateSpaceConfig, mixer: Callable[..., Any], *, rngs: nnx.Rngs | None
    ) -> None:
        self.norm = RMSNorm(config, rngs=rngs)
        self.mixer = mixer(config, rngs=rngs)

    def __call__(
        self, x: jax.Array, state: LayerState, position: jax.Array, last: jax.Array | None
    ) -> tuple[jax.Array, LayerState]:
        mixed, state = self.mixer(self.norm(x), state, position, last)
        return x + mixed.astype(x.dtype), state


class Stack(nnx.Module):
    """Embedding, layers and head."""

    def __init__(
        self, config: StateSpaceConfig, mixer: Callable[..., Any], *, rngs: nnx.Rngs | None
    ) -> None:
        self.config = config
        self.embed = weight(rngs, config.param_dtype, config.vocab_size, config.width)
        self.layers = nnx.List([Layer(config, mixer, rngs=rngs) for _ in range(config.num_layers)])
        self.norm = RMSNorm(config, rngs=rngs)
        if not config.tied:
            self.head = weight(rngs, config.param_dtype, config.vocab_size, config.width)

    def __call__(
        self,
        state: State,
        tokens: jax.Array,
        position: jax.Array,
        last: jax.Array | None = None,
    ) -> tuple[jax.Array, State]:
        """Runs `tokens`; see `state_space_apply` for shapes."""
        with jax.named_scope("embed"):
            x = jnp.take(self.embed[...], tokens, axis=0).astype(self.config.residual_dtype)
        updated = []
        for index, layer in enumerate(self.layers):
            with jax.named_scope(f"layers.{index}"):
                x, layer_state = layer(x, state[index], position, last)
            updated.append(layer_state)
        with jax.named_scope("head"):
            if last is not None:
                rows = jnp.broadcast_to(last, tokens.shape[:1])
                x = jnp.take_along_axis(x, rows[:, None, None], axis=1)
            head = self.embed if self.config.tied else self.head
            normed = self.norm(x)
            logits = project(normed, head[...].astype(normed.dtype))
        return logits, updated


def state_space_apply(
    config: StateSpaceConfig,
) -> Callable[..., tuple[jax.Array, State]]:
    """The model as `apply(params, state, tokens, position, last=None) -> (logits, state)`.

    Its arguments:
      params: as `abstract_params` describes them.
      state: as `abstract_state` describes it; what comes back replaces it (`carried={1: 1}` when
        traced), and must not be used again.
      tokens: int32 [batch, length].
      position: int32 [] or [batch], of the first of `tokens`; a sequence begins at 0, and any other
        number goes on from `state`.
      last: row of the only wanted logits, int32 [] or [batch], behind which tokens are padding;
        all rows are wanted and count when left out.

    It returns float32 logits [batch, length or 1, vocab] and the state.
    """
    graphdef = nnx.graphdef(config.build(rngs=None))

    def state_space(
        params: Params,
        state: State,
        tokens: jax.Array,
        position: jax.Array,
        last: jax.Array | None = None,
    ) -> tuple[jax.Array, State]:
        return nnx.merge(graphdef, params)(state, tokens, position, last)

    return state_space


def abstract_state(config: StateSpaceConfig, batch: int) -> State:
    """Shapes of the state of `batch` sequences, however long they are."""
    window = (batch, config.conv_size - 1, config.conv_channels)
    layer = {
        "conv": jax.ShapeDtypeStruct(window, jnp.dtype(config.compute_dtype)),
        "ssm": jax.ShapeDtypeStruct((batch, *config.state_shape), jnp.dtype(config.state_dtype)),
    }
    return [dict(layer) for _ in range(config.num_layers)]


def init_state(config: StateSpaceConfig, batch: int) -> State:
    """The state of sequences that have not begun; see `abstract_state`."""
    return jax.tree.map(
        lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), abstract_state(config, batch)
    )
