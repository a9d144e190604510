"""Which spans to put one after another, so that they cover all layers at as large a rate as can be.

A linear programme over the spans known so far prices the machines, and the cheapest spans at such
prices, varied at random with a fixed seed, join them; an integer programme then takes whole
spans. When they cover all layers, the rate is raised.
"""

import time
from collections.abc import Callable, Iterator

import numpy as np
from scipy import optimize

from gimlax.planning.problem import Array
from gimlax.planning.solvers.cover_bound import CoverBound
from gimlax.planning.solvers.cover_problem import CoverProblem, Interval
from gimlax.planning.solvers.cover_spans import Span, Tables, Track, cheapest_spans

__all__ = ["search_spans"]

_ROUNDS = 3
_AT_ONCE = 64  # lengths of spans
_PROGRAMME_S = 0.1
_NEAR = 1e-6
_CLOSE = 1e-3
_WASTE = 3.0


def search_spans(
    problem: CoverProblem,
    bound: CoverBound,
    *,
    enough: Callable[[float], bool],
    time_limit_s: float,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Interval]:
    """The best layout found in time, empty if none.

    Args:
        problem: one in which links do not bind.
        bound: what no layout exceeds; its prices and sets are where to begin.
        enough: whether a layout of so many tokens/s need not be improved.
        time_limit_s: to be kept to, unless nothing was found.
        clock: what the limit is measured by, in seconds.
    """
    end = clock() + time_limit_s
    search = _Search(problem, bound)
    most = bound.tokens_per_s
    best: list[Span] = []
    again = False
    reached, high, step = 0.0, most, _NEAR  # nothing was found for `high`
    while (clock() < end or not best) and reached < most * (1 - _NEAR) and high > most * _NEAR:
        if best and high < reached + min(_CLOSE * reached, (most - reached) / 4):
            high, again = min(most, reached * (1 + 4 * _CLOSE)), True  # try again what failed
        target = (reached + high) / 2 if best else high * (1 - step)
        found = search.spans(target, end - clock(), again=again)
        if found:
            best, reached = found, min(span.tokens_per_s for span in found)
            high = most if high < reached else high
            if enough(reached):
                break
        else:
            high, step = target, min(max(step * 1.5, 0.02), 0.5)
            step = step if clock() < end else 0.5  # late, so any layout will do
    return list(_intervals(problem, search.tables, best))


class _Search:
    """Spans known so far, and a way to more of them."""

    def __init__(self, problem: CoverProblem, bound: CoverBound) -> None:
        kinds = tuple(kind for kind, count in problem.counts.items() if count)
        at = [list(problem.rates).index(kind) for kind in kinds]
        self.tables = Tables(
            num_layers=problem.num_layers,
            kinds=kinds,
            counts=tuple(problem.counts[kind] for kind in kinds),
            rates=tuple(
                np.maximum.accumulate(problem.rates[kind][: problem.num_layers][::-1])[::-1]
                for kind in kinds
            ),
        )
        self._counts = np.array(self.tables.counts)
        self._first = np.maximum(bound.prices[at], 1e-9)
        self._known: dict[Span, None] = {}
        self._random = np.random.default_rng(0)
        self._shares = sorted(
            {(at.index(kind), k) for holders in bound.sets for kind, k in holders if kind in at}
        )

    def spans(self, target: float, time_limit_s: float, *, again: bool) -> list[Span]:
        """Spans of at least the target that cover all layers, empty if none are found."""
        prices, spare, usable = self._first, -1.0, []
        for turn in range(_ROUNDS):
            vary = turn == _ROUNDS - 1 or (turn > 0 and again)
            lengths = self._lengths(target, vary=vary)
            own = np.tile(prices, (max(lengths) + 1, 1))
            if vary:
                own = own * self._random.uniform(0.85, 1.15, own.shape)
            spans = cheapest_spans(self.tables, own, target, lengths)
            self._known |= dict.fromkeys(spans)
            usable = [s for s in self._known if s.tokens_per_s >= target * (1 - 1e-12)]
            if usable:
                value, prices = self._priced(usable)
                spare = value - self.tables.num_layers
        if spare < -1e-9:
            return []
        # A span that costs so much more than its layers are worth is in no solution.
        uses = np.array([span.uses for span in usable])
        wasted = uses @ prices - np.array([span.num_layers for span in usable])
        fits = (uses <= self._counts).all(axis=1)
        self._known = {
            s: None for s, w in zip(usable, wasted, strict=True) if w < _WASTE + spare
        } | {s: None for s in self._known if s.tokens_per_s < target}
        return self._whole(
            [usable[j] for j in np.flatnonzero(fits & (wasted < spare + 1e-6))], time_limit_s
        )

    def _lengths(self, target: float, *, vary: bool) -> list[int]:
        """Lengths over which whole numbers of machines of a kind fit at a part of the target."""
        num_layers = self.tables.num_layers
        parts = target / np.arange(1, 5)
        if vary:
            parts = target * self._random.uniform(0.05, 1.0, 4)
        longest = self.tables.longest(parts)
        held = {(kind, int(k)) for kind, own in enumerate(longest) for k in own} | set(self._shares)
        lengths = {
            number * k
            for kind, k in held
            for number in range(1, self.tables.counts[kind] + 1)
            if 0 < number * k <= num_layers
        }
        chosen = sorted(lengths or {1})
        if len(chosen) > _AT_ONCE:
            chosen = sorted(self._random.choice(chosen, _AT_ONCE, replace=False).tolist())
        return chosen

    def _priced(self, usable: list[Span]) -> tuple[float, Array]:
        """Layers that fractions of these spans cover at most, and prices of machines in layers."""
        solved = optimize.linprog(
            -np.array([span.num_layers for span in usable], float),
            A_ub=np.array([span.uses for span in usable], float).T,
            b_ub=self._counts,
        )
        if solved.status != 0:
            return 0.0, self._first
        return -solved.fun, np.maximum(-solved.ineqlin.marginals, 1e-9)

    def _whole(self, usable: list[Span], time_limit_s: float) -> list[Span]:
        """Whole spans for all layers out of these machines."""
        if not usable:
            return []
        layers = np.array([[span.num_layers for span in usable]], float)
        uses = np.array([span.uses for span in usable], float).T
        limit_s = max(min(_PROGRAMME_S, time_limit_s), _PROGRAMME_S / 4)
        if time_limit_s <= 0:
            limit_s = (
                10 * _PROGRAMME_S
            )  # late, and nothing found: now it counts that this ends well
        solved = optimize.milp(
            -layers[0],
            constraints=optimize.LinearConstraint(uses, -np.inf, self._counts),  # pyright: ignore[reportArgumentType]
            integrality=np.ones(len(usable)),
            options={
                "time_limit": limit_s,
                "mip_rel_gap": 0.0,
            },
        )
        if solved.x is None:
            return []
        numbers = np.round(solved.x).astype(int)
        if layers[0] @ numbers < self.tables.num_layers or (uses @ numbers > self._counts).any():
            return []
        return [span for span, n in zip(usable, numbers, strict=True) for _ in range(n)]


def _intervals(problem: CoverProblem, tables: Tables, spans: list[Span]) -> Iterator[Interval]:
    """Spans one after another; what would reach over the last layer reaches back instead."""
    first = 0
    for span in spans:
        for track in span.tracks:
            yield from _held(problem, tables, track, first, first + span.num_layers)
        first += span.num_layers


def _held(
    problem: CoverProblem, tables: Tables, track: Track, first: int, stop: int
) -> Iterator[Interval]:
    """The machines of a track from `first` on, each with no more layers than are left."""
    for kind, most in track:
        name = tables.kinds[kind]
        least = min(most, max(stop - first, 1))
        own = problem.rates[name][: problem.num_layers]
        k = least + int(np.argmax(own[least - 1 :]))  # a longer table may rise again
        start = max(min(first, problem.num_layers - k), 0)
        yield Interval(first_layer=start, num_layers=k, machine=name)
        first += most
