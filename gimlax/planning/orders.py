"""In which order meshes may follow each other along the chain, as a small graph of states.

A state is "this mesh runs the current stage, having come from one of those states". For a free
choice, where each mesh holds at most one stage, a state is (set of used meshes, last mesh); for a
sequence fixed by hand it is the position in the sequence, so a mesh may come back. One search then
serves both. Meshes that no cost can tell apart are used in the order of their index only.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gimlax.planning.deadline import IsLate, check_time
from gimlax.planning.problem import Array, Problem

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
    problem: Problem,
    num_stages: int | None,
    beam: int | None = None,
    is_late: IsLate | None = None,
) -> tuple[State, ...] | None:
    """States of every order in which each mesh holds at most one stage.

    Args:
        num_stages: how many stages there must be, or None for any number.
        beam: how many states of each number of stages are kept, the fastest and the largest sets
            of meshes; all of them by default.
        is_late: asked before each state that others may follow.

    Returns:
        None if there are too many different meshes for an exact search.

    Raises:
        OutOfTime: it is late.
    """
    twin_before = twins(problem, is_late)
    runs = np.any(np.isfinite(problem.stage_s), axis=(1, 2))
    reaches = np.any(np.isfinite(problem.transfer_s), axis=2) & runs  # [source, target]
    np.fill_diagonal(reaches, False)
    followers = [np.flatnonzero(row).tolist() for row in reaches]
    most = min(problem.num_meshes, problem.num_segments, num_stages or problem.num_meshes)
    worths = None if beam is None else _worths(problem)
    states: list[State] = []
    level: dict[tuple[int, int], int] = {}  # (used meshes as bits, last mesh) -> state
    before: dict[tuple[int, int], list[int]] = {
        (1 << mesh, mesh): []
        for mesh in range(problem.num_meshes)
        if runs[mesh] and twin_before[mesh] is None
    }
    for size in range(1, most + 1):
        if worths is not None and beam is not None:
            before = _promising(worths, before, beam)
        level = {}
        for (used, mesh), earlier in before.items():
            level[used, mesh] = len(states)
            may_end = num_stages is None or size == num_stages
            states.append(State(mesh=mesh, before=tuple(earlier), may_end=may_end))
        before = {}
        for (used, last), state in level.items() if size < most else ():
            check_time(is_late)
            for mesh in followers[last]:
                twin = twin_before[mesh]
                if not used >> mesh & 1 and (twin is None or used >> twin & 1):
                    before.setdefault((used | 1 << mesh, mesh), []).append(state)
            if beam is None and len(states) + len(before) > MAX_STATES:
                return None
    return tuple(states)


def _worths(problem: Problem) -> tuple[Array, Array]:
    """How fast meshes are, and how much of the model they hold. [mesh] each"""
    runs = np.isfinite(problem.stage_s)
    length = np.maximum(
        np.arange(problem.num_segments + 1) - np.arange(problem.num_segments + 1)[:, None], 1
    )
    each_s = np.where(runs, problem.stage_s, 0.0) / length
    speed = 1 / np.maximum(each_s.max(axis=(1, 2)), 1e-30)
    needed_bytes = problem.stage_bytes().max(axis=(1, 2))
    return speed, np.minimum(problem.capacity_bytes, needed_bytes)


def _promising(
    worths: Sequence[Array], before: dict[tuple[int, int], list[int]], beam: int
) -> dict[tuple[int, int], list[int]]:
    """Half of them by the speed, half by the memory of the meshes that they have used."""
    kept: dict[tuple[int, int], list[int]] = {}
    for worth in worths:
        totals = {used: _total(worth, used) for used in {used for used, _ in before}}
        for key in sorted(before, key=lambda key: totals[key[0]], reverse=True)[: beam // 2]:
            kept[key] = before[key]
    return kept


def _total(worth: Array, used: int) -> float:
    """Of the meshes whose bits are set, in the order of their index."""
    total = 0.0
    while used:
        lowest = used & -used
        total += float(worth[lowest.bit_length() - 1])
        used ^= lowest
    return total


def twins(problem: Problem, is_late: IsLate | None = None) -> list[int | None]:
    """For each mesh the nearest earlier one that it can be swapped with at no change, if any.

    To be swappable is an equivalence, so a mesh is compared with one of each sort only.
    """
    result: list[int | None] = []
    sorts: dict[bytes, list[int]] = {}  # by all figures but links: the last of each
    sent_s = problem.transfer_s[:, :, problem.num_segments // 2]
    alone = np.bincount(problem.pool, minlength=problem.num_meshes)[problem.pool] == 1
    for mesh in range(problem.num_meshes):
        check_time(is_late)
        latest = sorts.setdefault(_figures(problem, mesh, alone), [])
        # Rows of one boundary tell most apart at once: twins differ at each other only.
        differ = (sent_s[latest] != sent_s[mesh]).sum(axis=1)
        of = next(
            (k for k in np.flatnonzero(differ <= 2) if _swappable(problem, latest[k], mesh)), None
        )
        result.append(None if of is None else latest[of])
        if of is None:
            latest.append(mesh)
        else:
            latest[of] = mesh
    return result


def _figures(problem: Problem, mesh: int, alone: NDArray[np.bool_]) -> bytes:
    """A digest of all that tells meshes apart beside links; what fits on each is in `stage_s`."""
    digest = hashlib.blake2b()
    for figure in (
        -1 if alone[mesh] else problem.pool[mesh],
        problem.stage_s[mesh],
        problem.added_bytes[mesh],
        problem.largest_bytes[:, mesh],
        problem.parked_bytes[mesh],
        problem.shared_s[:, mesh],
        problem.usd_per_s[mesh],
        problem.busy_watts[mesh],
        problem.idle_watts[mesh],
    ):
        digest.update(np.asarray(figure).tobytes())
    return digest.digest()


def _swappable(problem: Problem, a: int, b: int) -> bool:
    """Whether links are the same if two meshes that are equal otherwise change places."""
    others = np.arange(problem.num_meshes)
    others[[a, b]] = b, a
    return np.array_equal(problem.transfer_s[a][others], problem.transfer_s[b]) and np.array_equal(
        problem.transfer_s[others, a], problem.transfer_s[:, b]
    )
