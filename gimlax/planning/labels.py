"""Dynamic programming with vectors: the Pareto front of everything that adds up along a chain.

Where two sums matter (the time of one mesh that comes back and of another, a load and a memory),
the cheapest prefix is not enough: every prefix is kept that no other one beats in all dimensions.
A dimension grows by addition (seconds, bytes that each stage adds) or by maximum (memory of which
only the largest counts); one that has reached a value can only make the future worse, so a
dominated label can never win. Exact, and exponential only in the worst case: cuts of repeating
layers give equal sums, which merge.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gimlax.planning.deadline import IsLate, check_time
from gimlax.planning.orders import State
from gimlax.planning.paths import Path
from gimlax.planning.problem import Array, Problem


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Dimension:
    """One quantity that a label carries.

    Attributes:
        stage: what a stage contributes. [mesh, first, stop]
        hop: what a hand-over contributes. [source, target, boundary]
        largest: whether contributions are combined by maximum instead of by sum.
        counts_to: name of the limit that this quantity counts towards.
        limit: the sum of all quantities of that name must not exceed it.
        quantum: values are rounded to multiples of it, so that equal sums are equal (0: exact).
    """

    stage: Array
    hop: Array
    counts_to: str
    limit: float = np.inf
    largest: bool = False
    quantum: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Labels:
    """Labels of one state: values [label, dim], where they stand, and where they came from."""

    values: Array
    boundary: np.ndarray  # [label]
    parent_state: np.ndarray  # [label], -1 at the start
    parent: np.ndarray  # [label], index into the labels of the parent state

    def __getitem__(self, which: np.ndarray) -> "_Labels":
        return _Labels(
            values=self.values[which],
            boundary=self.boundary[which],
            parent_state=self.parent_state[which],
            parent=self.parent[which],
        )


def growth(dimension: Dimension, states: tuple[State, ...], path: Path) -> float:
    """What one quantity has grown to at the end of a path."""
    total, first, last = 0.0, 0, -1
    for state, stop in path:
        mesh = states[state].mesh
        by = float(dimension.stage[mesh, first, stop])
        if last >= 0:
            hop = float(dimension.hop[last, mesh, first])
            total = max(total, hop) if dimension.largest else total + hop
        total = max(total, by) if dimension.largest else total + by
        first, last = stop, mesh
    return total


def cheapest_label(
    problem: Problem,
    states: tuple[State, ...],
    dimensions: Sequence[Dimension],
    bounds: Sequence[tuple[Array, Array]],
    most: int | None = None,
    is_late: IsLate | None = None,
) -> Path | None:
    """The path of least first dimension within all limits, or None.

    Args:
        problem: forbids stages and hand-overs by `inf`.
        states: in which order meshes may follow each other.
        dimensions: what a label carries.
        bounds: pairs of weights of the dimensions that are sums, summing to 1, and what the
            cheapest completion costs with these weights, in shares of the limits. [state, boundary]
        most: how many labels are kept per state and boundary, the best by weight; None proves.
        is_late: asked before each stop of each state.

    Raises:
        OutOfTime: it is late.
    """
    rules = _Rules.of(dimensions, bounds)
    runs = np.isfinite(problem.stage_s)
    reaches = np.isfinite(problem.transfer_s)
    after: list[_Labels] = []
    for state in states:
        entry = _entries(state, states, after, rules, reaches)
        after.append(_run(entry, len(after), state.mesh, rules, runs[state.mesh], most, is_late))
    best: tuple[float, int, int] | None = None
    for index, (state, labels) in enumerate(zip(states, after, strict=True)):
        done = np.flatnonzero(labels.boundary == problem.num_segments)
        if state.may_end and done.size:
            label = int(done[labels.values[done, 0].argmin()])
            candidate = (float(labels.values[label, 0]), index, label)
            best = candidate if best is None or candidate[0] < best[0] else best
    if best is None:
        return None
    _, index, label = best
    path: Path = []
    while index >= 0:
        labels = after[index]
        path.append((index, int(labels.boundary[label])))
        index, label = int(labels.parent_state[label]), int(labels.parent[label])
    return path[::-1]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Rules:
    """How labels grow and what limits them, over all dimensions at once."""

    stage: Array  # [dim, mesh, first, stop]
    hop: Array  # [dim, source, target, boundary]
    largest: np.ndarray  # [dim]
    quantum: Array  # [dim]
    counts: Array  # [dim, limit], 0 or 1
    limits: Array  # [limit]
    weights: Array  # [dim, bound], per unit of the dimension
    to_go: Array  # [bound, state, boundary]

    @classmethod
    def of(cls, dimensions: Sequence[Dimension], bounds: Sequence[tuple[Array, Array]]) -> "_Rules":
        limits = {d.counts_to: d.limit for d in dimensions}
        sums = [index for index, d in enumerate(dimensions) if not d.largest]
        weights = np.zeros((len(dimensions), len(bounds)))
        for column, (by_sum, _) in enumerate(bounds):
            weights[sums, column] = by_sum / [dimensions[index].limit for index in sums]
        return cls(
            stage=np.stack([d.stage for d in dimensions]),
            hop=np.stack([d.hop for d in dimensions]),
            largest=np.array([d.largest for d in dimensions]),
            quantum=np.array([d.quantum for d in dimensions]),
            counts=np.array([[float(d.counts_to == name) for name in limits] for d in dimensions]),
            limits=np.array(list(limits.values())),
            weights=weights,
            to_go=np.stack([to_go for _, to_go in bounds]),
        )

    def can_end(self, values: Array, state: int, boundary: int) -> np.ndarray:
        """Which labels [label, dim] could be completed as far as the bounds can tell."""
        cost = values @ self.weights + self.to_go[:, state, boundary]
        return np.all(cost <= 1 + 1e-9, axis=1)

    def grown(self, values: Array, by: Array) -> tuple[Array, np.ndarray]:
        """Grown labels [label, dim], and which of them keep all limits."""
        values = np.where(self.largest, np.maximum(values, by), values + by)
        scale = np.where(self.quantum > 0, self.quantum, 1.0)
        values = np.where(self.quantum > 0, np.rint(values / scale) * scale, values)
        return values, np.all(values @ self.counts <= self.limits, axis=1)


def _entries(
    state: State,
    states: tuple[State, ...],
    after: list[_Labels],
    rules: _Rules,
    reaches: np.ndarray,
) -> _Labels:
    """Labels with which a state may begin its stage, at all boundaries."""
    if not state.before:
        none = np.full(1, -1)
        zero = np.zeros((1, len(rules.largest)))
        return _Labels(values=zero, boundary=np.zeros(1, int), parent_state=none, parent=none)
    found: list[_Labels] = []
    for index in state.before:
        labels, hop = after[index], (states[index].mesh, state.mesh)
        which = np.flatnonzero(reaches[hop][labels.boundary])
        values, kept = rules.grown(
            labels.values[which], rules.hop[:, *hop][:, labels.boundary[which]].T
        )
        which = which[kept]
        found.append(
            _Labels(
                values=values[kept],
                boundary=labels.boundary[which],
                parent_state=np.full(which.size, index),
                parent=which,
            )
        )
    entries = _joined(found)
    at = [np.flatnonzero(entries.boundary == b) for b in np.unique(entries.boundary)]
    return entries[_together([which[front(entries.values[which])] for which in at])]


def _run(
    entry: _Labels,
    state: int,
    mesh: int,
    rules: _Rules,
    runs: np.ndarray,
    most: int | None,
    is_late: IsLate | None,
) -> _Labels:
    """Labels after a stage on this mesh, at all boundaries where it may stop."""
    found: list[_Labels] = []
    for stop in range(1, runs.shape[1]):
        check_time(is_late)
        which = np.flatnonzero(runs[entry.boundary, stop])
        values, kept = rules.grown(
            entry.values[which], rules.stage[:, mesh, :, stop][:, entry.boundary[which]].T
        )
        kept &= rules.can_end(values, state, stop)
        which, values = which[kept], values[kept]
        best = front(values)
        if most is not None and best.size > most:
            best = best[(values[best] @ rules.weights).max(axis=1).argsort()[:most]]
        labels = entry[which[best]]
        found.append(
            _Labels(
                values=values[best],
                boundary=np.full(best.size, stop),
                parent_state=labels.parent_state,
                parent=labels.parent,
            )
        )
    return _joined(found)


def _together(parts: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(parts) if parts else np.zeros(0, int)


def _joined(parts: list[_Labels]) -> _Labels:
    return _Labels(
        values=np.concatenate([p.values for p in parts]),
        boundary=np.concatenate([p.boundary for p in parts]),
        parent_state=np.concatenate([p.parent_state for p in parts]),
        parent=np.concatenate([p.parent for p in parts]),
    )


def front(values: Array) -> np.ndarray:
    """Indices of the labels that no other one beats or equals in every dimension. [label, dim]"""
    if values.shape[0] < 2:
        return np.arange(values.shape[0])
    if values.shape[1] == 1:
        return np.array([values[:, 0].argmin()])
    order = np.lexsort(values.T[::-1])  # by the first dimension, then the second, ...
    if values.shape[1] == 2:
        second = values[order, 1]
        lowest_before = np.concatenate([[np.inf], np.minimum.accumulate(second)[:-1]])
        return order[second < lowest_before]
    kept: list[int] = []
    while order.size:  # the first one left is beaten by none: it comes first in the order
        best, order = order[0], order[1:]
        kept.append(int(best))
        order = order[(values[order] < values[best]).any(axis=1)]
    return np.array(kept)
