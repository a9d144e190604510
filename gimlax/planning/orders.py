"""In which order meshes may follow each other along the chain, as a small graph of states.

A state is "this mesh runs the current stage, having come from one of those states". For a free
choice, where each mesh holds at most one stage, a state is (set of used meshes, last mesh); for a
sequence fixed by hand it is the position in the sequence, so a mesh may come back. One search then
serves both. Meshes that no cost can tell apart are used in the order of their index only.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gimlax.planning.problem import Problem

# States times segments squared is the work of a search: this many take about 3 s for 160 segments.
MAX_STATES = 50_000


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """One stage on `mesh`, after any of the earlier states `before` (none: it is the first)."""

    mesh: int
    before: tuple[int, ...]
    may_end: bool


def fixed_order(meshes: Sequence[int]) -> tuple[State, ...]:
    """States of a sequence of meshes that is given."""
    last = len(meshes) - 1
    return tuple(
        State(mesh=m, before=() if k == 0 else (k - 1,), may_end=k == last)
        for k, m in enumerate(meshes)
    )


def free_orders(
    problem: Problem, num_stages: int | None, beam: int | None = None
) -> tuple[State, ...] | None:
    """States of every order in which each mesh holds at most one stage.

    Args:
        num_stages: how many stages there must be, or None for any number.
        beam: how many states of each number of stages are kept, the fastest and the largest sets
            of meshes; all of them by default.

    Returns:
        None if there are too many different meshes for an exact search.
    """
    twin_before = _twins(problem)
    reaches = np.any(np.isfinite(problem.transfer_s), axis=2)  # [source, target]
    runs = np.any(np.isfinite(problem.stage_s), axis=(1, 2))
    most = min(problem.num_meshes, problem.num_segments, num_stages or problem.num_meshes)
    states: list[State] = []
    level: dict[tuple[int, int], int] = {}  # (used meshes as bits, last mesh) -> state
    for size in range(1, most + 1):
        before: dict[tuple[int, int], list[int]] = {}
        for mesh in range(problem.num_meshes):
            if not runs[mesh]:
                continue
            twin = twin_before[mesh]
            if size == 1 and twin is None:
                before[1 << mesh, mesh] = []
            for (used, last), state in level.items():
                twin_used = twin is None or used >> twin & 1
                if not used >> mesh & 1 and twin_used and reaches[last, mesh]:
                    before.setdefault((used | 1 << mesh, mesh), []).append(state)
        level = {}
        if beam is not None:
            before = _promising(problem, before, beam)
        for (used, mesh), earlier in before.items():
            level[used, mesh] = len(states)
            may_end = num_stages is None or size == num_stages
            states.append(State(mesh=mesh, before=tuple(earlier), may_end=may_end))
        if beam is None and len(states) > MAX_STATES:
            return None
    return tuple(states)


def _promising(
    problem: Problem, before: dict[tuple[int, int], list[int]], beam: int
) -> dict[tuple[int, int], list[int]]:
    """Half of them by the speed, half by the memory of the meshes that they have used."""
    runs = np.isfinite(problem.stage_s)
    length = np.maximum(
        np.arange(problem.num_segments + 1) - np.arange(problem.num_segments + 1)[:, None], 1
    )
    each_s = np.where(runs, problem.stage_s, 0.0) / length
    speed = 1 / np.maximum(each_s.max(axis=(1, 2)), 1e-30)
    kept: dict[tuple[int, int], list[int]] = {}
    needed_bytes = problem.stage_bytes().max(axis=(1, 2))
    for worth in (speed, np.minimum(problem.capacity_bytes, needed_bytes)):

        def total(key: tuple[int, int], worth: np.ndarray = worth) -> float:
            return float(sum(worth[m] for m in range(problem.num_meshes) if key[0] >> m & 1))

        for key in sorted(before, key=total, reverse=True)[: beam // 2]:
            kept[key] = before[key]
    return kept


def _twins(problem: Problem) -> list[int | None]:
    """For each mesh the nearest earlier one that it can be swapped with at no change, if any."""
    result: list[int | None] = []
    for b in range(problem.num_meshes):
        result.append(next((a for a in range(b - 1, -1, -1) if _swappable(problem, a, b)), None))
    return result


def _swappable(problem: Problem, a: int, b: int) -> bool:
    """Whether nothing tells two meshes apart; what fits on each is in `stage_s`."""
    swap = np.arange(problem.num_meshes)
    swap[[a, b]] = b, a
    pools = [np.flatnonzero(problem.pool == problem.pool[mesh]) for mesh in (a, b)]
    return bool(
        (problem.pool[a] == problem.pool[b] or pools[0].size == pools[1].size == 1)
        and np.array_equal(problem.stage_s[a], problem.stage_s[b])
        and np.array_equal(problem.added_bytes[a], problem.added_bytes[b])
        and np.array_equal(problem.largest_bytes[:, a], problem.largest_bytes[:, b])
        and np.array_equal(problem.parked_bytes[a], problem.parked_bytes[b])
        and np.array_equal(problem.transfer_s, problem.transfer_s[np.ix_(swap, swap)])
        and np.array_equal(problem.shared_s, problem.shared_s[:, swap])
        and all(
            np.array_equal(figure[a], figure[b], equal_nan=True)
            for figure in (problem.usd_per_s, problem.busy_watts, problem.idle_watts)
        )
    )
