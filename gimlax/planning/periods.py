"""The best layout that some states allow, by branch and bound over intervals of the period.

The period itself is a maximum, so it is searched by branch and bound over intervals of it: with
sums taken at the lower end of an interval, and loads limited by its upper end, a pass gives a lower
bound of all layouts in between and a layout to compare with. The first interval lies at the
shortest period of all paths, which one more pass tells and mostly some layout has; the rest is
halved, the most promising interval first, until none can hold a better layout (to a part in 10^9).
"""

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from gimlax.planning.deadline import IsLate, OutOfTime, check_time
from gimlax.planning.labels import Dimension
from gimlax.planning.limits import as_dimension, below, cost_at, load_costs, memory_dimensions
from gimlax.planning.objective import Objective
from gimlax.planning.orders import State
from gimlax.planning.paths import Cost, Path, cheapest_path, shortest_period
from gimlax.planning.problem import Array, Problem, Terms, terms_of
from gimlax.planning.relaxed import keeps_limits, path_within

__all__ = ["TOLERANCE", "Found", "PeriodSearch", "keeps"]

# Two layouts whose values differ by less than this share are equally good.
TOLERANCE = 1e-9
_NARROW = 1e-3
_TINY = 1e-200


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """Cuts and the mesh of each stage (by index), with the objective's value and all terms.

    Attributes:
        method: 'exact' if nothing better exists, 'stopped' if time ran out before that was known,
            'local' if there were too many orders of meshes to try all.
        problem: which problem it is a layout of, where several were searched.
        order: which order of the segments, 0 for that of the program.
    """

    cuts: tuple[int, ...]
    meshes: tuple[int, ...]
    value: float
    terms: Terms
    method: str = "exact"
    problem: int = 0
    order: int = 0


class PeriodSearch:
    """One search: what stays the same for all intervals of the period."""

    def __init__(
        self,
        problem: Problem,
        objective: Objective,
        states: tuple[State, ...],
        meshes: Sequence[int] | None,
        is_late: IsLate | None,
    ) -> None:
        self._is_late = is_late
        self._problem = problem
        self._objective = objective
        self._states = states
        self._meshes = meshes
        self._memory = memory_dimensions(problem, meshes)
        self._loads = load_costs(problem, meshes)
        self._weights: Array | None = None
        limits = objective.term_limits
        self._longest_s = limits[1] * (1 + TOLERANCE)
        self._limited = [
            (tuple(float(k == term) for k in range(len(limits))), limits[term])
            for term in (0, 2, 3)
            if math.isfinite(limits[term])
        ]
        # Where nothing depends on the period there is nothing to branch on.
        periodic = [objective.term_weights[term] > 0 for term in (1, 2, 3)]
        self._periodic = any(periodic) or any(math.isfinite(limits[term]) for term in (2, 3))

    def best(self, best: Found | None = None) -> Found | None:
        """The layout of least value, or the one that is given if nothing is better.

        Raises:
            OutOfTime: it was late before any layout was found.
        """
        # (least value, period from, to, whether its end lies just below the best)
        opened = [(0.0, 0.0, self._longest_s, False)]
        if self._periodic:
            # No layout has a shorter period than this, and mostly one has it.
            try:
                least_s = shortest_period(
                    self._states,
                    Cost(stage=self._problem.stage_s, hop=self._problem.transfer_s),
                    self._is_late,
                )
            except OutOfTime:
                if best is None:
                    raise
                return replace(best, method="stopped")
            if math.isinf(least_s) or least_s > self._longest_s:
                return best
            just_above_s = min(least_s * (1 + TOLERANCE / 8), self._longest_s)
            value = self._objective.term_weights[1] * least_s
            opened = [
                (value, least_s, just_above_s, False),
                (value, just_above_s, self._longest_s, False),
            ]
        while opened:
            least, from_s, to_s, leapt = heapq.heappop(opened)
            if best and least >= best.value * (1 - TOLERANCE):
                break
            most = best.value * (1 - TOLERANCE / 2) if best else math.inf
            try:
                answer = self._least(from_s, to_s, least, most)
            except OutOfTime:
                if best is None:
                    raise
                return replace(best, method="stopped")
            if answer is None:
                continue
            path, least = answer
            found = self._found(path)
            if keeps(self._objective, found.terms) and (best is None or found.value < best.value):
                best = found
            if not self._periodic or (best and least >= best.value * (1 - TOLERANCE)):
                continue
            if math.isfinite(to_s) and to_s - from_s <= TOLERANCE / 8 * to_s:
                continue
            # Near the end one question settles it: is anything shorter at all?
            narrow = not leapt and to_s - from_s < _NARROW * to_s
            just_below_s = found.terms.period_s * (1 - TOLERANCE / 4)
            if leap := narrow and from_s < just_below_s < to_s:
                middle_s = just_below_s
            else:
                middle_s = _middle(from_s, to_s, found.terms.period_s)
            heapq.heappush(opened, (least, from_s, middle_s, leap))
            heapq.heappush(opened, (least, middle_s, to_s, False))
        return best

    def _least(
        self, from_s: float, to_s: float, least: float, most: float
    ) -> tuple[Path, float] | None:
        """A layout of least relaxed value among periods of an interval, and that value.

        Args:
            from_s, to_s: the interval.
            least: no layout in it lies below.
            most: layouts above are of no interest.
        """
        check_time(self._is_late)
        allowed = below(self._problem, to_s) if math.isfinite(to_s) else self._problem
        weights = self._objective.term_weights
        cost = cost_at(allowed, weights, from_s, self._meshes)
        base = weights[1] * from_s
        only_period = not (weights[0] or weights[2] or weights[3])
        if only_period:  # of equally good ones the quickest
            cost = Cost(stage=allowed.stage_s, hop=allowed.transfer_s)
        found = cheapest_path(self._states, cost, self._is_late)
        if found is None:
            return None
        path, added = found
        least = max(least, base if only_period else base + added)
        if least > most:
            return None
        dimensions = self._dimensions(allowed, from_s, to_s)
        if keeps_limits(self._states, dimensions, path):
            return path, least
        if only_period:
            answer = self._within(allowed, dimensions)
            return (answer, least) if answer else None
        return self._bisected(allowed, cost, dimensions, base, least, most)

    def _bisected(
        self,
        allowed: Problem,
        cost: Cost,
        dimensions: list[Dimension],
        base: float,
        least: float,
        most: float,
    ) -> tuple[Path, float] | None:
        """The least sum within limits, by asking for one below a value and halving what is open."""
        path: Path | None = None
        impossible, possible = least, most
        leap = True
        while path is None or possible - impossible > TOLERANCE / 4 * possible:
            if path is None:
                limit = possible
            elif leap and possible - impossible < _NARROW * possible:
                # Near the end one question settles it: is anything at all better?
                limit = possible * (1 - TOLERANCE / 8)
            else:
                limit = (possible + impossible) / 2
            asked = dimensions
            if math.isfinite(limit):
                asked = [as_dimension(cost, "value", max(limit - base, _TINY)), *dimensions]
            better = self._within(allowed, asked)
            if better is None:
                if path is None:
                    return None
                impossible = limit
            else:
                path = better
                possible = min(base + _sum(cost, self._states, path), limit)
            leap = not (leap and better is not None)
        return path, max(least, impossible)

    def _within(self, allowed: Problem, dimensions: list[Dimension]) -> Path | None:
        answer = path_within(allowed, self._states, dimensions, self._weights, self._is_late)
        self._weights = answer.weights
        return answer.path

    def _dimensions(self, allowed: Problem, from_s: float, to_s: float) -> list[Dimension]:
        limited = [
            as_dimension(cost_at(allowed, term, from_s, self._meshes), f"limit {term}", limit)
            for term, limit in self._limited
        ]
        loads = [
            as_dimension(load, f"load {index}", to_s)
            for index, load in enumerate(self._loads)
            if math.isfinite(to_s)
        ]
        return limited + loads + self._memory

    def _found(self, path: Path) -> Found:
        meshes = tuple(self._states[state].mesh for state, _ in path)
        cuts = tuple(stop for _, stop in path[:-1])
        terms = terms_of(self._problem, cuts, meshes)
        return Found(cuts=cuts, meshes=meshes, value=self._objective.value(terms), terms=terms)


def keeps(objective: Objective, terms: Terms) -> bool:
    """Whether terms are within all limits, to a part in 10^9."""
    limits = zip(terms, objective.term_limits, strict=True)
    return all(math.isinf(most) or term <= most * (1 + TOLERANCE) for term, most in limits)


def _middle(from_s: float, to_s: float, period_s: float) -> float:
    """Where an interval is cut in two, knowing the period of one layout in it."""
    if math.isinf(to_s):
        return period_s if period_s > from_s else max(2 * from_s, _TINY)
    return (from_s + to_s) / 2


def _sum(cost: Cost, states: tuple[State, ...], path: Path) -> float:
    total, first, last = 0.0, 0, -1
    for state, stop in path:
        mesh = states[state].mesh
        total += float(cost.stage[mesh, first, stop])
        if last >= 0:
            total += float(cost.hop[last, mesh, first])
        first, last = stop, mesh
    return total
