"""The Pareto front of two terms: what no other layout equals in one and beats in the other.

The least of one term, then the least of the other at that price, is a point of the front; the next
one is the same under the limit that the other term must be smaller. So the front is a sequence of
searches, and each point is the answer to a question that a caller could ask. Between meshes it is
finite and can be walked point by point; where replicas share requests in any proportion it is a
curve, and some points of it are told.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Protocol, TypeVar

import numpy as np

from gimlax.planning.objective import TERM_OF_LIMIT, TERMS, Objective
from gimlax.planning.problem import Terms
from gimlax.planning.search import TOLERANCE, Found

_LIMIT_OF_TERM = {term: limit for limit, term in TERM_OF_LIMIT.items()}


class _Answer(Protocol):
    @property
    def terms(self) -> Terms: ...
    @property
    def value(self) -> float: ...


_A = TypeVar("_A", bound=_Answer)


def front(
    goals: tuple[str, str],
    find: Callable[[Objective], Found | None],
    limits: Mapping[str, float],
) -> list[tuple[Objective, Found]]:
    """All points, by the first goal from the least on.

    Args:
        goals: two different TERMS.
        find: the exact search of one problem.
        limits: what every point keeps, by the name of the limit.

    Returns:
        Each point with the objective that it is best for: the first goal, with the other limited.
    """
    first, second = goals
    at = TERMS.index(second)
    points: list[tuple[Objective, Found]] = []
    objective = Objective(goal=first, **limits)  # type: ignore[arg-type]
    while (quickest := find(objective)) is not None:
        found = find(_limited(second, first, quickest.value, limits))
        found = quickest if found is None else found
        asked = _limited(first, second, found.terms[at], limits)
        points.append((asked, replace(found, value=asked.value(found.terms))))
        if found.terms[at] <= 0:
            break
        # Two layouts that differ by less are equally good.
        objective = _limited(first, second, found.terms[at] * (1 - 4 * TOLERANCE), limits)
    return points


def curve(
    goals: tuple[str, str],
    find: Callable[[Objective], _A | None],
    limits: Mapping[str, float],
    num_points: int,
) -> list[tuple[Objective, _A]]:
    """Points of a front, by the first goal from the least on: its ends, and some between them.

    Args:
        goals: two different TERMS.
        find: a search, exact or not.
        limits: what every point keeps.
        num_points: how many questions are asked, at limits of the second goal in equal ratios.

    Returns:
        Each point with its question, less those that another one beats.
    """
    first, second = goals
    at = TERMS.index(second)
    ends = [find(Objective(goal=goal, **limits)) for goal in goals]  # type: ignore[arg-type]
    if ends[0] is None or ends[1] is None:
        return []
    most, least = ends[0].terms[at], ends[1].terms[at]
    levels = np.geomspace(max(most, 1e-100), max(least, 1e-100), num_points)
    asked = [_limited(first, second, float(level) * (1 + 1e-6), limits) for level in levels]
    answers = [(objective, find(objective)) for objective in asked]
    points: list[tuple[Objective, _A]] = []
    best = math.inf
    # From the end on which the first goal is worst: what is no better there is beaten.
    for objective, answer in sorted(
        ((o, a) for o, a in answers if a is not None), key=lambda pair: pair[1].terms[at]
    ):
        if answer.value < best * (1 - 1e-6):
            best = answer.value
            points.append((objective, answer))
    return points[::-1]


def _limited(goal: str, by: str, most: float, limits: Mapping[str, float]) -> Objective:
    """The goal with another term limited to `most`, or to the caller's limit if that is less."""
    most = max(most, 1e-100)
    name = _LIMIT_OF_TERM[by]
    limit = 1 / most if by == "throughput" else most
    if name in limits:
        limit = max(limit, limits[name]) if by == "throughput" else min(limit, limits[name])
    return Objective(goal=goal, **{**limits, name: limit})  # type: ignore[arg-type]
