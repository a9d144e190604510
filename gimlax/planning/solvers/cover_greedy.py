"""Intervals that overlap at will, improved by taking some machines out and placing them anew.

For a rate T a layout lacks something at some layers. Machines around a random layer are taken out;
then, again and again, at the first layer that lacks something, the machine is placed that covers
most of what is lacking for its worth. Worths are varied at random with a fixed seed. What lacks no
more than before is kept; when nothing is lacking, T is raised.
"""

import time
from collections.abc import Sequence

import numpy as np

from gimlax.planning.solvers.cover_problem import CoverProblem, Interval

__all__ = ["overlapping"]

_STEP = 1.003  # by how much T is raised at a time
_Placed = list[tuple[int, int]]  # (column, first layer)


def overlapping(
    problem: CoverProblem, start: Sequence[Interval], reached: float, time_limit_s: float
) -> list[Interval]:
    """The best layout that is found in time with more than `reached`, empty if none."""
    end = time.perf_counter() + time_limit_s
    random = np.random.default_rng(0)
    columns = _Columns(problem)
    placed = columns.placed(start)
    best: _Placed = []
    rate = reached * _STEP
    lacking = columns.lacking(placed, rate)
    while time.perf_counter() < end:
        worth = columns.worth(rate) * random.uniform(0.7, 1.4, len(problem.rates))
        middle, reach = random.integers(problem.num_layers), random.integers(2, 16)
        kept = [
            (column, first)
            for column, first in placed
            if first + columns.length[column] <= middle - reach or first >= middle + reach
        ]
        tried = columns.filled(kept, rate, worth)
        left = columns.lacking(tried, rate)
        if left <= lacking:
            placed, lacking = tried, left
        if lacking <= rate * 1e-9:
            best = placed
            rate = columns.least(placed) * _STEP
            lacking = columns.lacking(placed, rate)
    return [columns.interval(column, first) for column, first in best]


class _Columns:
    """Every (kind, k) of a problem, flat."""

    def __init__(self, problem: CoverProblem) -> None:
        self._n = problem.num_layers
        self._kinds = list(problem.rates)
        self._counts = np.array([problem.counts[kind] for kind in self._kinds])
        own = [np.asarray(problem.rates[kind], float)[: self._n] for kind in self._kinds]
        self._rate = np.concatenate(own)
        self.length = np.concatenate([np.arange(1, len(r) + 1) for r in own])
        self._kind = np.concatenate([np.full(len(r), k) for k, r in enumerate(own)])

    def placed(self, layout: Sequence[Interval]) -> _Placed:
        """A layout by columns."""
        at = {
            (self._kinds[kind], int(length)): column
            for column, (kind, length) in enumerate(zip(self._kind, self.length, strict=True))
        }
        return [(at[i.machine, i.num_layers], i.first_layer) for i in layout]

    def interval(self, column: int, first: int) -> Interval:
        """A column at a place as a record."""
        return Interval(
            first_layer=int(first),
            num_layers=int(self.length[column]),
            machine=self._kinds[self._kind[column]],
        )

    def worth(self, rate: float) -> np.ndarray:
        """What a machine of each kind can cover at best. [kind]"""
        best = np.zeros(len(self._kinds))
        np.maximum.at(best, self._kind, self.length * np.minimum(self._rate, rate))
        return np.maximum(best, 1e-30)

    def lacking(self, placed: _Placed, rate: float) -> float:
        """What all layers together lack of `rate`."""
        return float(np.maximum(rate - self._cover(placed), 0.0).sum())

    def least(self, placed: _Placed) -> float:
        """The largest flow."""
        return float(self._cover(placed).min())

    def _cover(self, placed: _Placed) -> np.ndarray:
        ends = np.zeros(self._n + 1)
        for column, first in placed:
            ends[first] += self._rate[column]
            ends[first + self.length[column]] -= self._rate[column]
        return ends.cumsum()[:-1]

    def filled(self, kept: _Placed, rate: float, worth: np.ndarray) -> _Placed:
        """These and further machines, until nothing is lacking or none helps."""
        left = self._counts.copy()
        lacking = rate - self._cover(kept)
        for column, _ in kept:
            left[self._kind[column]] -= 1
        placed = list(kept)
        span = np.arange(self.length.max())
        first = 0
        while True:
            open_ = np.flatnonzero(lacking[first:] > rate * 1e-12)
            if not open_.size:
                return placed
            first += int(open_[0])
            starts = np.minimum(first, self._n - self.length)
            # What each column would add, over the layers from the first that lacks something.
            here = np.maximum(lacking[np.minimum(first + span, self._n - 1)], 0.0)
            inside = span < (starts + self.length - first)[:, None]
            gain = np.where(inside, np.minimum(self._rate[:, None], here), 0.0).sum(axis=1)
            gain = np.where(left[self._kind] > 0, gain / worth[self._kind], 0.0)
            chosen = int(gain.argmax())
            if gain[chosen] <= 0:
                first += 1  # nothing is left that reaches this layer
                if first >= self._n:
                    return placed
                continue
            start = int(starts[chosen])
            left[self._kind[chosen]] -= 1
            lacking[start : start + int(self.length[chosen])] -= self._rate[chosen]
            placed.append((chosen, start))
