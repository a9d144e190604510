"""The cheapest path through states and boundaries when one sum is all that matters.

A path is a list of (state, stop): which mesh runs the next stage, and before which boundary it
stops. Each state costs one (first x stop) minimum, taken for many states at once.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gimlax.planning.deadline import IsLate, check_time
from gimlax.planning.orders import State
from gimlax.planning.problem import Array

Path = list[tuple[int, int]]
Indices = NDArray[np.int_]

_MOST_ENTRIES = 1 << 17  # of an array of many states: a megabyte, which caches hold


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Cost:
    """What a sum is made of; inf forbids.

    Attributes:
        stage: [mesh, first, stop]
        hop: [source, target, boundary]
    """

    stage: Array
    hop: Array


def cheapest_path(
    states: tuple[State, ...], cost: Cost, is_late: IsLate | None = None
) -> tuple[Path, float] | None:
    """The path of least cost over all segments with its cost, or None if all are forbidden.

    Raises:
        OutOfTime: it is late, which is asked before each array operation.
    """
    n = cost.stage.shape[1] - 1
    best = np.full((len(states), n + 1), np.inf)
    mesh_of = np.array([state.mesh for state in states], int)
    for mesh, alike in _alike(states, n):
        check_time(is_late)
        entry = _entry(mesh, np.array([states[k].before for k in alike], int), best, mesh_of, cost)
        best[alike] = (entry[:, :, None] + cost.stage[mesh]).min(axis=1)
    ends = [best[i, n] if s.may_end else np.inf for i, s in enumerate(states)]
    if not np.isfinite(min(ends, default=np.inf)):
        return None
    # Only minima were kept: how they came about is asked again along the one path that is told.
    path: Path = []
    index, stop = int(np.argmin(ends)), n
    while True:
        path.append((index, stop))
        state = states[index]
        before = np.array([state.before], int)
        entry = _entry(state.mesh, before, best, mesh_of, cost)[0]
        stop = int((entry + cost.stage[state.mesh, :, stop]).argmin())
        if not state.before:
            return path[::-1], float(min(ends))
        hops = cost.hop[mesh_of[before[0]], state.mesh, stop]
        index = state.before[int((best[before[0], stop] + hops).argmin())]


def shortest_period(states: tuple[State, ...], cost: Cost, is_late: IsLate | None = None) -> float:
    """The least of what the longest stage or hop of a path takes, inf if all are forbidden.

    Raises:
        OutOfTime: it is late, which is asked before each array operation.
    """
    n = cost.stage.shape[1] - 1
    best = np.full((len(states), n + 1), np.inf)
    mesh_of = np.array([state.mesh for state in states], int)
    for mesh, alike in _alike(states, n):
        check_time(is_late)
        before = np.array([states[k].before for k in alike], int)
        if before.shape[1]:
            entry = np.maximum(best[before], cost.hop[mesh_of[before], mesh]).min(axis=1)
        else:
            entry = np.full((len(alike), n + 1), np.inf)
            entry[:, 0] = 0.0
        best[alike] = np.maximum(entry[:, :, None], cost.stage[mesh]).min(axis=1)
    return min((float(best[i, n]) for i, s in enumerate(states) if s.may_end), default=np.inf)


def _alike(states: tuple[State, ...], num_segments: int) -> Iterator[tuple[int, list[int]]]:
    """States of one mesh with as many before them, all of which come earlier, with the mesh."""
    most = max(_MOST_ENTRIES // (num_segments + 1) ** 2, 1)
    begun, groups = 0, dict[tuple[int, int], list[int]]()
    for index in range(len(states) + 1):
        if index == len(states) or max(states[index].before, default=-1) >= begun:
            for (mesh, _), alike in groups.items():
                for first in range(0, len(alike), most):
                    yield mesh, alike[first : first + most]
            begun, groups = index, {}
        if index < len(states):
            key = (states[index].mesh, len(states[index].before))
            groups.setdefault(key, []).append(index)


def _entry(mesh: int, before: Indices, best: Array, mesh_of: Indices, cost: Cost) -> Array:
    """Least costs with which states `before` [state, earlier] begin a stage. [state, boundary]"""
    if not before.shape[1]:
        entry = np.full((len(before), best.shape[1]), np.inf)
        entry[:, 0] = 0.0
        return entry
    return (best[before] + cost.hop[mesh_of[before], mesh]).min(axis=1)


def cost_to_go(states: tuple[State, ...], cost: Cost) -> Array:
    """Least cost of all that follows when a state's stage has stopped at a boundary.

    Returns:
        [state, boundary], inf where the end cannot be reached.
    """
    n = cost.stage.shape[1] - 1
    to_go = np.full((len(states), n + 1), np.inf)
    to_go[[s.may_end for s in states], n] = 0.0
    for index in range(len(states) - 1, -1, -1):
        state = states[index]
        if state.before:
            entry = (cost.stage[state.mesh] + to_go[index]).min(axis=1)  # [first]
            before = np.array(state.before)
            hops = cost.hop[[states[b].mesh for b in state.before], state.mesh]
            to_go[before] = np.minimum(to_go[before], hops + entry)
    return to_go
