"""Prices that make a bound large, by cutting planes (Kelley 1960), one for each answer.

A bound by weak duality is a minimum of linear functions of its prices, one for each answer that the
relaxed problem has: what the goal charges for the answer, what it takes of every resource of which
a period has one second, and by how much it is over what is limited. The prices at which the least
of the answers so far is largest are tried next. Whatever is tried is a valid bound, so stopping
early costs tightness only. Units: seconds, and those of the objective.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import optimize

__all__ = ["Cut", "PriceVector", "raise_bound"]

Array = NDArray[np.float64]

_CLOSE = 1e-7
# No unit of a limit is charged more than so many times the value; past that it cannot be kept.
_DEAREST = 1e4


class PriceVector(NamedTuple):
    """Prices of a second of each resource, of being over each limit, and of the longest period."""

    resources: Array
    limits: Array
    longest: float


class Cut(NamedTuple):
    """An answer: what the goal charges for it, the seconds of each resource that it takes, and by
    which share of itself it is over each limit."""

    charge: float
    resource_s: Array
    over: Array

    def at(self, prices: PriceVector, longest_s: float) -> float:
        """The linear function of this answer."""
        late = prices.longest * longest_s if prices.longest else 0.0
        return float(
            self.charge + prices.resources @ self.resource_s + prices.limits @ self.over - late
        )


def raise_bound(
    answer: Callable[[PriceVector], Cut | None],
    start: PriceVector,
    *,
    period: float,
    longest_s: float,
    most_cuts: int,
    halfway: bool = False,
) -> tuple[float, PriceVector]:
    """The largest bound that was found, and its prices.

    Args:
        answer: the least answer at some prices, None if there is none at all.
        start: prices to begin with.
        period: what the goal charges for a second of the period; resources may cost no more
            together, unless the longest period has a price.
        longest_s: the limit of the period, inf if there is none.
        most_cuts: after so many it is enough.
        halfway: whether to go only half of the way to the next prices, which swings less where
            there are many.

    Returns:
        inf if there is no answer.
    """
    best, best_prices, prices = -math.inf, start, start
    cuts: list[Cut] = []
    for _ in range(most_cuts):
        cut = answer(prices)
        if cut is None:
            return math.inf, prices
        cuts.append(cut)
        value = cut.at(prices, longest_s)
        if value > best:
            best, best_prices = value, prices
        solved = _dearest(cuts, period, longest_s)
        if solved is None:
            break
        most, prices = solved
        if most - best <= _CLOSE * abs(most):
            break
        if halfway:
            prices = PriceVector(
                resources=(prices.resources + best_prices.resources) / 2,
                limits=(prices.limits + best_prices.limits) / 2,
                longest=(prices.longest + best_prices.longest) / 2,
            )
    return max(best, 0.0), best_prices


def _dearest(cuts: list[Cut], period: float, longest_s: float) -> tuple[float, PriceVector] | None:
    """The prices at which the least of some answers is largest, and an upper estimate of the bound.

    None where the programme fails.
    """
    resource_s = np.array([cut.resource_s for cut in cuts])
    over = np.array([cut.over for cut in cuts])
    charge = np.array([cut.charge for cut in cuts])
    unit_s = max(float(resource_s.max(initial=0.0)), 1e-300)
    unit = max(float(charge.max()), period * unit_s, 1e-300)
    num, num_resources, num_limits = len(cuts), resource_s.shape[1], over.shape[1]
    is_limited = math.isfinite(longest_s)
    late = np.full((num, 1), longest_s / unit_s if is_limited else 0.0)
    rows = np.hstack([-resource_s / unit_s, -over, late, np.ones((num, 1))])
    sums = np.concatenate([np.ones(num_resources), np.zeros(num_limits), [-1.0, 0.0]])
    solved = optimize.linprog(
        np.append(np.zeros(num_resources + num_limits + 1), -1.0),
        A_ub=np.vstack([rows, sums]),
        b_ub=np.append(charge / unit, period * unit_s / unit),
        bounds=[(0, None)] * num_resources
        + [(0, _DEAREST)] * num_limits
        + [(0, _DEAREST if is_limited else 0.0), (None, None)],
    )
    if solved.status != 0:
        return None
    found = np.maximum(solved.x[:-1], 0.0)
    resources = found[:num_resources] * (unit / unit_s)
    limits = found[num_resources:-1] * unit
    longest = float(found[-1]) * (unit / unit_s)
    # A programme is solved to a tolerance; the bound holds only within the sum.
    resources = resources * min(1.0, (period + longest) / max(float(resources.sum()), 1e-300))
    prices = PriceVector(resources=resources, limits=limits, longest=longest)
    return float(solved.x[-1]) * unit, prices
