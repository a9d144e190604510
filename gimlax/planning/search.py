"""The best cut and placement of a chain, exactly, by dynamic programming.

For layouts of one period every term of an objective is a sum over stages and hand-overs, and the
cheapest way to have run the segments before boundary b and to stand in a given state (which meshes
are used, which one is the last) is all that the rest needs to know: one pass over the states, each
an (n x n) minimum, is exact. What adds up beside it (the load of a shared host, the memory of a
mesh that comes back, a limit on another term) makes the label of a state a vector (`labels.py`).

The period itself is a maximum, and is searched by intervals (`periods.py`).
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from gimlax.planning.deadline import IsLate, OutOfTime
from gimlax.planning.limits import only_these_stages, that_fit
from gimlax.planning.objective import Objective
from gimlax.planning.orders import State, fixed_order, free_orders
from gimlax.planning.periods import TOLERANCE, Found, PeriodSearch, keeps
from gimlax.planning.problem import Problem, Terms, on_meshes, terms_of
from gimlax.planning.solvers.local import improve

__all__ = ["TOLERANCE", "Found", "keeps", "search", "search_all"]

_BEAM = 120  # states per number of stages, where not all orders can be tried
_TRIES = 300


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
    found = PeriodSearch(
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
