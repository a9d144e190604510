"""The same problem with one thing different: fewer meshes, a stage forbidden, other links, prices.

Pure functions from Problem to Problem; whatever they change, a search of the result is exact again.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from gimlax.planning.problem import Problem

__all__ = ["cheaper", "forbidding", "with_links"]


def forbidding(problem: Problem, meshes: NDArray[np.bool_], first: int, stop: int) -> Problem:
    """Without the stage `[first, stop)` on these meshes. [mesh]"""
    stage_s = problem.stage_s.copy()
    stage_s[meshes, first, stop] = np.inf
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
