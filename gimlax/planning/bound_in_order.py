"""A bound that keeps segments in order: the cheapest way through all of them, mesh by mesh.

Say which mesh has each segment, one after another: a mesh may come back as often as it likes, and
each change takes a dispatch and the hop between these two meshes at this boundary. Every layout is
such a way, so with prices of the seconds of meshes, links and shared hosts, of memory and of what
is limited, the cheapest way less what the limits are worth bounds every value (weak duality). It is
a shortest path over segments and meshes; `solvers/cutting.py` finds good prices. Where neither
memory nor load nor limits bind, this is the least latency itself. Units: those of the objective.
"""

import math
from typing import TYPE_CHECKING

import numpy as np

from gimlax.planning.problem import Array, Problem
from gimlax.planning.solvers.cutting import Cut, PriceVector, raise_bound

if TYPE_CHECKING:
    from gimlax.planning.bound import Relaxation

__all__ = ["in_order"]

_MOST_MESHES = 24  # links are as many as pairs of them
_MOST_LINKED = 8  # up to which links have prices of their own
_MOST_CUTS = 40


def in_order(relaxed: "Relaxation", problem: Problem, y: Array, z: Array, u: Array) -> float:
    """The bound; 0 where there are too many meshes to ask for it.

    Args:
        relaxed: what segments, dispatches and parked bytes add.
        problem: has the links, and the cuts that are legal.
        y, z, u: prices of resources, memories and limits to begin with.
    """
    if problem.num_meshes > _MOST_MESHES:
        return 0.0
    ways = _Ways(relaxed, problem)
    longest = max(float(y.sum()) - relaxed.weight, 0.0)
    if math.isinf(relaxed.longest_s):
        y, longest = y * min(1.0, relaxed.weight / max(float(y.sum()), 1e-300)), 0.0
    start = PriceVector(
        resources=np.append(y, np.zeros(len(ways.links))),
        limits=np.append(z * relaxed.capacity, u),
        longest=longest,
    )
    value, _ = raise_bound(
        ways.cheapest,
        start,
        period=relaxed.weight,
        longest_s=relaxed.longest_s,
        most_cuts=_MOST_CUTS,
        halfway=True,
    )
    return value if math.isfinite(value) else 0.0


class _Ways:
    """Cheapest ways at any prices."""

    def __init__(self, relaxed: "Relaxation", problem: Problem) -> None:
        self._relaxed = relaxed
        num_meshes = problem.num_meshes
        # A cut is legal where some stage begins.
        legal = np.isfinite(problem.stage_s).any(axis=(0, 2))  # [boundary]
        away = ~np.eye(num_meshes, dtype=bool)[:, :, None] & legal
        self._hop_s = np.where(away, problem.transfer_s, np.inf)
        joined = np.isfinite(self._hop_s)
        self._blocked = np.where(joined, 0.0, np.inf)
        self._hop_s = np.where(joined, self._hop_s, 0.0)
        self._steps = [b for b in range(1, problem.num_segments) if joined[:, :, b].any()]
        has_period = relaxed.weight or math.isfinite(relaxed.longest_s)
        priced = has_period and num_meshes <= _MOST_LINKED
        pairs = np.argwhere(joined.any(axis=2)) if priced else np.zeros((0, 2), int)
        self.links: list[tuple[int, int]] = [(int(a), int(b)) for a, b in pairs]

    def cheapest(self, prices: PriceVector) -> Cut:
        """The cheapest way, with what is cheap enough parked."""
        relaxed = self._relaxed
        num_resources, num_pools = len(relaxed.loads), relaxed.capacity.size
        y, v = np.split(prices.resources, [num_resources])
        z, u = prices.limits[:num_pools] / relaxed.capacity, prices.limits[num_pools:]
        segment = relaxed.added + np.tensordot(y, relaxed.loads, 1)
        segment = segment + np.tensordot(u, relaxed.limited, 1)
        segment = segment + z[relaxed.pool_of][:, None] * relaxed.bytes_
        added, loads, limited = relaxed.on_dispatch
        dispatch = added + y @ loads + u @ limited
        each, limited = relaxed.on_hop
        link = np.full(self._hop_s.shape[:2], each + float(u @ limited))
        for (a, b), price in zip(self.links, v, strict=True):
            link[a, b] += price
        meshes = self._path(segment, dispatch, link[:, :, None] * self._hop_s + self._blocked)
        return self._cut(meshes, y, z, u)

    def _path(self, segment: Array, dispatch: Array, hop: Array) -> np.ndarray:
        """The mesh of each segment on the cheapest way.

        Args:
            segment: what each takes. [mesh, segment]
            dispatch: what the beginning of a stage takes. [mesh]
            hop: what a change takes. [source, target, boundary]
        """
        num_meshes, n = segment.shape
        ends = [*self._steps, n]
        total = np.concatenate([np.zeros((num_meshes, 1)), segment.cumsum(axis=1)], axis=1)
        cost = dispatch + total[:, ends[0]]
        source = np.tile(np.arange(num_meshes), (len(ends), 1))
        every = np.arange(num_meshes)
        for step, (begin, end) in enumerate(zip(ends[:-1], ends[1:], strict=True), 1):
            change = cost[:, None] + hop[:, :, begin]
            best = change.argmin(axis=0)
            changed = change[best, every] + dispatch
            moves = changed < cost
            source[step] = np.where(moves, best, every)
            cost = np.where(moves, changed, cost) + total[:, end] - total[:, begin]
        meshes = np.empty(n, int)
        mesh = int(cost.argmin())
        for step in range(len(ends) - 1, -1, -1):
            meshes[ends[step - 1] if step else 0 : ends[step]] = mesh
            mesh = int(source[step, mesh])
        return meshes

    def _cut(self, meshes: np.ndarray, y: Array, z: Array, u: Array) -> Cut:
        """What a way takes, besides what it is worth to park at these prices."""
        relaxed = self._relaxed
        segments = np.arange(meshes.size)
        changes = np.flatnonzero(np.diff(meshes)) + 1
        begins = meshes[np.append(0, changes)]
        sources, targets = meshes[changes - 1], meshes[changes]
        hops_s = self._hop_s[sources, targets, changes]
        dispatch, parking = relaxed.on_dispatch, relaxed.parking
        price = parking[0] + y @ parking[1] + u @ parking[2]
        parked = np.where(z[relaxed.pool_of] > price, relaxed.host_bytes, 0.0)
        links_s = np.zeros(len(self.links))
        if self.links:
            seconds = np.zeros(self._hop_s.shape[:2])
            np.add.at(seconds, (sources, targets), hops_s)
            links_s = np.array([seconds[pair] for pair in self.links])
        held = np.bincount(relaxed.pool_of[meshes], relaxed.bytes_[meshes, segments], z.size)
        held = held - np.bincount(relaxed.pool_of, parked, z.size)
        limited = relaxed.limited[:, meshes, segments].sum(axis=1)
        limited = limited + dispatch[2][:, begins].sum(axis=1) + parking[2] @ parked
        return Cut(
            charge=float(
                relaxed.added[meshes, segments].sum()
                + dispatch[0][begins].sum()
                + relaxed.on_hop[0] * hops_s.sum()
                + parking[0] @ parked
            ),
            resource_s=np.append(
                relaxed.loads[:, meshes, segments].sum(axis=1)
                + dispatch[1][:, begins].sum(axis=1)
                + parking[1] @ parked,
                links_s,
            ),
            over=np.append(
                held / relaxed.capacity - 1, limited + relaxed.on_hop[1] * hops_s.sum() - 1
            ),
        )
