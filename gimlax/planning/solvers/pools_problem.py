"""Pools of equal devices as plain arrays: what a mesh of each shape takes for each run of segments.

Chosen over one mesh per device, whose number would decide how long a search takes. Every term of
an objective is a charge for the seconds of stages, for the seconds for which meshes are held, for
the seconds of hand-overs and for the period, so one record of prices says what any weighted sum or
limit looks at. Units: seconds per request, dollars, watts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PoolsProblem:
    """A chain of n segments for pools of devices, from which meshes of given shapes are made.

    Attributes:
        stage_s: seconds per request of a mesh of a shape that holds segments `[first, stop)`.
            [option, first, stop], inf where it does not fit or the cut is not legal
        hop_s: seconds of a hand-over between meshes of two pools, for which the one is busy sending
            and the other receiving, beside computing. [source, target, boundary]
        option_group: the pool of each shape. [option]
        option_devices: devices of a mesh of each shape. [option]; of one pool each size divides the
            next, and those of its hosts
        num_devices: in each pool. [group]
        devices_per_host: in each pool; a mesh has devices of one host. [group]
        usd_per_s, busy_watts, idle_watts: of a mesh of each shape. [option], NaN where nobody knows
    """

    stage_s: Array
    hop_s: Array
    option_group: Ints
    option_devices: Ints
    num_devices: Ints
    devices_per_host: Ints
    usd_per_s: Array
    busy_watts: Array
    idle_watts: Array

    @property
    def num_segments(self) -> int:
        return self.stage_s.shape[1] - 1

    @property
    def num_groups(self) -> int:
        return len(self.num_devices)

    @property
    def links_are_equal(self) -> bool:
        """Whether it does not matter which pool a request goes on to."""
        return bool((self.hop_s == self.hop_s[:1, :1]).all())

    def busy_s(self) -> Array:
        """Seconds per request for which a holder is busy at least, over the quickest links.

        It computes, receives and sends at the same time, each for one request after another.
        [option, first, stop]
        """
        n = self.num_segments
        sent_s, received_s = (self.hop_s.min(axis=axis)[self.option_group] for axis in (1, 0))
        sent_s[:, n], received_s[:, 0] = 0.0, 0.0
        return np.maximum(self.stage_s, np.maximum(sent_s[:, None, :], received_s[:, :, None]))

    def possible(self) -> NDArray[np.bool_]:
        """Which holders there can be. [option, first, stop]"""
        rooms = self._room(self.option_group, self.option_devices)
        return np.isfinite(self.stage_s) & (rooms >= self.option_devices)[:, None, None]

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

    def prices(self, weights: Sequence[float]) -> "Prices":
        """What a weighted sum of terms charges.

        Args:
            weights: of each of `objective.TERMS`; a term that nobody knows has to have none.
        """
        latency, period, usd, joules = weights
        stage, held = np.full(len(self.option_group), latency), np.zeros(len(self.option_group))
        if usd:
            held = held + usd * self.usd_per_s
        if joules:
            stage = stage + joules * (self.busy_watts - self.idle_watts)
            held = held + joules * self.idle_watts
        hop = np.full((self.num_groups, self.num_groups), latency)
        return Prices(stage=stage, held=held, hop=hop, period=period)


class Prices(NamedTuple):
    """What a plan is charged per second, in the unit of an objective.

    Attributes:
        stage: of a stage, for each request. [option]
        held: of a mesh, for each period. [option]
        hop: of a hand-over, for each request. [source, target]
        period: of a period.
    """

    stage: Array
    held: Array
    hop: Array
    period: float


def cheapest(cost: Array, hop: Array) -> tuple[float, list[tuple[int, int]], list[int]]:
    """The cheapest way from the first boundary to the last, with its runs and the pool of each.

    Args:
        cost: of a run of segments in each pool. [group, first, stop]
        hop: of a hand-over. [source, target, boundary]

    Returns:
        inf and no runs if there is no way.
    """
    num_groups, n = len(cost), cost.shape[1] - 1
    groups = np.arange(num_groups)
    reached = np.full((num_groups, n + 1), np.inf)  # to go on with a mesh of this pool
    reached[:, 0] = 0.0
    first = np.zeros((num_groups, n + 1), int)  # of the run of a pool that ends there
    source = np.zeros((num_groups, n + 1), int)
    arrived = np.full(num_groups, np.inf)
    for stop in range(1, n + 1):
        through = reached[:, :stop] + cost[:, :stop, stop]
        first[:, stop] = through.argmin(axis=1)
        arrived = through[groups, first[:, stop]]
        onward = arrived[:, None] + hop[:, :, stop]
        source[:, stop] = onward.argmin(axis=0)
        reached[:, stop] = onward[source[:, stop], groups]
    group = int(arrived.argmin())
    least = float(arrived[group])
    if not np.isfinite(least):
        return least, [], []
    runs: list[tuple[int, int]] = []
    pools: list[int] = []
    stop = n
    while True:
        runs.append((int(first[group, stop]), stop))
        pools.append(group)
        stop = runs[-1][0]
        if not stop:
            return least, runs[::-1], pools[::-1]
        group = int(source[group, stop])
