"""Finds a path within several limits, or shows that there is none, mostly without vectors.

Any weighted mean of loads is at most their maximum. So if even the cheapest path for some weights
costs more than the weighted limits, no path keeps them all; and the cheapest path for good weights
often keeps them (a Lagrangian relaxation; weights follow the loads of the last path). Where neither
happens, labels decide, and the weights tell which labels cannot be completed within the limits.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gimlax.planning.deadline import IsLate
from gimlax.planning.labels import Dimension, cheapest_label, growth
from gimlax.planning.orders import State
from gimlax.planning.paths import Cost, Path, cheapest_path, cost_to_go
from gimlax.planning.problem import Array, Problem

_ROUNDS = 24
_FEW = 32  # labels per state and boundary that mostly suffice where there is an answer
_ROUNDING = 1e-9  # costs are shares of a limit; sums in another order differ by far less


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Answer:
    """A path within all limits, or None if there is none, and the weights that led to it."""

    path: Path | None
    weights: Array


def path_within(
    problem: Problem,
    states: tuple[State, ...],
    dimensions: Sequence[Dimension],
    start: Array | None = None,
    is_late: IsLate | None = None,
) -> Answer:
    """A path that keeps all limits.

    Args:
        problem: forbids stages and hand-overs by `inf`.
        states: in which order meshes may follow each other.
        dimensions: what is limited.
        start: weights of an earlier, similar question.
        is_late: whether to stop.

    Raises:
        OutOfTime: it is late.
    """
    sums = [d for d in dimensions if not d.largest]
    shares = [
        Cost(
            stage=np.where(np.isfinite(problem.stage_s), d.stage / d.limit, np.inf),
            hop=np.where(np.isfinite(problem.transfer_s), d.hop / d.limit, np.inf),
        )
        for d in sums
    ]
    weights: Array = np.full(len(sums), 1 / len(sums))
    if start is not None and start.size == len(sums):
        weights = start
    best, best_cost, latest = weights, -np.inf, weights
    for round_ in range(_ROUNDS):
        latest = weights
        found = cheapest_path(states, _mixed(shares, weights), is_late)
        if found is None:
            return Answer(path=None, weights=weights)
        path, cost = found
        if cost > 1 + _ROUNDING:
            return Answer(path=None, weights=weights)
        if keeps_limits(states, dimensions, path):
            return Answer(path=path, weights=weights)
        if len(sums) == 1 and len(dimensions) == 1:
            return Answer(path=None, weights=weights)
        if cost > best_cost:
            best, best_cost = weights, cost
        loads = np.array([growth(d, states, path) / d.limit for d in sums])
        step = np.exp(np.clip((loads - loads.max()) / (1 + round_ / 4), -30, 0))
        weights = weights * step / (weights * step).sum()
        weights = np.maximum(weights, 1e-9) / np.maximum(weights, 1e-9).sum()
    bounds = [(w, cost_to_go(states, _mixed(shares, w))) for w in (best, latest)]
    path = cheapest_label(problem, states, dimensions, bounds, most=_FEW, is_late=is_late)
    if path is None:
        path = cheapest_label(problem, states, dimensions, bounds, is_late=is_late)
    return Answer(path=path, weights=best)


def keeps_limits(states: tuple[State, ...], dimensions: Sequence[Dimension], path: Path) -> bool:
    """Whether a path stays within the limits of all dimensions."""
    used: dict[str, float] = {}
    for d in dimensions:
        used[d.counts_to] = used.get(d.counts_to, 0.0) + growth(d, states, path)
    return all(used[d.counts_to] <= d.limit for d in dimensions)


def _mixed(shares: list[Cost], weights: Array) -> Cost:
    return Cost(
        stage=sum(w * s.stage for w, s in zip(weights, shares, strict=True)),  # type: ignore[arg-type]
        hop=sum(w * s.hop for w, s in zip(weights, shares, strict=True)),  # type: ignore[arg-type]
    )
