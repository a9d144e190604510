"""Which holders are worth a place in the integer programme: dynamic programming with whole counts.

At a given rate a run of segments needs a whole number of meshes of a shape, so what is charged for
holding them is that of whole meshes; the cheapest way through the boundaries (cuts, pools, shapes
and replicas at once) is what a single pipeline of that rate would look like. Ways for many rates,
and for prices around the best ones, are the candidates.
"""

from collections.abc import Iterator

import numpy as np

from gimlax.planning.solvers.pools_bound import Bound, Holder
from gimlax.planning.solvers.pools_problem import PoolsProblem, Prices, cheapest

__all__ = ["Pipelines"]

_NUM_RATES = 24
_NUM_NEAR = 12
_LEAST_SHARE = 1 / 64  # the slowest pipeline that is looked at, as a share of the largest rate


class Pipelines:
    """The cheapest pipelines of one problem."""

    def __init__(self, problem: PoolsProblem, bound: Bound, most_requests_per_s: float) -> None:
        """Args:
        problem: what holders take.
        bound: has the prices.
        most_requests_per_s: a rate that no plan exceeds.
        """
        self._problem = problem
        self._prices = _positive(bound.prices)
        self._most = most_requests_per_s
        possible = problem.possible()
        self._blocked = np.where(possible, 0.0, np.inf)
        self._busy_s = np.where(possible, problem.busy_s(), 0.0)
        self._stage_s = np.where(possible, problem.stage_s, 0.0)
        groups = range(problem.num_groups)
        self._members = [np.flatnonzero(problem.option_group == group) for group in groups]

    def of_many_rates(self) -> Iterator[tuple[list[Holder], float]]:
        """With all pools and with each alone; each with its rate, in requests per second."""
        rates = self._most * np.geomspace(_LEAST_SHARE, 1.0, _NUM_RATES)
        every = list(range(self._problem.num_groups))
        for rate in rates:
            yield self.cheapest(self._prices, float(rate), every), float(rate)
        for group in every:
            for rate in rates[::3]:
                yield self.cheapest(self._prices, float(rate), [group]), float(rate)

    def near(self, *, seed: int) -> list[Holder]:
        """Holders of those of random rates, at prices around the best."""
        rng = np.random.default_rng(seed)
        groups = list(range(self._problem.num_groups))
        found: list[Holder] = []
        for _ in range(_NUM_NEAR):
            each = np.exp(rng.normal(0, 0.1, len(groups)))[self._problem.option_group]
            held, stage = self._prices.held * each, self._prices.stage * each
            rate = self._most * float(rng.uniform(_LEAST_SHARE, 1.0))
            found += self.cheapest(self._prices._replace(held=held, stage=stage), rate, groups)
        return found

    def cheapest(self, prices: Prices, rate: float, groups: list[int]) -> list[Holder]:
        """The cheapest pipeline of a rate, in whole meshes of some pools; empty if there is none.

        Args:
            prices: what is charged.
            rate: requests per second.
            groups: the pools that it may use.
        """
        which, least = [], []
        for group in groups:
            own = self._members[group]
            cost = self._busy_s[own] * rate
            cost = np.ceil(cost - 1e-9, out=cost)
            cost *= (prices.held[own] / rate)[:, None, None]
            if prices.stage.any():
                cost += prices.stage[own][:, None, None] * self._stage_s[own]
            cost += self._blocked[own]
            best = cost.argmin(axis=0)
            which.append(own[best])
            least.append(np.take_along_axis(cost, best[None], axis=0)[0])
        hop = (prices.hop[:, :, None] * self._problem.hop_s)[np.ix_(groups, groups)]
        _, runs, pools = cheapest(np.stack(least), hop)
        return [Holder(int(which[pool][run]), *run) for run, pool in zip(runs, pools, strict=True)]


def _positive(prices: Prices) -> Prices:
    """Prices in which no mesh is free: what is would be taken without need."""
    least = 1e-3 * max(float(prices.held.max()), 1e-30)
    return prices._replace(held=np.maximum(prices.held, least))
