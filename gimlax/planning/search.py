"""The best cut and placement of a chain, exactly, by dynamic programming.

Latency is a sum, so the cheapest way to have run the segments before boundary b and to stand in a
given state (which meshes are used, which one is the last) is all that the rest needs to know: one
pass over the states, each an (n x n) minimum, is exact. Throughput is a minimum of a maximum, so it
is asked as a question, "can every load stay below T?", which is again such a pass, and T is
bisected until no better answer exists (to a part in 10^9). What adds up over several stages, the
load of a shared host, of a mesh or link that a given sequence visits again, the memory of such a
mesh, makes the label of a state a vector: those passes keep the Pareto front (`labels.py`).
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from gimlax.planning.labels import Dimension
from gimlax.planning.orders import State, fixed_order, free_orders
from gimlax.planning.paths import Cost, Path, cheapest_path
from gimlax.planning.problem import Array, Found, Problem, spans, value_s
from gimlax.planning.relaxed import path_within

# Two layouts whose values differ by less than this share are equally good.
TOLERANCE = 1e-9


def search(
    problem: Problem,
    goal: str,
    *,
    cuts: int | Sequence[int] | None = None,
    meshes: Sequence[int] | None = None,
) -> Found | None:
    """Finds the layout with the least value, or None if none is possible.

    Args:
        problem: what everything costs.
        goal: 'latency' or 'throughput'.
        cuts: the boundaries, or how many stages there are, or None for a free choice.
        meshes: the mesh of each stage; may repeat. None lets each mesh hold at most one stage.

    Raises:
        PlanError: if there are too many different meshes to search all orders.
    """
    if cuts is not None and not isinstance(cuts, int):
        problem = _only_these_stages(problem, cuts)
        num_stages = len(cuts) + 1
    else:
        num_stages = cuts
    problem = _that_fit(problem)
    states = free_orders(problem, num_stages) if meshes is None else fixed_order(meshes)
    memory = _memory_dimensions(problem, meshes)
    if goal == "latency":
        if not memory:
            return _found(problem, goal, states, _quickest(problem, states))
        loads = [_latency_dimension(problem)]
    else:
        loads = _load_dimensions(problem, meshes)
    return _bisected(problem, goal, states, loads, memory)


def _bisected(
    problem: Problem,
    goal: str,
    states: tuple[State, ...],
    loads: list[Dimension],
    memory: list[Dimension],
) -> Found | None:
    """The best layout by asking whether there is one below a limit, and halving what is open."""
    weights: Array | None = None

    def below(limit_s: float) -> Found | None:
        nonlocal weights
        allowed = problem if goal == "latency" else _below(problem, limit_s)
        dimensions = [_limited(load, limit_s) for load in loads if np.isfinite(limit_s)] + memory
        if not dimensions:
            return _found(problem, goal, states, _quickest(allowed, states))
        answer = path_within(allowed, states, dimensions, weights)
        weights = answer.weights
        return _found(problem, goal, states, answer.path)

    best = below(np.inf)
    if best is None:
        return None
    impossible_s, leap = 0.0, True
    while best.value_s - impossible_s > TOLERANCE * best.value_s:
        # Near the end one question settles it: is anything at all better than the best?
        leap = leap and best.value_s - impossible_s < 1e-3 * best.value_s
        if leap:
            limit_s = best.value_s * (1 - TOLERANCE / 2)
        else:
            limit_s = (best.value_s + impossible_s) / 2
        better = below(limit_s)
        if better is None:
            impossible_s = limit_s
        else:
            best = better
        leap = not (leap and better is not None)
    return best


def _quickest(problem: Problem, states: tuple[State, ...]) -> Path | None:
    found = cheapest_path(states, Cost(stage=problem.stage_s, hop=problem.transfer_s))
    return found[0] if found else None


def _found(
    problem: Problem, goal: str, states: tuple[State, ...], path: Path | None
) -> Found | None:
    if path is None:
        return None
    meshes = tuple(states[state].mesh for state, _ in path)
    cuts = tuple(stop for _, stop in path[:-1])
    return Found(cuts=cuts, meshes=meshes, value_s=value_s(problem, goal, cuts, meshes))


def _only_these_stages(problem: Problem, cuts: Sequence[int]) -> Problem:
    stage_s = np.full_like(problem.stage_s, np.inf)
    for first, stop in spans(cuts, problem.num_segments):
        stage_s[:, first, stop] = problem.stage_s[:, first, stop]
    return replace(problem, stage_s=stage_s)


def _that_fit(problem: Problem) -> Problem:
    fits = problem.stage_bytes() <= problem.capacity_bytes[:, None, None]
    return replace(problem, stage_s=np.where(fits, problem.stage_s, np.inf))


def _below(problem: Problem, limit_s: float) -> Problem:
    """Without the stages and hand-overs that alone exceed the limit."""
    return replace(
        problem,
        stage_s=np.where(problem.stage_s <= limit_s, problem.stage_s, np.inf),
        transfer_s=np.where(problem.transfer_s <= limit_s, problem.transfer_s, np.inf),
    )


def _latency_dimension(problem: Problem) -> Dimension:
    return Dimension(
        stage=np.where(np.isfinite(problem.stage_s), problem.stage_s, 0.0),
        hop=np.where(np.isfinite(problem.transfer_s), problem.transfer_s, 0.0),
        counts_to="latency",
    )


def _memory_dimensions(problem: Problem, meshes: Sequence[int] | None) -> list[Dimension]:
    """What memory depends on where several stages draw on one and it could bind."""
    usable = range(problem.num_meshes) if meshes is None else meshes
    repeated = _repeated(meshes or ())
    most_largest = float(problem.largest_bytes.max(axis=(1, 2), initial=0.0).sum())
    no_hop = np.zeros_like(problem.transfer_s)
    dimensions: list[Dimension] = []
    for pool in np.unique(problem.pool):
        members = [m for m in np.flatnonzero(problem.pool == pool) if m in usable]
        limit = problem.capacity_bytes[problem.pool == pool].max()
        most_bytes = problem.added_bytes[0, -1] + len(members) * most_largest
        single = len(members) <= 1 and not set(members) & set(repeated)
        if single or most_bytes <= limit:
            continue
        stages = [np.zeros_like(problem.stage_s)]
        for mesh in members:
            stages[0][mesh] = problem.added_bytes
            if mesh not in repeated:
                stages[0][mesh] += problem.largest_bytes.sum(axis=0)
                continue
            for term in problem.largest_bytes:
                stages.append(np.zeros_like(problem.stage_s))
                stages[-1][mesh] = term
        for index, stage in enumerate(stages):
            dimensions.append(
                Dimension(
                    stage=stage,
                    hop=no_hop,
                    counts_to=f"memory pool {pool}",
                    limit=float(limit),
                    largest=index > 0,
                )
            )
    return dimensions


def _load_dimensions(problem: Problem, meshes: Sequence[int] | None) -> list[Dimension]:
    """The loads that add up over several stages; all others are limited stage by stage."""
    no_hop = np.zeros_like(problem.transfer_s)
    loads: list[tuple[Array, Array]] = [
        (np.where(np.isfinite(problem.stage_s), shared, 0.0), no_hop) for shared in problem.shared_s
    ]
    for mesh in _repeated(meshes or ()):
        stage = np.zeros_like(problem.stage_s)
        stage[mesh] = np.where(np.isfinite(problem.stage_s[mesh]), problem.stage_s[mesh], 0.0)
        loads.append((stage, no_hop))
    links = list(zip(meshes[:-1], meshes[1:], strict=True)) if meshes else []
    for link in sorted({link for link in links if links.count(link) > 1}):
        hop = np.zeros_like(no_hop)
        hop[link] = np.where(np.isfinite(problem.transfer_s[link]), problem.transfer_s[link], 0.0)
        if hop.any():
            loads.append((np.zeros_like(problem.stage_s), hop))
    names = [f"load {index}" for index in range(len(loads))]
    return [
        Dimension(stage=stage, hop=hop, counts_to=name)
        for index, (name, (stage, hop)) in enumerate(zip(names, loads, strict=True))
        if not any(
            (stage <= other).all()
            and (hop <= other_hop).all()
            # Of two equal loads the first is kept.
            and (k < index or not ((stage == other).all() and (hop == other_hop).all()))
            for k, (other, other_hop) in enumerate(loads)
            if k != index
        )
    ]


def _limited(load: Dimension, limit_s: float) -> Dimension:
    # Rounded far below TOLERANCE, so that equal sums in another order merge.
    return replace(load, limit=limit_s * (1 + 1e-12), quantum=limit_s * 1e-13)


def _repeated(meshes: Sequence[int]) -> list[int]:
    return sorted({m for m in meshes if list(meshes).count(m) > 1})
