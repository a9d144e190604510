"""What a layer of experts does, from its shapes: `gimlax.expert_layer` as a list of operations.

How many rows each expert gets is data, so rows are taken to choose evenly at random: so many
experts have a row, so many tiles are not full, and of several devices that hold different experts
the fullest has more than its share. FLOPs are those of the tiles that every backend can do; a
backend with a kernel for groups is priced by the sizes. Units: FLOPs, bytes.
"""

import functools
import math
from collections.abc import Sequence

import numpy as np
from scipy import special

from gimlax import _jax, experts
from gimlax.graph.operations import ELEMENTWISE, GATHER, REDUCTION, ROUTED, SORT, Operation

__all__ = ["expert_operations", "is_expert_layer"]

_SILU_FLOPS = 5.0  # exp, add, division, and two products


def is_expert_layer(eqn: _jax.JaxprEqn) -> bool:
    """Whether an equation is a layer of experts by name."""
    return eqn.primitive.name == "composite" and eqn.params["name"] == experts.NAME


def expert_operations(
    eqn: _jax.JaxprEqn, resident: Sequence[bool] = (False,) * 6
) -> tuple[Operation, ...]:
    """The operations of a layer, or of what one device does of it.

    Args:
        eqn: whose operands are x [row, width], shares and chosen [row, choice], gate and up
            [expert, inner, width], down [expert, width, inner].
        resident: which of its operands are parameters.
    """
    x, shares, _, gate, _, _ = (_jax.aval_of(v) for v in eqn.invars)
    num_choices = math.prod(shares.shape)
    here, inner, width = gate.shape
    rows = fullest(x.shape[0], min(shares.shape[1], here), num_choices, _num_experts(eqn) // here)
    size = experts.tile_rows(num_choices, here, x.dtype.itemsize)
    share = min(1.0, rows / (here * x.shape[0]))  # of rows that choose one of these experts
    busy, tiles = (here * tiles_of(x.shape[0], share, of) for of in (x.shape[0], size))
    dtype = str(x.dtype)
    itemsize = x.dtype.itemsize

    def product(n: int, k: int, own: bool) -> Operation:
        weights = float(busy * n * k * itemsize)
        return Operation(
            kind=ROUTED,
            dims=(here, max(1, round(rows)), n, k, size, math.ceil(tiles), math.ceil(busy)),
            dtype=dtype,
            flops=2.0 * tiles * size * n * k,
            bytes_read=rows * k * itemsize + weights,
            bytes_written=rows * n * 4.0,
            resident_bytes=weights if own else 0.0,
        )

    def moved(elements: int, each: int) -> Operation:
        num_bytes = float(elements * each)
        return Operation(
            kind=GATHER,
            dims=(num_choices, width),
            dtype=dtype,
            flops=0.0,
            bytes_read=num_bytes,
            bytes_written=num_bytes,
        )

    gated = rows * inner
    return (
        Operation(
            kind=SORT,
            dims=(1, num_choices),
            dtype="int32",
            flops=num_choices * math.log2(max(2, num_choices)),
            bytes_read=num_choices * 4.0,
            bytes_written=num_choices * 4.0,
        ),
        moved(num_choices * width, itemsize),
        product(inner, width, resident[3]),
        product(inner, width, resident[4]),
        Operation(
            kind=ELEMENTWISE,
            dims=(max(1, round(gated)),),
            dtype=dtype,
            flops=_SILU_FLOPS * gated,
            bytes_read=8.0 * gated,
            bytes_written=gated * itemsize,
            transcendentals=gated,
        ),
        product(width, inner, resident[5]),
        moved(num_choices * width, 4),
        Operation(
            kind=REDUCTION,
            dims=(x.shape[0] * width, shares.shape[1]),
            dtype=dtype,
            flops=2.0 * num_choices * width,
            bytes_read=4.0 * num_choices * width,
            bytes_written=float(x.shape[0] * width * itemsize),
        ),
    )


def _num_experts(eqn: _jax.JaxprEqn) -> int:
    """Of the whole layer."""
    attributes = {name: leaves for name, leaves, _ in eqn.params["attributes"]}
    (number,) = attributes["num_experts"]
    return int(number)


@functools.cache
def tiles_of(num_rows: int, share: float, size: int) -> float:
    """Tiles of an expert that each of `num_rows` chooses with probability `share`."""
    before = np.arange(0, num_rows, size)  # a tile more wherever there are more rows than these
    return float((1 - special.bdtr(before, num_rows, share)).sum())


@functools.cache
def fullest(num_rows: int, most_choices: int, num_choices: int, num_devices: int) -> float:
    """Choices that the fullest of some devices gets, of `num_choices` that fall on any of them.

    Args:
        num_rows: of the layer, each of which gives a device `most_choices` at most.
        most_choices: see `num_rows`.
        num_choices: of all rows.
        num_devices: that hold different experts.
    """
    if num_devices < 2:
        return float(num_choices)
    mean = num_choices / num_devices
    most = min(num_choices, math.ceil(mean + 12 * math.sqrt(mean) + 12))
    below = special.bdtr(np.arange(most), num_choices, 1 / num_devices)  # P(at most so many)
    return float(min(num_rows * most_choices, (1 - below**num_devices).sum()))
