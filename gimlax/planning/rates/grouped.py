"""Grouped products as a backend really does them, told by the samples of a calibration.

A backend may give each row the weights of its group alone. JAX without anything better makes one
product of all groups: rows are masked once for each group, weights are brought into an order in
which depth and groups are one dim, and every expert sees every row (JAX 0.10, on CPU and on
platforms that it does not know). That is as many times the work as there are groups, so each way
has its own crude law, and the one that misses the samples less is that of the backend. What it
misses depends on how large all weights and all masked rows are, as they are copied, so these sizes
are coordinates beside the four. Units: seconds, bytes, FLOPs.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gimlax.devices.samples import Sample
from gimlax.planning.rates.scattered import Scattered

__all__ = ["GroupedProducts"]


@dataclass(frozen=True, slots=True, eq=False)
class GroupedProducts:
    """The surface over groups, rows, n, k, and whether every group works on every row."""

    surface: Scattered
    every_group: bool

    @classmethod
    def of(cls, samples: Sequence[Sample]) -> "GroupedProducts":
        """Fits samples of one dtype."""
        ways = [cls(Scattered.of(_done(samples, every)), every) for every in (False, True)]
        return min(ways, key=lambda way: way.surface.missed(_done(samples, way.every_group)))

    def seconds(self, dims: tuple[int, ...], dtype: str, num_bytes: float) -> float:
        """Seconds of a grouped product whose traffic is `num_bytes` if rows see their group alone.

        Args:
            dims: groups, rows, n, k.
            dtype: of the operands.
            num_bytes: memory traffic.
        """
        flops, num_bytes = _work(dims, dtype, num_bytes, every_group=self.every_group)
        return self.surface.seconds(_coordinates(dims), flops, num_bytes)


@dataclass(frozen=True, slots=True)
class _Done:
    """A sample, with its coordinates and the work that was done."""

    dims: tuple[int, ...]
    flops: float
    num_bytes: float
    seconds: float


def _done(samples: Sequence[Sample], every_group: bool) -> list[_Done]:
    """The samples with the work that is done if every group works on every row, or not."""
    return [
        _Done(_coordinates(sample.dims), flops, num_bytes, sample.seconds)
        for sample in samples
        for flops, num_bytes in (
            _work(sample.dims, sample.dtype, sample.num_bytes, every_group=every_group),
        )
    ]


def _coordinates(dims: tuple[int, ...]) -> tuple[int, ...]:
    """Groups, rows, n, k, and the elements of all weights and of rows masked for each group."""
    groups, rows, n, k = dims
    return (*dims, groups * n * k, groups * rows * k)


def _work(
    dims: tuple[int, ...], dtype: str, num_bytes: float, *, every_group: bool
) -> tuple[float, float]:
    """FLOPs and bytes of one."""
    groups, rows, n, k = dims
    if not every_group:
        return 2.0 * math.prod(dims[1:]), num_bytes
    itemsize = np.dtype(dtype).itemsize
    # Masked rows and reordered weights are written and read again, for every group.
    again = 2.0 * groups * (rows + n) * k * itemsize
    unread = max(groups - rows, 0) * n * k * itemsize
    return 2.0 * math.prod(dims), num_bytes + unread + again
