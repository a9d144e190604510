"""The Pareto front of two terms: what no other layout equals in one and beats in the other.

The least of one term, then the least of the other at that price, is a point of the front; the next
one is the same under the limit that the other term must be smaller. So the front is a sequence of
exact searches, and each point is the answer to a question that a caller could ask.
"""

from collections.abc import Callable
from dataclasses import replace

from gimlax.planning.objective import TERM_OF_LIMIT, TERMS, Objective
from gimlax.planning.search import TOLERANCE, Found

_LIMIT_OF_TERM = {term: limit for limit, term in TERM_OF_LIMIT.items()}


def front(
    goals: tuple[str, str], find: Callable[[Objective], Found | None]
) -> list[tuple[Objective, Found]]:
    """All points, by the first goal from the least on.

    Args:
        goals: two different TERMS.
        find: the exact search of one problem.

    Returns:
        Each point with the objective that it is best for: the first goal, with the other limited.
    """
    first, second = goals
    at = TERMS.index(second)
    points: list[tuple[Objective, Found]] = []
    objective = Objective(goal=first)
    while (quickest := find(objective)) is not None:
        found = find(_limited(second, first, quickest.value))
        found = quickest if found is None else found
        asked = _limited(first, second, found.terms[at])
        points.append((asked, replace(found, value=asked.value(found.terms))))
        if found.terms[at] <= 0:
            break
        # Two layouts that differ by less are equally good.
        objective = _limited(first, second, found.terms[at] * (1 - 4 * TOLERANCE))
    return points


def _limited(goal: str, by: str, most: float) -> Objective:
    most = max(most, 1e-100)
    limit = 1 / most if by == "throughput" else most
    return Objective(goal=goal, **{_LIMIT_OF_TERM[by]: limit})  # type: ignore[arg-type]
