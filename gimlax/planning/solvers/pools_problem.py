"""Pools of equal devices as plain arrays: what a mesh of each shape takes for each run of segments.

Chosen over one mesh per device, whose number would decide how long a search takes.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PoolsProblem:
    """A chain of n segments for pools of devices, from which meshes of given shapes are made.

    Attributes:
        busy_s: seconds per request for which a mesh of a shape is busy that holds segments
            `[first, stop)`: computing, or receiving or sending where that takes longer.
            [option, first, stop], inf where it does not fit or the cut is not legal
        option_group: the pool of each shape. [option]
        option_devices: devices of a mesh of each shape. [option]; of one pool each size divides the
            next, and those of its hosts
        num_devices: in each pool. [group]
        devices_per_host: in each pool; a mesh has devices of one host. [group]
    """

    busy_s: Array
    option_group: Ints
    option_devices: Ints
    num_devices: Ints
    devices_per_host: Ints

    @property
    def num_segments(self) -> int:
        return self.busy_s.shape[1] - 1

    @property
    def num_groups(self) -> int:
        return len(self.num_devices)

    def possible(self) -> NDArray[np.bool_]:
        """Which holders there can be. [option, first, stop]"""
        rooms = self._room(self.option_group, self.option_devices)
        return np.isfinite(self.busy_s) & (rooms >= self.option_devices)[:, None, None]

    def rooms(self) -> tuple[Array, Array]:
        """What limits the counts of meshes: rows @ counts <= limits, counts by option.

        For each size, meshes at least as large use whole pieces of that size, of which a host has
        only so many.

        Returns:
            [row, option] and [row]
        """
        sizes = sorted(
            set(zip(self.option_group.tolist(), self.option_devices.tolist(), strict=True))
        )
        group, size = (np.array(column) for column in zip(*sizes, strict=True))
        counts = (group[:, None] == self.option_group) & (size[:, None] <= self.option_devices)
        return np.where(counts, self.option_devices, 0).astype(float), self._room(group, size)

    def _room(self, group: Ints, size: Ints) -> Array:
        """Devices in a pool that meshes of a size could use."""
        hosts, rest = np.divmod(self.num_devices[group], self.devices_per_host[group])
        per_host = self.devices_per_host[group] // size * size
        return (hosts * per_host + rest // size * size).astype(float)

    def device_s(self) -> Array:
        """The least device-seconds per request for a run in each pool. [group, first, stop]"""
        work = np.where(self.possible(), self.busy_s, np.inf)
        work = work * self.option_devices[:, None, None]
        return np.stack(
            [
                work[self.option_group == g].min(axis=0, initial=np.inf)
                for g in range(self.num_groups)
            ]
        )


def cheapest(cost: Array) -> tuple[float, list[tuple[int, int]]]:
    """The cheapest way from the first boundary to the last and its runs; inf if there is none.

    Args:
        cost: of a run of segments. [first, stop]
    """
    n = len(cost) - 1
    reached = np.full(n + 1, np.inf)
    reached[0] = 0.0
    before = np.zeros(n + 1, dtype=int)
    for stop in range(1, n + 1):
        through = reached[:stop] + cost[:stop, stop]
        before[stop] = through.argmin()
        reached[stop] = through[before[stop]]
    runs: list[tuple[int, int]] = []
    stop = n
    while stop > 0 and np.isfinite(reached[n]):
        runs.append((int(before[stop]), stop))
        stop = int(before[stop])
    return float(reached[n]), runs[::-1]
