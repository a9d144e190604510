"""A rate that no plan on pools of devices exceeds, from prices of devices: weak duality, no search.

Let a second of a device of pool g cost y_g. A request takes some way through the boundaries, and
on each run of segments at least the cheapest device-seconds of any pool; so it costs at least D(y),
the cheapest way there is. All devices together earn at most the sum of y_g times their number per
second. Hence for any y >= 0

    requests per second  <=  sum_g y_g * num_devices_g / D(y),

whatever the counts, cuts and shares. D is a minimum of linear functions, so the best prices are
found with cutting planes (Kelley 1960), each a way; a programme that stops early costs tightness
only. Units: seconds, requests per second.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import optimize

from gimlax.planning.solvers.pools_problem import Array, PoolsProblem, cheapest

__all__ = ["Bound", "Holder", "most_requests_per_s", "price_of"]

_MOST_CUTS = 200
_CLOSE = 1e-7


class Holder(NamedTuple):
    """A mesh of shape `option` that holds segments `[first, stop)`."""

    option: int
    first: int
    stop: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Bound:
    """The bound with its prices; `holders` are those on the cheapest ways that were met.

    `prices` are of a device-second, scaled so that all devices earn 1 per second. [group]
    """

    requests_per_s: float
    prices: Array
    holders: tuple[Holder, ...]


def most_requests_per_s(problem: PoolsProblem) -> Bound:
    """The least bound over all prices; 0 if no way leads through."""
    work = problem.device_s()  # [group, first, stop]
    total = problem.num_devices.astype(float)
    num = problem.num_groups
    prices = 1 / (num * np.maximum(total, 1e-30))
    best_s, best_prices = 0.0, prices
    ways: list[Array] = []
    holders: dict[Holder, None] = {}
    for _ in range(_MOST_CUTS):
        cost, runs, pools = price_of(work, prices)
        if not np.isfinite(cost):
            return Bound(requests_per_s=0.0, prices=prices, holders=())
        holders.update(dict.fromkeys(_holders(problem, runs, pools)))
        if cost > best_s:
            best_s, best_prices = cost, prices
        way = np.zeros(num)  # device-seconds of each pool
        for (first, stop), pool in zip(runs, pools, strict=True):
            way[pool] += work[pool, first, stop]
        ways.append(way)
        scale = float(max(w.sum() for w in ways))
        solved = optimize.linprog(
            np.append(np.zeros(num), -1.0),
            A_ub=np.column_stack([-np.array(ways) / scale, np.ones(len(ways))]),
            b_ub=np.zeros(len(ways)),
            A_eq=np.append(total / total.sum(), 0.0)[None],
            b_eq=[1.0],
            bounds=[(0, None)] * num + [(None, None)],
        )
        if solved.status != 0:
            break
        prices = np.maximum(solved.x[:num], 0.0)
        prices = prices / float(prices @ total)
        most_s = float(solved.x[num]) * scale / total.sum()
        if most_s - best_s <= _CLOSE * most_s:
            break
    return Bound(requests_per_s=1 / best_s, prices=best_prices, holders=tuple(holders))


def price_of(work: Array, prices: Array) -> tuple[float, list[tuple[int, int]], list[int]]:
    """The cheapest way at some prices: what it costs, its runs, and the pool of each."""
    # What is free in a pool that cannot do it is still not possible.
    cost = np.where(
        np.isfinite(work), np.where(np.isfinite(work), work, 0.0) * prices[:, None, None], np.inf
    )
    pool = cost.argmin(axis=0)
    least, runs = cheapest(cost.min(axis=0))
    return least, runs, [int(pool[run]) for run in runs]


def _holders(problem: PoolsProblem, runs: list[tuple[int, int]], pools: list[int]) -> list[Holder]:
    """The shapes that take the fewest device-seconds."""
    found = []
    possible = problem.possible()
    for (first, stop), pool in zip(runs, pools, strict=True):
        work = np.where(possible[:, first, stop], problem.busy_s[:, first, stop], np.inf)
        work = np.where(problem.option_group == pool, work * problem.option_devices, np.inf)
        found.append(Holder(int(work.argmin()), first, stop))
    return found
