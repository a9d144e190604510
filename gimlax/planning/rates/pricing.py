"""The seconds of many segments at once: each distinct operation is priced once for each mesh.

The layers of a model repeat, so a chain of hundreds of segments has a few dozen operations; how
often each segment does each of them is a matrix, and a price is a product with it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from gimlax.devices import DeviceKind
from gimlax.graph.operations import Operation
from gimlax.planning.rates.roofline import Roofline
from gimlax.planning.rates.seam import Rates

__all__ = ["Priced", "price"]

Array = NDArray[np.float64]


class Works(Protocol):
    """A segment, or a device's share of one."""

    @property
    def operations(self) -> Sequence[Operation]:
        """What it does."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Priced:
    """Seconds of one call of each segment on one device. [segment] each

    Attributes:
        seconds: all of it.
        memory_bound_s: how much of it goes to operations that wait for memory, by the roofline.
        compute_s, memory_s: if only the FLOPs mattered, or only the bytes; operation by operation
            never more than its seconds.
    """

    seconds: Array
    memory_bound_s: Array
    compute_s: Array
    memory_s: Array


def price(
    segments: Sequence[Works], rates: Sequence[Rates], kinds: Sequence[DeviceKind]
) -> list[Priced]:
    """Prices of segments on each of several devices.

    Args:
        segments: of one or more phases.
        rates: of each device.
        kinds: cards of the same devices, which say what binds.

    Raises:
        SpecError: there is no figure for a dtype.
    """
    index: dict[Operation, int] = {}
    rows, columns, counts = [], [], []
    for row, segment in enumerate(segments):
        for operation in segment.operations:
            rows.append(row)
            columns.append(index.setdefault(operation, len(index)))
            counts.append(operation.count)
    shape = (len(segments), len(index))
    times = sparse.coo_array((counts, (rows, columns)), shape=shape).tocsr()
    return [_price(list(index), times, rate, kind) for rate, kind in zip(rates, kinds, strict=True)]


def _price(
    operations: Sequence[Operation], times: sparse.csr_array, rates: Rates, kind: DeviceKind
) -> Priced:
    card = Roofline(kind)
    seconds = np.array([rates.seconds(op) for op in operations])
    compute_s = np.array([card.compute_s(op) for op in operations])
    memory_s = np.array([card.memory_s(op) for op in operations])
    waits = memory_s > compute_s
    return Priced(
        seconds=times @ seconds,
        memory_bound_s=times @ np.where(waits, seconds, 0.0),
        compute_s=times @ np.minimum(compute_s, seconds),
        memory_s=times @ np.minimum(memory_s, seconds),
    )
