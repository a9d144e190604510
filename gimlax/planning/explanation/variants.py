"""The same problem with one thing different: fewer meshes, a stage forbidden, other links, prices.

Pure functions from Problem to Problem; whatever they change, a search of the result is exact again.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from gimlax.planning.problem import Problem

__all__ = ["cheaper", "forbidding", "on_meshes", "with_links"]

_PER_MESH = (
    "stage_s",
    "added_bytes",
    "parked_bytes",
    "capacity_bytes",
    "pool",
    "usd_per_s",
    "busy_watts",
    "idle_watts",
)


def on_meshes(problem: Problem, meshes: Sequence[int]) -> Problem:
    """Only these meshes, which are numbered anew in this order."""
    kept = list(meshes)
    return replace(
        problem,
        transfer_s=problem.transfer_s[np.ix_(kept, kept)],
        shared_s=problem.shared_s[:, kept],
        largest_bytes=problem.largest_bytes[:, kept],
        **{name: getattr(problem, name)[kept] for name in _PER_MESH},
    )


def forbidding(problem: Problem, mesh: int, first: int, stop: int) -> Problem:
    """Without the stage `[first, stop)` on this mesh."""
    stage_s = problem.stage_s.copy()
    stage_s[mesh, first, stop] = np.inf
    return replace(problem, stage_s=stage_s)


def with_links(problem: Problem, slower: float, pair: tuple[int, int] | None = None) -> Problem:
    """Transfers that take `slower` times as long: all, or those between two meshes, both ways."""
    transfer_s = problem.transfer_s.copy()
    if pair is None:
        transfer_s *= slower
    else:
        for source, target in (pair, pair[::-1]):
            transfer_s[source, target] *= slower
    return replace(problem, transfer_s=transfer_s)


def cheaper(problem: Problem, meshes: Sequence[int], factor: float) -> Problem:
    """With the price of these meshes times `factor`."""
    usd_per_s = problem.usd_per_s.copy()
    usd_per_s[list(meshes)] *= factor
    return replace(problem, usd_per_s=usd_per_s)
