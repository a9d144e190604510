"""Which holders are worth a place in the integer programme: dynamic programming with whole counts.

At a given rate a run of segments needs a whole number of meshes of a shape, so its price is that of
whole meshes; the cheapest way through the boundaries (cuts, pools, shapes and replicas at once) is
what a single pipeline of that rate would look like. Ways for many rates, and for prices
around the best ones, are the candidates.
"""

import numpy as np

from gimlax.planning.solvers.pools_bound import Bound, Holder
from gimlax.planning.solvers.pools_problem import Array, PoolsProblem, cheapest

__all__ = ["counted", "near"]

_NUM_RATES = 24
_NUM_NEAR = 12
_LEAST_SHARE = 1 / 64  # the slowest pipeline that is looked at, as a share of the bound


def counted(problem: PoolsProblem, bound: Bound) -> list[Holder]:
    """Holders of the cheapest pipelines of many rates, with all pools and with each alone."""
    rates = bound.requests_per_s * np.geomspace(_LEAST_SHARE, 1.0, _NUM_RATES)
    found: list[Holder] = []
    for rate in rates:
        found += pipeline(problem, _positive(bound.prices), float(rate))
    for group in range(problem.num_groups):
        alone = np.where(np.arange(problem.num_groups) == group, 1.0, np.inf)
        for rate in rates[::3]:
            found += pipeline(problem, alone, float(rate))
    return found


def near(problem: PoolsProblem, bound: Bound, *, seed: int) -> list[Holder]:
    """Holders of the cheapest pipelines of random rates, at prices around the best."""
    rng = np.random.default_rng(seed)
    found: list[Holder] = []
    for _ in range(_NUM_NEAR):
        prices = _positive(bound.prices) * np.exp(rng.normal(0, 0.1, problem.num_groups))
        rate = bound.requests_per_s * float(rng.uniform(_LEAST_SHARE, 1.0))
        found += pipeline(problem, prices, rate)
    return found


def pipeline(problem: PoolsProblem, prices: Array, rate: float) -> list[Holder]:
    """The cheapest pipeline of a rate, in whole meshes; empty if there is none.

    Args:
        problem: what holders take.
        prices: of a device. [group], inf for a pool that is not to be used
        rate: requests per second.
    """
    busy = np.where(problem.possible(), problem.busy_s, np.inf)
    price = (prices[problem.option_group] * problem.option_devices)[:, None, None]
    cost = np.ceil(busy * rate - 1e-9) * price
    option = cost.argmin(axis=0)
    least, runs = cheapest(cost.min(axis=0))
    if not np.isfinite(least):
        return []
    return [Holder(int(option[run]), *run) for run in runs]


def _positive(prices: Array) -> Array:
    """Prices in which nothing is free: what is would be taken without need."""
    return np.maximum(prices, 1e-3 * prices.max())
