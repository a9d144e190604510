"""Which holders are worth a place in the integer programme: dynamic programming with whole counts.

At a given rate a run of segments needs a whole number of meshes of a shape, so what is charged for
holding them is that of whole meshes; the cheapest way through the boundaries (cuts, pools, shapes
and replicas at once) is what a single pipeline of that rate would look like. Ways for many rates,
and for prices around the best ones, are the candidates.
"""

import numpy as np

from gimlax.planning.solvers.pools_bound import Bound, Holder
from gimlax.planning.solvers.pools_problem import Array, PoolsProblem, Prices, cheapest

__all__ = ["counted", "near", "pipeline"]

_NUM_RATES = 24
_NUM_NEAR = 12
_LEAST_SHARE = 1 / 64  # the slowest pipeline that is looked at, as a share of the largest rate


def counted(problem: PoolsProblem, bound: Bound, most_requests_per_s: float) -> list[Holder]:
    """Holders of the cheapest pipelines of many rates, with all pools and with each alone.

    Args:
        problem: what holders take.
        bound: has the prices.
        most_requests_per_s: a rate that no plan exceeds.
    """
    rates = most_requests_per_s * np.geomspace(_LEAST_SHARE, 1.0, _NUM_RATES)
    prices = _positive(bound.prices)
    found: list[Holder] = []
    for rate in rates:
        found += pipeline(problem, prices, float(rate))
    for group in range(problem.num_groups):
        others = np.where(problem.option_group == group, 0.0, np.inf)
        alone = prices._replace(held=prices.held + others)
        for rate in rates[::3]:
            found += pipeline(problem, alone, float(rate))
    return found


def near(
    problem: PoolsProblem, bound: Bound, most_requests_per_s: float, *, seed: int
) -> list[Holder]:
    """Holders of the cheapest pipelines of random rates, at prices around the best."""
    rng = np.random.default_rng(seed)
    found: list[Holder] = []
    for _ in range(_NUM_NEAR):
        prices = _positive(bound.prices)
        each = np.exp(rng.normal(0, 0.1, problem.num_groups))[problem.option_group]
        prices = prices._replace(held=prices.held * each, stage=prices.stage * each)
        rate = most_requests_per_s * float(rng.uniform(_LEAST_SHARE, 1.0))
        found += pipeline(problem, prices, rate)
    return found


def pipeline(problem: PoolsProblem, prices: Prices, rate: float) -> list[Holder]:
    """The cheapest pipeline of a rate, in whole meshes; empty if there is none.

    Args:
        problem: what holders take.
        prices: what is charged; a mesh that costs inf to hold is not used.
        rate: requests per second.
    """
    possible = problem.possible() & np.isfinite(prices.held)[:, None, None]
    busy_s, stage_s = (
        np.where(possible, seconds, 0.0) for seconds in (problem.busy_s, problem.stage_s)
    )
    held = np.where(np.isfinite(prices.held), prices.held, 0.0)[:, None, None]
    whole_s = np.ceil(busy_s * rate - 1e-9) / rate
    cost = prices.stage[:, None, None] * stage_s + held * whole_s
    cost = np.where(possible, cost, np.inf)
    groups = range(problem.num_groups)
    members = [np.flatnonzero(problem.option_group == group) for group in groups]
    which = np.stack([own[cost[own].argmin(axis=0)] for own in members])
    least = np.take_along_axis(cost, which, axis=0)
    _, runs, pools = cheapest(least, prices.hop * problem.hop_s)
    return [Holder(int(which[pool, *run]), *run) for run, pool in zip(runs, pools, strict=True)]


def _positive(prices: Prices) -> Prices:
    """Prices in which no mesh is free: what is would be taken without need."""
    held: Array = np.maximum(prices.held, 1e-3 * max(float(prices.held.max()), 1e-30))
    return prices._replace(held=held)
