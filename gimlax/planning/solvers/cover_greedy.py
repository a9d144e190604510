"""Intervals that overlap at will, improved by taking some machines out and placing them anew.

For a rate T a layout lacks something at some layers. Machines around a random layer are taken out;
then, again and again, at the first layer that lacks something, the machine is placed that covers
most of what is lacking for its price. Many such trials run side by side, each around its own layer
with the prices that led to the bound varied at random (with a fixed seed); some lengths of
machines are open to all of them. The trial that lacks least goes on if it lacks no more than
before; when nothing is lacking, T is raised by more, and when that takes long, by less.
"""

import time
from collections.abc import Callable, Sequence

import numpy as np

from gimlax.planning.solvers.cover_bound import CoverBound
from gimlax.planning.solvers.cover_problem import CoverProblem, Interval

__all__ = ["overlapping"]

_STEP, _LEAST_STEP = 4e-3, 5e-4  # by how much T is raised at a time: to begin with, at least
_PATIENCE = 10  # rounds of trials until it is raised less
_TRIALS = 8
_OPEN = 48  # columns at random that are open
_Placed = tuple[np.ndarray, np.ndarray]  # columns, first layers


def overlapping(
    problem: CoverProblem,
    bound: CoverBound,
    start: Sequence[Interval],
    *,
    time_limit_s: float,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Interval]:
    """The best layout that is found in time, beginning with `start`.

    Args:
        problem: one in which links do not bind.
        bound: what no layout exceeds; its prices and sets guide the choice.
        start: a layout that passes some tokens.
        time_limit_s: to be kept to.
        clock: what the limit is measured by, in seconds.
    """
    end = clock() + time_limit_s
    random = np.random.default_rng(0)
    columns = _Columns(problem)
    guided = columns.of_sets(bound)
    placed = best = columns.placed(start)
    most, reached = bound.tokens_per_s, columns.least(placed)
    step, failed = _STEP, 0
    rate = min(reached * (1 + step), most)
    lacking = columns.lacking(placed, rate)
    while clock() < end and reached < most * (1 - 1e-6):
        some = random.integers(len(columns.length), size=_OPEN)
        open_ = np.unique(np.concatenate([guided, placed[0], some]))
        tried, left = _tried(
            columns, placed, rate, bound.prices, open_, lacking * (1 + 1e-9), random
        )
        if left <= lacking * (1 + 1e-9):
            placed, lacking = tried, left
        failed += 1
        if lacking <= rate * 1e-9:
            best, reached = placed, columns.least(placed)
            step, failed = step * 2, 0
        elif failed % _PATIENCE == 0:
            step = max(step / 2, _LEAST_STEP)
        else:
            continue
        rate = min(reached * (1 + step), most)
        lacking = columns.lacking(placed, rate)
    return columns.intervals(best)


def _tried(
    columns: "_Columns",
    placed: _Placed,
    rate: float,
    prices: np.ndarray,
    open_: np.ndarray,
    least: float,
    random: np.random.Generator,
) -> tuple[_Placed, float]:
    """The trial that lacks least, and how much that is; trials end that lack more than `least`."""
    kind, length, own = columns.kind[open_], columns.length[open_], columns.rate[open_]
    num_layers = columns.num_layers
    varied = np.maximum(prices, 1e-9) * random.uniform(0.85, 1.18, (_TRIALS, len(prices)))
    per_price = 1 / varied[:, kind]
    middle = random.integers(num_layers, size=(_TRIALS, 1))
    reach = random.integers(2, 16, size=(_TRIALS, 1))
    stop = placed[1] + columns.length[placed[0]]
    kept = (stop <= middle - reach) | (placed[1] >= middle + reach)  # [trial, machine]
    window = int(length.max())
    inside = np.arange(window) < length[:, None]
    lacking = np.zeros((_TRIALS, num_layers + window))
    lacking[:, :num_layers] = rate - kept @ columns.covers(placed)
    left = columns.counts - kept @ columns.uses(placed)
    at = np.arange(num_layers + window)
    short = np.zeros(_TRIALS)
    steps: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    live = np.arange(_TRIALS)
    while True:
        holes = lacking[live] > rate * 1e-12
        first = holes.argmax(axis=1)
        goes_on = holes[np.arange(len(live)), first] & (short[live] <= least)
        live, first = live[goes_on], first[goes_on]
        if not live.size:
            break
        here = np.maximum(lacking[live[:, None], first[:, None] + np.arange(window)], 0.0)
        gain = np.einsum("tcw,cw->tc", np.minimum(own[:, None], here[:, None, :]), inside)
        gain *= (left[live][:, kind] > 0) * per_price[live]
        chosen = gain.argmax(axis=1)
        helps = gain[np.arange(len(live)), chosen] > 0
        # Nothing is left that reaches this layer: that much is short for good.
        stuck, hole = live[~helps], first[~helps]
        short[stuck] += lacking[stuck, hole]
        lacking[stuck, hole] = 0.0
        live, first, chosen = live[helps], first[helps], chosen[helps]
        begin = np.minimum(first, num_layers - length[chosen])
        covered = (at >= begin[:, None]) & (at < (begin + length[chosen])[:, None])
        lacking[live] -= covered * own[chosen][:, None]
        left[live, kind[chosen]] -= 1
        steps.append((live, chosen, begin))
        live = np.union1d(live, stuck)
    best = int(short.argmin())
    added = [
        (open_[chosen[live == best][0]], begin[live == best][0])
        for live, chosen, begin in steps
        if (live == best).any()
    ]
    which, where = np.array(added, int).reshape(-1, 2).T
    result = (
        np.append(placed[0][kept[best]], which),
        np.append(placed[1][kept[best]], where),
    )
    return result, columns.lacking(result, rate)


class _Columns:
    """Every (kind, k) of a problem, flat."""

    def __init__(self, problem: CoverProblem) -> None:
        self.num_layers = problem.num_layers
        self._kinds = list(problem.rates)
        self.counts = np.array([problem.counts[kind] for kind in self._kinds])
        own = [np.asarray(problem.rates[kind], float)[: self.num_layers] for kind in self._kinds]
        self.rate = np.concatenate(own)
        self.length = np.concatenate([np.arange(1, len(r) + 1) for r in own])
        self.kind = np.concatenate([np.full(len(r), k) for k, r in enumerate(own)])
        held = zip(self.kind.tolist(), self.length.tolist(), strict=True)
        self._at = {column: index for index, column in enumerate(held)}

    def placed(self, layout: Sequence[Interval]) -> _Placed:
        """A layout by columns."""
        which = [self._at[self._kinds.index(i.machine), i.num_layers] for i in layout]
        return np.array(which, int), np.array([i.first_layer for i in layout], int)

    def of_sets(self, bound: CoverBound) -> np.ndarray:
        """What the sets of a bound hold."""
        return np.array(sorted({self._at[held] for held in sum(bound.sets, ())}), int)

    def intervals(self, placed: _Placed) -> list[Interval]:
        """Columns at places as records."""
        return [
            Interval(
                first_layer=int(first),
                num_layers=int(self.length[column]),
                machine=self._kinds[self.kind[column]],
            )
            for column, first in zip(*placed, strict=True)
        ]

    def covers(self, placed: _Placed) -> np.ndarray:
        """Tokens/s of each machine at each layer. [machine, layer]"""
        which, first = placed
        at = np.arange(self.num_layers)
        held = (at >= first[:, None]) & (at < (first + self.length[which])[:, None])
        return held * self.rate[which][:, None]

    def uses(self, placed: _Placed) -> np.ndarray:
        """Kind of each machine. [machine, kind]"""
        return (self.kind[placed[0]][:, None] == np.arange(len(self.counts))).astype(int)

    def lacking(self, placed: _Placed, rate: float) -> float:
        """What all layers together lack of `rate`."""
        return float(np.maximum(rate - self.covers(placed).sum(axis=0), 0.0).sum())

    def least(self, placed: _Placed) -> float:
        """The largest flow."""
        return float(self.covers(placed).sum(axis=0).min())
