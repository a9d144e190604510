"""The best cut and placement of a chain, exactly, by dynamic programming.

For layouts of one period every term of an objective is a sum over stages and hand-overs, and the
cheapest way to have run the segments before boundary b and to stand in a given state (which meshes
are used, which one is the last) is all that the rest needs to know: one pass over the states, each
an (n x n) minimum, is exact. What adds up beside it (the load of a shared host, the memory of a
mesh that comes back, a limit on another term) makes the label of a state a vector (`labels.py`).

The period itself is a maximum, so it is searched by branch and bound over intervals of it: with
sums taken at the lower end of an interval, and loads limited by its upper end, a pass gives a lower
bound of all layouts in between and a layout to compare with. The first interval lies at the
shortest period of all paths, which one more pass tells and mostly some layout has; the rest is
halved, the most promising interval first, until none can hold a better layout (to a part in 10^9).
"""

import heapq
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from gimlax.planning.deadline import IsLate, OutOfTime, check_time
from gimlax.planning.labels import Dimension
from gimlax.planning.limits import (
    as_dimension,
    below,
    cost_at,
    load_costs,
    memory_dimensions,
    only_these_stages,
    that_fit,
)
from gimlax.planning.objective import Objective
from gimlax.planning.orders import State, fixed_order, free_orders
from gimlax.planning.paths import Cost, Path, cheapest_path, shortest_period
from gimlax.planning.problem import Array, Problem, Terms, on_meshes, terms_of
from gimlax.planning.relaxed import keeps_limits, path_within
from gimlax.planning.solvers.local import improve

# Two layouts whose values differ by less than this share are equally good.
TOLERANCE = 1e-9
_NARROW = 1e-3
_TINY = 1e-200
_BEAM = 120  # states per number of stages, where not all orders can be tried
_TRIES = 300


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


def search(
    problem: Problem,
    objective: Objective,
    *,
    cuts: int | Sequence[int] | None = None,
    meshes: Sequence[int] | None = None,
    is_late: IsLate | None = None,
) -> Found | None:
    """Finds the layout with the least value, or None if none is possible.

    Where all of the chain on one mesh is an answer, the best of these is known before anything is
    searched, so that time cannot run out without an answer.

    Args:
        problem: what everything costs; what the objective looks at has to be known of all meshes.
        objective: what is minimised, and the limits.
        cuts: the boundaries, or how many stages there are, or None for a free choice.
        meshes: the mesh of each stage; may repeat. None lets each mesh hold at most one stage.
        is_late: asked now and then; once it is late the best layout so far is the answer.

    Raises:
        OutOfTime: it was late before any layout was found.
    """
    if cuts is not None and not isinstance(cuts, int):
        problem = only_these_stages(problem, cuts)
        num_stages = len(cuts) + 1
    else:
        num_stages = cuts
    problem = that_fit(problem)
    if meshes is not None:
        return _searched(problem, objective, fixed_order(meshes), meshes, is_late)
    single = _single(problem, objective) if num_stages in (None, 1) else None
    try:
        states = free_orders(problem, num_stages, is_late=is_late)
        if states is None:
            return _near(problem, objective, num_stages, single, is_late)
        return _searched(problem, objective, states, None, is_late, single)
    except OutOfTime:
        if single is None:
            raise
        return replace(single, method="stopped")


def search_all(
    problems: Sequence[Problem], find: Callable[[Problem], Found | None]
) -> Found | None:
    """The best layout of several problems; the first one of equally good ones.

    Args:
        problems: alternatives.
        find: searches one of them.

    Raises:
        OutOfTime: `find` ran out of time before any layout was found.
    """
    best: Found | None = None
    stopped = False
    for index, problem in enumerate(problems):
        try:
            found = find(problem)
        except OutOfTime:
            stopped = True
            continue
        stopped = stopped or (found is not None and found.method == "stopped")
        if found is not None and (best is None or found.value < best.value * (1 - TOLERANCE)):
            best = replace(found, problem=index)
    if best is None and stopped:
        raise OutOfTime
    return replace(best, method="stopped") if best and stopped else best


def _single(problem: Problem, objective: Objective) -> Found | None:
    """The best layout of one stage; of equally good ones the quickest."""
    best: tuple[float, float, int] | None = None
    n = problem.num_segments
    for mesh in np.flatnonzero(np.isfinite(problem.stage_s[:, 0, n])).tolist():
        alone_s = float(problem.stage_s[mesh, 0, n])
        period_s = max(alone_s, float(problem.shared_s[:, mesh, 0, n].max(initial=0.0)))
        waits_s = period_s - alone_s
        terms = Terms(
            latency_s=alone_s,
            period_s=period_s,
            usd=float(problem.usd_per_s[mesh]) * period_s,
            joules=float(problem.busy_watts[mesh] * alone_s + problem.idle_watts[mesh] * waits_s),
        )
        found = (objective.value(terms), alone_s, mesh)
        if keeps(objective, terms) and (best is None or found < best):
            best = found
    if best is None:
        return None
    terms = terms_of(problem, (), best[2:])
    return Found(cuts=(), meshes=best[2:], value=objective.value(terms), terms=terms)


def _searched(
    problem: Problem,
    objective: Objective,
    states: tuple[State, ...],
    meshes: Sequence[int] | None,
    is_late: IsLate | None,
    single: Found | None = None,
) -> Found | None:
    """The best layout that these states allow, or the best one on a single mesh.

    Meshes that are of no use are left out of all arrays: those of no state, and of a free choice
    those that neither follow nor are followed, since `single` has looked at them.
    """
    used = {state.mesh for state in states}
    if meshes is None:
        later = [(states[k].mesh, state.mesh) for state in states for k in state.before]
        used = {mesh for pair in later for mesh in pair}
    kept = sorted(used)
    if not kept:
        return single
    number = {mesh: index for index, mesh in enumerate(kept)}
    capacity_bytes = np.array(
        [problem.capacity_bytes[problem.pool == problem.pool[mesh]].max() for mesh in kept]
    )
    found = _Search(
        replace(on_meshes(problem, kept), capacity_bytes=capacity_bytes),
        objective,
        _renumbered(states, number),
        None if meshes is None else [number[mesh] for mesh in meshes],
        is_late,
    ).best(single)
    if found is None:
        return None
    if single is not None and not found.cuts:
        return replace(single, method=found.method)
    return replace(found, meshes=tuple(kept[mesh] for mesh in found.meshes))


def _renumbered(states: tuple[State, ...], number: dict[int, int]) -> tuple[State, ...]:
    """States of the meshes that have a number, by that number."""
    at: dict[int, int] = {}
    for index, state in enumerate(states):
        if state.mesh in number:
            at[index] = len(at)
    return tuple(
        State(
            mesh=number[states[index].mesh],
            before=tuple(at[earlier] for earlier in states[index].before),
            may_end=states[index].may_end,
        )
        for index in at
    )


def _near(
    problem: Problem,
    objective: Objective,
    num_stages: int | None,
    single: Found | None,
    is_late: IsLate | None,
) -> Found | None:
    """A good layout: the best of some orders of meshes, then of those near it."""
    states = free_orders(problem, num_stages, beam=_BEAM, is_late=is_late)
    assert states is not None
    start = _searched(problem, objective, states, None, is_late, single)
    if start is None:
        return None
    seen = {start.meshes: start}
    stopped = start.method == "stopped"

    def solve(order: tuple[int, ...]) -> float | None:
        nonlocal stopped
        try:
            found = _searched(problem, objective, fixed_order(order), order, is_late)
        except OutOfTime:
            found = None
            stopped = True
        if found is not None:
            seen[order] = found
            stopped = stopped or found.method == "stopped"
        return found and found.value

    best = improve(
        start.meshes,
        start.value,
        solve,
        problem.num_meshes,
        keep_length=num_stages is not None,
        most_tries=_TRIES,
        is_late=lambda: stopped,
    )
    return replace(seen[best], method="stopped" if stopped else "local")


class _Search:
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
