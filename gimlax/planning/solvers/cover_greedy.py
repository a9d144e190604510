"""Intervals that overlap at will, one machine after another, for a rate that they are to reach.

For a rate T the machine is taken that covers most of what layers still lack for its worth, always
at the first layer that lacks something; the worth of a kind is what it could cover at best. Worths
are varied at random (with a fixed seed), and T is raised whenever a layout reaches it.
"""

import time

import numpy as np

from gimlax.planning.solvers.cover_problem import CoverProblem, Interval

__all__ = ["overlapping"]

_TRIES = 24


def overlapping(
    problem: CoverProblem, reached: float, bound: float, time_limit_s: float
) -> list[Interval]:
    """The best layout that a number of tries finds above `reached`, empty if none."""
    end = time.perf_counter() + time_limit_s / 2
    random = np.random.default_rng(0)
    columns = _Columns(problem)
    best: list[Interval] = []
    low, high = reached, bound
    while high > low * (1 + 1e-4) and time.perf_counter() < end:
        middle = (low + high) / 2
        found: list[Interval] = []
        for attempt in range(_TRIES):
            worth = columns.worth(middle)
            if attempt:
                worth = worth * random.uniform(0.7, 1.4, len(worth))
            found = columns.layout(middle, worth)
            if found or time.perf_counter() > end:
                break
        if found:
            best, low = found, middle
        else:
            high = middle
    return best


class _Columns:
    """Every (kind, k) of a problem, flat."""

    def __init__(self, problem: CoverProblem) -> None:
        self._n = problem.num_layers
        self._kinds = list(problem.rates)
        self._counts = np.array([problem.counts[kind] for kind in self._kinds])
        own = [np.asarray(problem.rates[kind], float)[: self._n] for kind in self._kinds]
        self._rate = np.concatenate(own)
        self._length = np.concatenate([np.arange(1, len(r) + 1) for r in own])
        self._kind = np.concatenate([np.full(len(r), k) for k, r in enumerate(own)])

    def worth(self, rate: float) -> np.ndarray:
        """What a machine of each kind can cover at best. [kind]"""
        best = np.zeros(len(self._kinds))
        np.maximum.at(best, self._kind, self._length * np.minimum(self._rate, rate))
        return np.maximum(best, 1e-30)

    def layout(self, rate: float, worth: np.ndarray) -> list[Interval]:
        """Intervals that reach `rate` at every layer, empty if machines run out."""
        left = self._counts.copy()
        lacking = np.full(self._n, rate)
        layout: list[Interval] = []
        first = 0
        while True:
            open_ = np.flatnonzero(lacking[first:] > rate * 1e-12)
            if not open_.size:
                return layout
            first += int(open_[0])
            starts = np.minimum(first, self._n - self._length)
            # What each column would add, by sums over the layers that it spans.
            window = np.minimum(first + np.arange(self._length.max()), self._n - 1)
            inside = np.arange(window.size) < (starts + self._length - first)[:, None]
            gain = np.where(inside, np.minimum(self._rate[:, None], lacking[window]), 0.0).sum(1)
            gain = np.where(left[self._kind] > 0, gain / worth[self._kind], 0.0)
            chosen = int(gain.argmax())
            if gain[chosen] <= 0:
                return []
            kind, start = self._kind[chosen], int(starts[chosen])
            stop = start + int(self._length[chosen])
            left[kind] -= 1
            lacking[start:stop] = np.maximum(lacking[start:stop] - self._rate[chosen], 0.0)
            layout.append(
                Interval(
                    first_layer=start,
                    num_layers=stop - start,
                    machine=self._kinds[kind],
                )
            )
