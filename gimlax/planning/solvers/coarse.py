"""A graph made coarser where it has more down-sets than can be looked at: two ways, two claims.

Many small blocks (masks, shapes, embeddings of a time step) that could go to any device multiply
the down-sets and hardly change a load. *Joined* to the only block that follows or precedes them,
they leave a graph whose splits are splits of the whole one: the best of them is a good split.
*Weightless*, they leave a graph in which no load is larger than before: its best split bounds all.
"""

from collections import defaultdict
from dataclasses import replace

import numpy as np

from gimlax.planning.solvers.dag import Array, DagProblem


def joined(problem: DagProblem, share: float) -> DagProblem:
    """Small colours share a device with their only neighbour on one side.

    Args:
        problem: the graph.
        share: colours are small that take this part of all accelerator seconds together.
    """
    names, group = np.unique(problem.colour, return_inverse=True)
    seconds = np.bincount(group, problem.accelerator_s).astype(float)
    small = _smallest(seconds, share * seconds.sum())
    small &= np.bincount(group, ~problem.supported) == 0
    place = {name: index for index, name in enumerate(names.tolist())}
    before: dict[int, set[int]] = defaultdict(set)
    after: dict[int, set[int]] = defaultdict(set)
    for first, second in problem.ordering():
        after[place[first]].add(place[second])
        before[place[second]].add(place[first])
    host = list(range(len(names)))
    todo = [int(index) for index in np.flatnonzero(small)]
    while todo:
        index = todo.pop()
        if host[index] != index:
            continue
        near = next((side[index] for side in (after, before) if len(side[index]) == 1), None)
        if near is None:
            continue
        (other,) = near
        host[index] = other
        touched = before[index] | after[index]
        for side, opposite in ((before, after), (after, before)):
            for neighbour in side.pop(index, set()):
                opposite[neighbour].discard(index)
                if neighbour != other:
                    opposite[neighbour].add(other)
                    side[other].add(neighbour)
        todo += [neighbour for neighbour in touched if small[neighbour]]

    def last(index: int) -> int:
        while host[index] != index:
            index = host[index]
        return index

    return replace(problem, colour=np.array([last(index) for index in group.tolist()], int))


def weightless(problem: DagProblem, share: float) -> DagProblem:
    """Small colours and outputs take no time, and colours without time no memory.

    Args:
        problem: the graph.
        share: what is left out takes at most this part of all accelerator seconds together.
    """
    _, group = np.unique(problem.colour, return_inverse=True)
    seconds = np.bincount(group, problem.accelerator_s).astype(float)
    total_s = share * seconds.sum() / 2
    light = _smallest(seconds, total_s)[group]
    return replace(
        problem,
        accelerator_s=np.where(light, 0.0, problem.accelerator_s),
        cpu_s=np.where(light, 0.0, problem.cpu_s),
        num_bytes=np.where(light, 0.0, problem.num_bytes),
        supported=problem.supported | light,
        output_s=np.where(_smallest(problem.output_s, total_s), 0.0, problem.output_s),
    )


def _smallest(figures: Array, total: float) -> np.ndarray:
    """The smallest of these figures that add up to at most so much."""
    order = np.argsort(figures, kind="stable")
    result = np.zeros(len(figures), bool)
    result[order[np.cumsum(figures[order]) <= total]] = True
    return result
