"""More tokens per second than this pass no layout of machines over layers.

Prices of machines prove that a rate is impossible (`cover_sets.py`): by them machines may be used
in fractions. Where that proves too little, cases are told apart by how many machines of a kind hold
at least k layers: at most n, or at least n + 1, and each case is proven on its own by prices, with
n and k chosen where the fractions are worst. No layout is looked at.
"""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from gimlax.planning.problem import Array
from gimlax.planning.solvers.cover_sets import Cap, CoverSets, Holders

__all__ = ["CoverBound", "bound_tokens_per_s", "tightened_tokens_per_s"]

_GRIDS = ((420, 4e-3), (2520, 5e-4))  # steps of a grid, and how near to its best bound
_FINEST = 27_720  # for layers with few holders, where it costs little
_FEW_HOLDERS = 3
_JUST_ABOVE = 1 + 1e-7
_MOST_OPEN = 200  # cases that are told apart at a time


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CoverBound:
    """What no layout exceeds, and the prices that led there.

    Attributes:
        tokens_per_s: the bound; 0 if no layout passes any.
        prices: of a machine of each kind, in layers. [kind]
        sets: cheapest sets of holders of a layer, where prices were as good as they can be.
    """

    tokens_per_s: float
    prices: Array
    sets: tuple[Holders, ...]


def bound_tokens_per_s(
    num_layers: int,
    counts: Mapping[str, int],
    rates: Mapping[str, Array],
    *,
    time_limit_s: float = math.inf,
    clock: Callable[[], float] = time.perf_counter,
) -> CoverBound:
    """Tokens/s that no layout exceeds, by prices of machines alone.

    Args:
        num_layers: to be covered.
        counts: machines of each kind.
        rates: tokens/s of a machine that holds k layers, at index k - 1.
        time_limit_s: when it is over, the best bound so far has to do.
        clock: what the limit is measured by, in seconds.
    """
    end = clock() + time_limit_s
    sets = CoverSets(num_layers, counts, rates)
    high, least = sets.everything(), sets.least()  # below the least one machine does for a layer
    for grid, tolerance in _GRIDS:
        step, allowed = tolerance, 0.0
        while high > max(allowed * (1 + tolerance), least) and clock() < end:
            middle = (allowed + high) / 2 if allowed else max(high * (1 - step), least)
            most = sets.most_below(middle, grid)
            if most < middle:  # growing steps while rates are impossible, then halves
                high, step = most, min(step * 2, 0.5)
            else:
                allowed = middle
            if allowed == least:
                break
    if high <= least and (not least or sets.most_below(least, _GRIDS[-1][0]) < least):
        high = 0.0
    return CoverBound(tokens_per_s=high, prices=sets.prices, sets=tuple(sets.tight))


def tightened_tokens_per_s(
    num_layers: int,
    counts: Mapping[str, int],
    rates: Mapping[str, Array],
    known: CoverBound,
    reached: float,
    *,
    tolerance: float = 1e-3,
    time_limit_s: float = math.inf,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """A bound that is at most the known one, with whole machines.

    Args:
        num_layers: to be covered.
        counts: machines of each kind.
        rates: tokens/s of a machine that holds k layers, at index k - 1.
        known: the bound by prices alone.
        reached: tokens/s that are known to be possible; whether more is, is looked at first.
        tolerance: how near to the best bound of this kind, as a share of it.
        time_limit_s: when it is over, the best bound so far has to do.
        clock: what the limit is measured by, in seconds.
    """
    end = clock() + time_limit_s
    sets = CoverSets(num_layers, counts, rates, known.sets)
    number = [counts[kind] for kind in rates]
    few = max(map(len, known.sets), default=0) <= _FEW_HOLDERS
    grid = _FINEST if few else _GRIDS[-1][0]

    def impossible(tokens_per_s: float) -> bool:
        return _impossible(sets, tokens_per_s, grid, number, lambda: clock() > end)

    high, just_above = known.tokens_per_s, reached * _JUST_ABOVE
    if high <= just_above or impossible(just_above):
        return min(high, just_above)
    open_ = just_above
    while high > open_ * (1 + tolerance) and clock() < end:
        middle = (open_ + high) / 2
        open_, high = (open_, middle) if impossible(middle) else (middle, high)
    return high


def _impossible(
    sets: CoverSets, tokens_per_s: float, grid: int, number: list[int], over: Callable[[], bool]
) -> bool:
    """Whether no whole numbers of machines with at least k layers allow this rate."""
    cases: list[tuple[Cap, ...]] = [()]
    while cases:
        if over() or len(cases) > _MOST_OPEN:
            return False
        caps = cases.pop()
        if sets.most_below(tokens_per_s, grid, caps) < tokens_per_s:
            continue
        split = _worst_fraction(sets)
        if split is None:
            return False
        kind, k, few = split
        cases.append((*caps, Cap(kind, k, math.inf, few)))
        cases.append((*caps, Cap(kind, 1, k - 1, number[kind] - few - 1)))
    return True


def _worst_fraction(sets: CoverSets) -> tuple[int, int, int] | None:
    """Kind, k and n: the last sets use between n and n + 1 machines with at least k layers."""
    worst, split = 1e-4, None
    used = sets.fractions()
    for kind in {kind for kind, _ in used}:
        machines = 0.0
        for k in sorted((k for i, k in used if i == kind), reverse=True):
            machines += used[kind, k]
            few = math.floor(machines + 1e-9)
            fraction = min(machines - few, few + 1 - machines) * float(sets.prices[kind])
            if fraction > worst:
                worst, split = fraction, (kind, k, few)
    return split
