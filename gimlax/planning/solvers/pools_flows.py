"""Requests on their way through holders: which columns a programme over flows has, and their terms.

Where links differ, a column says which pool requests of a holder go on to, or come from, so that
every hand-over is charged by its own link, in seconds of a request and in seconds for which meshes
send and receive. Where all links are equal there is one column a holder. Units: seconds, requests
per second.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from gimlax.planning.problem import Terms
from gimlax.planning.solvers.pools_bound import Holder
from gimlax.planning.solvers.pools_problem import Array, Ints, PoolsProblem

__all__ = ["Columns", "Held", "at_rate", "occupied", "terms_of"]

# Requests that a holder must get to be worth its devices, as a share of all.
_NEGLIGIBLE = 1e-9


@dataclass(frozen=True, slots=True)
class Held:
    """`count` meshes of shape `option` that hold `[first, stop)` and serve `requests_per_s`
    together: `inward` from meshes of each pool, `onward` to them (nothing at either end)."""

    option: int
    first: int
    stop: int
    count: int
    requests_per_s: float
    inward: tuple[float, ...]
    onward: tuple[float, ...]


def terms_of(problem: PoolsProblem, held: Sequence[Held]) -> Terms:
    """All terms of a plan that serves as many requests as its meshes can in these proportions."""
    rate = sum(h.requests_per_s for h in held if h.first == 0)
    period_s = max(max(occupied(problem, h)) / h.count for h in held) / rate
    latency_s = joules = usd_per_s = idle_watts = 0.0
    for h in held:
        computes, sends, _ = occupied(problem, h)
        latency_s += (computes + sends) / rate
        usd_per_s += h.count * float(problem.usd_per_s[h.option])
        idle_watts += h.count * float(problem.idle_watts[h.option])
        drawn = problem.busy_watts[h.option] - problem.idle_watts[h.option]
        joules += float(drawn) * computes / rate
    return Terms(
        latency_s=latency_s,
        period_s=period_s,
        usd=usd_per_s * period_s,
        joules=joules + idle_watts * period_s,
    )


def occupied(problem: PoolsProblem, held: Held) -> tuple[float, float, float]:
    """How many meshes of a holder compute, send and receive at any time."""
    group = problem.option_group[held.option]
    stage_s = float(problem.stage_s[held.option, held.first, held.stop])
    return (
        held.requests_per_s * stage_s,
        float(np.dot(held.onward, problem.hop_s[group, :, held.stop])),
        float(np.dot(held.inward, problem.hop_s[:, group, held.first])),
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Columns:
    """Columns of some holders.

    Attributes:
        of: the holder. [column]
        leaves: whether requests leave it there, as they do on one column each; else they arrive.
            [column]
        other: the pool that they go on to, or come from. [column]
        enters: 1 where requests enter the plan, else 0. [column]
        hop_s: seconds of the hand-over of a request that leaves. [column]
        busy: seconds for which a request occupies the meshes of a holder. [row, column]
        busy_of: the holder of each row of it. [row]
        balance: what arrives at each place less what goes on from there, which is nothing.
            [place, column]
        num_places: how many places there are.
    """

    of: Ints
    leaves: NDArray[np.bool_]
    other: Ints
    enters: Array
    hop_s: Array
    busy: sparse.csr_array
    busy_of: Ints
    balance: sparse.csr_array
    num_places: int

    @classmethod
    def of_holders(cls, problem: PoolsProblem, holders: Sequence[Holder]) -> "Columns":
        """The columns of holders, each given once."""
        n, pools, num = problem.num_segments, problem.num_groups, len(holders)
        follow = not problem.links_are_equal
        columns = [
            (k, leaves, other)
            for k, holder in enumerate(holders)
            for leaves in (True, False)[: 2 if follow and holder.first > 0 else 1]
            for other in range(pools if follow and (holder.stop < n or not leaves) else 1)
        ]
        of, leaves, other = (np.array(column) for column in zip(*columns, strict=True))
        option, first, stop = (np.array(column)[of] for column in zip(*holders, strict=True))
        group = problem.option_group[option]
        stage_s = problem.stage_s[option, first, stop]
        out_s = np.where(stop < n, problem.hop_s[group, other, stop], 0.0)
        in_s = np.where(first > 0, problem.hop_s[other, group, first], 0.0)
        one = np.ones(len(of))
        if follow:
            boundary = np.where(leaves, stop, first)
            ends = np.where(leaves, group, other), np.where(leaves, other, group)
            place = (boundary * pools + ends[0]) * pools + ends[1]
            balance = [
                _rows([(np.where((boundary > 0) & (boundary < n), place, -1), one - 2 * ~leaves)]),
                # What arrives at a holder leaves it.
                _rows([(np.where(first > 0, of, -1), one - 2 * leaves)]),
            ]
            seconds = [
                np.where(leaves, stage_s, 0.0),
                np.where(leaves, out_s, 0.0),
                np.where(leaves, 0.0, in_s),
            ]
        else:
            arrives, goes_on = np.where(stop < n, stop, -1), np.where(first > 0, first, -1)
            balance = [_rows([(arrives, one), (goes_on, -one)])]
            seconds = [np.maximum(stage_s, np.maximum(out_s, in_s))]
        each = np.arange(len(of))
        busy = [sparse.coo_array((part, (of, each)), (num, len(of))) for part in seconds]
        return cls(
            of=of,
            leaves=leaves,
            other=other,
            enters=1.0 * ((first == 0) & leaves),
            hop_s=np.where(leaves, out_s, 0.0),
            busy=sparse.csr_array(sparse.vstack(busy)),
            busy_of=np.tile(np.arange(num), len(busy)),
            balance=sparse.csr_array(sparse.vstack([rows for rows, _ in balance])),
            num_places=sum(num_rows for _, num_rows in balance),
        )

    def held(
        self,
        problem: PoolsProblem,
        holders: Sequence[Holder],
        counts: Array,
        shares: Array,
        *,
        even: bool,
    ) -> tuple[Held, ...]:
        """What each holder serves, as many requests as all can.

        Args:
            problem: what holders take.
            holders: those of the columns.
            counts: how many meshes each has. [holder]
            shares: of the requests. [column]
            even: whether holders of one run may be given other shares of what it serves.
        """
        leaving = np.where(self.leaves & (counts > 0)[self.of], shares, 0.0)
        served = np.bincount(self.of, leaving, len(holders)).astype(float)
        group = problem.option_group[[holder.option for holder in holders]]
        first, stop = (
            np.array(column) for column in zip(*((h.first, h.stop) for h in holders), strict=True)
        )
        inward, onward = np.zeros((2, len(holders), problem.num_groups))
        if problem.links_are_equal:
            served = self._evened(counts, served, first, stop) if even else served
            inward = served[:, None] * _shares(stop, group, served, first, problem.num_groups)
            onward = served[:, None] * _shares(first, group, served, stop, problem.num_groups)
        else:
            np.add.at(onward, (self.of, self.other), leaving)
            np.add.at(inward, (self.of, self.other), np.where(self.leaves, 0.0, shares))
        onward[stop == problem.num_segments] = 0.0
        inward[first == 0] = 0.0
        used = np.flatnonzero(served > _NEGLIGIBLE)
        found = [
            Held(
                *holders[k],
                count=int(counts[k]),
                requests_per_s=float(served[k]),
                inward=tuple(inward[k].tolist()),
                onward=tuple(onward[k].tolist()),
            )
            for k in used.tolist()
        ]
        return at_rate(found, 1 / terms_of(problem, found).period_s)

    def _evened(self, counts: Array, served: Array, first: Ints, stop: Ints) -> Array:
        """The same in each run, shared out by what its holders can do. [holder]"""
        able = counts / self.busy.sum(axis=1)
        result = np.zeros_like(served)
        for run in set(zip(first.tolist(), stop.tolist(), strict=True)):
            same = (first == run[0]) & (stop == run[1])
            if able[same].any():
                result[same] = served[same].sum() * able[same] / able[same].sum()
        return result


def at_rate(held: Sequence[Held], requests_per_s: float) -> tuple[Held, ...]:
    """The same shares of so many requests."""
    times = requests_per_s / sum(h.requests_per_s for h in held if h.first == 0)
    return tuple(
        replace(
            h,
            requests_per_s=h.requests_per_s * times,
            inward=tuple(part * times for part in h.inward),
            onward=tuple(part * times for part in h.onward),
        )
        for h in held
    )


def _shares(at: Ints, group: Ints, served: Array, boundary: Ints, num_groups: int) -> Array:
    """Of all that holders serve at a boundary, the part of each pool. [holder, pool]

    Args:
        at: the boundary at which each holder counts. [holder]
        group, served: of each. [holder]
        boundary: that is asked about. [row]
        num_groups: how many pools there are.
    """
    total = np.zeros((int(max(at.max(), boundary.max())) + 1, num_groups))
    np.add.at(total, (at, group), served)
    rows = total[boundary]
    return rows / np.maximum(rows.sum(axis=1, keepdims=True), 1e-300)


def _rows(entries: Sequence[tuple[Ints, Array]]) -> tuple[sparse.csr_array, int]:
    """Rows from the number of the row and the value of each column, and how many; -1 is none."""
    row = np.concatenate([number for number, _ in entries])
    value = np.concatenate([values for _, values in entries])
    column = np.concatenate([np.arange(len(number)) for number, _ in entries])
    inside = row >= 0
    names, row = np.unique(row[inside], return_inverse=True)
    shape = (len(names), len(entries[0][0]))
    matrix = sparse.csr_array(sparse.coo_array((value[inside], (row, column[inside])), shape))
    return matrix, len(names)
