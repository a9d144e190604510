"""The cheapest path through states and boundaries when one sum is all that matters.

A path is a list of (state, stop): which mesh runs the next stage, and before which boundary it
stops. Each state costs one (first x stop) minimum, so a pass is a few array operations per state.
"""

from dataclasses import dataclass

import numpy as np

from gimlax.planning.orders import State
from gimlax.planning.problem import Array

Path = list[tuple[int, int]]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Cost:
    """What a sum is made of; inf forbids.

    Attributes:
        stage: [mesh, first, stop]
        hop: [source, target, boundary]
    """

    stage: Array
    hop: Array


def cheapest_path(states: tuple[State, ...], cost: Cost) -> tuple[Path, float] | None:
    """The path of least cost over all segments with its cost, or None if all are forbidden."""
    n = cost.stage.shape[1] - 1
    best = np.full((len(states), n + 1), np.inf)
    entered_from = np.full((len(states), n + 1), -1)
    entered_at = np.zeros((len(states), n + 1), int)
    everywhere = np.arange(n + 1)
    for index, state in enumerate(states):
        entry = np.full(n + 1, np.inf)
        if state.before:
            before = np.array(state.before)
            costs = best[before] + cost.hop[[states[b].mesh for b in state.before], state.mesh]
            choice = costs.argmin(axis=0)
            entry = costs[choice, everywhere]
            entered_from[index] = before[choice]
        else:
            entry[0] = 0.0
        total = entry[:, None] + cost.stage[state.mesh]  # [first, stop]
        at = total.argmin(axis=0)
        entered_at[index] = at
        best[index] = total[at, everywhere]
    ends = [best[i, n] if s.may_end else np.inf for i, s in enumerate(states)]
    if not np.isfinite(min(ends, default=np.inf)):
        return None
    path: Path = []
    index, stop = int(np.argmin(ends)), n
    while index >= 0:
        path.append((index, stop))
        first = int(entered_at[index, stop])
        index, stop = int(entered_from[index, first]), first
    return path[::-1], float(min(ends))


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
