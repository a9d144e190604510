"""A value that no plan on pools of devices goes below, from prices: weak duality, no search.

A request takes some way through the boundaries and is charged for every stage and hand-over of it;
a mesh is held for no less than it computes, sends or receives. Let a second of each of these of all
devices of a pool cost y besides, and let what a limited term takes of its limit cost u. Then any
plan has at least the value

    D(y, u)  -  sum of u  -  (price of the longest period) * (that period),

where D is the cheapest way there is, as long as the y add up to no more than a second of the
period costs: whatever the counts, cuts and shares. `cutting.py` finds good prices. Units: those of
the objective.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gimlax.planning.objective import Objective
from gimlax.planning.solvers.cutting import Cut, PriceVector, raise_bound
from gimlax.planning.solvers.pools_problem import Array, PoolsProblem, Prices, cheapest

__all__ = ["Bound", "Holder", "Ways", "lower_bound"]

_MOST_CUTS = 200


class Holder(NamedTuple):
    """A mesh of shape `option` that holds segments `[first, stop)`."""

    option: int
    first: int
    stop: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Bound:
    """The bound; inf if no way leads through.

    Attributes:
        value: in the unit of the objective.
        prices: that give it, those of devices among what is charged for holding meshes.
        holders: those on the cheapest ways that were met.
    """

    value: float
    prices: Prices
    holders: tuple[Holder, ...]


class Ways:
    """Cheapest ways at any prices, of one problem."""

    def __init__(self, problem: PoolsProblem, *, only_held: bool = False) -> None:
        """Args:
        problem: what holders take.
        only_held: whether all prices that will be asked for are of held devices and the same for
            each device of a pool; then the shape of fewest device-seconds is always the best.
        """
        self._problem = problem
        possible = problem.possible()
        self._blocked = np.where(possible, 0.0, np.inf)
        self._busy_s = np.where(possible, problem.busy_s(), 0.0)
        self._stage_s = np.where(possible, problem.stage_s, 0.0)
        self._members = [
            np.flatnonzero(problem.option_group == g) for g in range(problem.num_groups)
        ]
        self._fewest = None
        if only_held:
            devices = problem.option_devices.astype(float)[:, None, None]
            work = devices * self._busy_s + self._blocked
            self._fewest = self._least(work)

    def _least(self, cost: Array) -> tuple[Array, NDArray[np.intp]]:
        """The least of the shapes of each pool, and which. [group, first, stop]"""
        which = np.stack([own[cost[own].argmin(axis=0)] for own in self._members])
        return np.take_along_axis(cost, which, axis=0), which

    def cheapest(self, prices: Prices) -> tuple[float, list[Holder]]:
        """The cheapest way and its holders; inf if there is none."""
        if self._fewest is not None:
            work, which = self._fewest
            first = np.array([own[0] for own in self._members])
            each = (prices.held / self._problem.option_devices)[first][:, None, None]
            blocked = np.isinf(work)
            cost = np.where(blocked, np.inf, np.where(blocked, 0.0, work) * each)
        else:
            cost = prices.stage[:, None, None] * self._stage_s
            cost += prices.held[:, None, None] * self._busy_s
            cost, which = self._least(cost + self._blocked)
        least, runs, pools = cheapest(cost, prices.hop[:, :, None] * self._problem.hop_s)
        holders = [
            Holder(int(which[pool, *run]), *run) for run, pool in zip(runs, pools, strict=True)
        ]
        return least, holders

    def charge(self, prices: Prices, holders: list[Holder]) -> float:
        """What a way costs, the period apart."""
        problem = self._problem
        total = sum(
            prices.stage[h.option] * self._stage_s[h] + prices.held[h.option] * self._busy_s[h]
            for h in holders
        )
        hops = sum(prices.hop[s, t] * problem.hop_s[s, t, b] for s, t, b in self._hops(holders))
        return float(total + hops)

    def device_s(self, holders: list[Holder]) -> Array:
        """Seconds of all devices of each pool that a request takes on a way.

        Returns:
            Busy, then sending, then receiving. [3 * group]
        """
        problem = self._problem
        busy, sends, receives = np.zeros((3, problem.num_groups))
        share = 1 / np.maximum(problem.num_devices, 1)
        for h in holders:
            group = problem.option_group[h.option]
            busy[group] += problem.option_devices[h.option] * self._busy_s[h] * share[group]
        for source, target, boundary in self._hops(holders):
            seconds = problem.hop_s[source, target, boundary]
            sends[source] += seconds * share[source]  # by one device at least
            receives[target] += seconds * share[target]
        return np.concatenate([busy, sends, receives])

    def _hops(self, holders: list[Holder]) -> list[tuple[int, int, int]]:
        pools = [int(self._problem.option_group[h.option]) for h in holders]
        stops = (h.stop for h in holders[:-1])
        return list(zip(pools[:-1], pools[1:], stops, strict=True))


def lower_bound(problem: PoolsProblem, objective: Objective) -> Bound:
    """The largest bound over all prices."""
    goal = problem.prices(objective.term_weights)
    limits = objective.term_limits
    limited = [
        problem.prices([(k == term) / most for k in range(len(limits))])
        for term, most in enumerate(limits)
        if term != 1 and math.isfinite(most)
    ]
    links_cost = not problem.links_are_equal
    only_held = not (links_cost or any(p.stage.any() for p in (goal, *limited)))
    ways = Ways(problem, only_held=only_held)
    share = 1 / np.maximum(problem.num_devices, 1)
    per_device = problem.option_devices * share[problem.option_group]
    num_prices = problem.num_groups * (3 if links_cost else 1)

    def priced(y: Array, u: Array) -> Prices:
        """What is charged at prices of devices and of limits."""
        busy, sends, receives = np.append(y, np.zeros(3 * share.size - y.size)).reshape(3, -1)
        stage, held = goal.stage, goal.held + busy[problem.option_group] * per_device
        hop = goal.hop + (sends * share)[:, None] + receives * share
        for price, limit in zip(u, limited, strict=True):
            stage = stage + price * limit.stage
            held = held + price * limit.held
            hop = hop + price * limit.hop
        return Prices(stage=stage, held=held, hop=hop, period=goal.period)

    seen: dict[Holder, None] = {}

    def answer(prices: PriceVector) -> Cut | None:
        _, way = ways.cheapest(priced(prices.resources, prices.limits))
        if not way:
            return None
        seen.update(dict.fromkeys(way))
        return Cut(
            charge=ways.charge(goal, way),
            resource_s=ways.device_s(way)[:num_prices],
            over=np.array([ways.charge(limit, way) - 1 for limit in limited]),
        )

    start = PriceVector(
        resources=np.full(num_prices, goal.period / num_prices),
        limits=np.zeros(len(limited)),
        longest=0.0,
    )
    value, prices = raise_bound(
        answer, start, period=goal.period, longest_s=limits[1], most_cuts=_MOST_CUTS
    )
    return Bound(value=value, prices=priced(prices.resources, prices.limits), holders=tuple(seen))
