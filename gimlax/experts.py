"""Layers of experts (Shazeer et al. 2017, Jiang et al. 2024): each row by the few that it chose.

Three ways to the same numbers. `tiled` runs everywhere: rows are sorted by expert and go through in
tiles of a fixed size, one expert a tile, so the work is that of the chosen experts, and with many
rows at most a quarter more. `ragged` gives the sorted rows to `jax.lax.ragged_dot`, which is one
kernel where a backend has it, and everywhere else a product of all rows with all experts: 8 times
the FLOPs of those that a row of Mixtral chose (JAX 0.10 on CPU and on
platforms that it does not know). `part` is what one device does that holds some of the experts, or
some of the width inside each: a part of the sum.

The composite `gimlax.expert_layer` names the layer, with `tiled` inside; whoever runs a stage may
put another way in its place. Weights are `[expert, out, in]`; dots accumulate in float32.
"""

import functools

import jax
import jax.numpy as jnp

__all__ = ["NAME", "expert_layer", "part", "ragged", "tile_rows", "tiled"]

NAME = "gimlax.expert_layer"
_FEWEST_ROWS = 4  # of an expert, for tiles of several
_LEAST_TILE, _USUAL_ROWS, _MOST_ROWS = 8, 32, 128


def tile_rows(num_rows: int, num_experts: int, itemsize: int) -> int:
    """Rows of a tile, a power of two, for `num_rows` that are shared by all experts.

    Few rows make tiles of one: a decode step then reads the experts that were chosen, and computes
    nothing else. From four rows an expert on a tile has eight to 32 rows, as weights take the time
    and not FLOPs (2 and 4 rows take XLA on CPU longer than 8; one core, November 2026). From 124
    rows an expert on, tiles that are not full add a quarter of the FLOPs at most. Operands of two
    bytes always have eight rows.
    """
    each = num_rows // num_experts
    if each < _FEWEST_ROWS and itemsize > 2:
        return 1
    wanted = max(min(each, _USUAL_ROWS), each // 4, 1)
    return min(max(1 << (wanted.bit_length() - 1), _LEAST_TILE), _MOST_ROWS)


def tiled(
    x: jax.Array,
    shares: jax.Array,
    chosen: jax.Array,
    gate: jax.Array,
    up: jax.Array,
    down: jax.Array,
) -> jax.Array:
    """Gated MLPs, each on the rows that chose it, summed by shares.

    Args:
        x: [row, width].
        shares: float32 [row, choice], the weight of each choice.
        chosen: int32 [row, choice], experts; those that are not there contribute nothing.
        gate, up: [expert, inner, width].
        down: [expert, width, inner].

    Returns:
        [row, width] in the dtype of `x`.
    """
    num_experts, (num_rows, num_choices) = len(gate), chosen.shape
    size = tile_rows(chosen.size, num_experts, x.dtype.itemsize)
    rows, order, sizes = _sorted(x, chosen, num_experts)
    rows = jnp.pad(rows, ((0, size), (0, 0)))  # the last tile may stand over
    starts = jnp.cumsum(sizes) - sizes
    busy = jnp.argsort(sizes == 0, stable=True)  # experts with rows, in order

    def expert(index: jax.Array, made: jax.Array) -> jax.Array:
        number = busy[index]
        weights = [_weights_of(w, number) for w in (gate, up, down)]

        def tile(count: jax.Array, made: jax.Array) -> jax.Array:
            at = starts[number] + count * size
            out = _gated(jax.lax.dynamic_slice_in_dim(rows, at, size), *weights)
            # What it writes beyond its own rows the next expert writes over.
            return jax.lax.dynamic_update_slice_in_dim(made, out, at, axis=0)

        return jax.lax.fori_loop(0, -(-sizes[number] // size), tile, made)

    made = jnp.zeros(rows.shape, jnp.float32)
    made = jax.lax.fori_loop(0, jnp.sum(sizes > 0), expert, made)
    made = made[: num_rows * num_choices]
    # Behind the rows of experts that are here, the last tile may have written what is no result.
    made = jnp.where(jnp.arange(len(made))[:, None] < jnp.sum(sizes), made, 0)
    return _mixed(made, order, shares, x.dtype)


def ragged(
    x: jax.Array,
    shares: jax.Array,
    chosen: jax.Array,
    gate: jax.Array,
    up: jax.Array,
    down: jax.Array,
) -> jax.Array:
    """What `tiled` computes, by `jax.lax.ragged_dot`; every chosen expert has to be there."""
    rows, order, sizes = _sorted(x, chosen, len(gate))

    def product(left: jax.Array, right: jax.Array) -> jax.Array:
        right = jnp.swapaxes(right, 1, 2)
        return jax.lax.ragged_dot(left, right, sizes, preferred_element_type=jnp.float32)

    hidden = jax.nn.silu(product(rows, gate)) * product(rows, up)
    return _mixed(product(hidden.astype(x.dtype), down), order, shares, x.dtype)


def part(
    x: jax.Array,
    shares: jax.Array,
    chosen: jax.Array,
    gate: jax.Array,
    up: jax.Array,
    down: jax.Array,
    *,
    first: jax.Array | int,
) -> jax.Array:
    """What a device adds to the sum that holds experts `first` and on, or a part of their inside.

    Rows of experts that it does not hold are sorted behind all others, and no tile is for them.
    """
    local = chosen - first
    there = (local >= 0) & (local < len(gate))
    return tiled(x, shares, jnp.where(there, local, len(gate)), gate, up, down)


@functools.partial(jax.lax.composite, name=NAME, version=1)
def expert_layer(
    x: jax.Array,
    shares: jax.Array,
    chosen: jax.Array,
    gate: jax.Array,
    up: jax.Array,
    down: jax.Array,
    *,
    num_experts: int,
) -> jax.Array:
    """`tiled`, by a name; `num_experts` stays what it is where a device holds some of them."""
    del num_experts
    return tiled(x, shares, chosen, gate, up, down)


def _sorted(
    x: jax.Array, chosen: jax.Array, num_experts: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Rows by expert [row * choice, width], the choice of each, and how many each expert has."""
    flat = chosen.reshape(-1)
    order = jnp.argsort(flat, stable=True)
    sizes = jnp.sum(flat[:, None] == jnp.arange(num_experts), axis=0, dtype=jnp.int32)
    return jnp.take(x, order // chosen.shape[1], axis=0), order, sizes


def _weights_of(weights: jax.Array, number: jax.Array) -> jax.Array:
    """Those of one expert.

    XLA on CPU slices bfloat16 as float32, and would bring all experts to that before the loop, at
    every call; behind a barrier it cannot (3 ms instead of 103 for one token, 8 experts of 1,024 x
    2,048 on one core, November 2026).
    """
    weights, number = jax.lax.optimization_barrier((weights, number))
    return jax.lax.dynamic_index_in_dim(weights, number, 0, keepdims=False)


def _gated(x: jax.Array, gate: jax.Array, up: jax.Array, down: jax.Array) -> jax.Array:
    """SwiGLU (Shazeer 2020) of one expert in float32: `x [row, width]`."""
    hidden = jax.nn.silu(_dot(x, gate)) * _dot(x, up)
    return _dot(hidden.astype(x.dtype), down)


def _dot(x: jax.Array, weight: jax.Array) -> jax.Array:
    last = (((1,), (1,)), ((), ()))
    return jax.lax.dot_general(x, weight, last, preferred_element_type=jnp.float32)


def _mixed(made: jax.Array, order: jax.Array, shares: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Results of sorted rows back at their choices, and summed by shares."""
    made = jnp.take(made, jnp.argsort(order), axis=0).reshape(*shares.shape, -1)
    return jnp.sum(made * shares[..., None], axis=1).astype(dtype)
