"""Spans: some layers, and tracks of machines side by side that cover them.

A track is machines one after another, each with so many layers that together they reach over the
span; it passes what its slowest machine does, and a span what its tracks do together. Machines of a
track may differ, and so may the lengths of the tracks' machines, so that intervals overlap at will
within a span. At prices of machines the cheapest spans of a rate come from two knapsacks: over
layers, for the cheapest track of each rate; over a grid of rates, for the cheapest tracks.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gimlax.planning.problem import Array

__all__ = ["Span", "Tables", "cheapest_spans"]

_GRID = 256
Track = tuple[tuple[int, int], ...]  # (kind, layers) one after another


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Tracks over some layers.

    Attributes:
        num_layers: that are covered.
        tracks: machines of each track by kind, with layers that reach over the span, or farther.
        tokens_per_s: of all tracks.
        uses: machines of each kind.
    """

    num_layers: int
    tracks: tuple[Track, ...]
    tokens_per_s: float
    uses: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Tables:
    """Kinds of machine as a search sees them.

    Attributes:
        num_layers: of the model.
        kinds: names.
        counts: machines of each kind.
        rates: tokens/s by kind with at least k layers, at index k - 1: they never rise.
    """

    num_layers: int
    kinds: tuple[str, ...]
    counts: tuple[int, ...]
    rates: tuple[Array, ...]

    def longest(self, tokens_per_s: Array) -> np.ndarray:
        """Layers that a machine holds at such rates at most. [kind, rate]"""
        return np.array([np.searchsorted(-own, -tokens_per_s, side="right") for own in self.rates])


def cheapest_spans(
    tables: Tables,
    prices: Array,
    tokens_per_s: float,
    lengths: Sequence[int],
) -> list[Span]:
    """For each length the cheapest span of this rate, where there is one.

    Prices may differ by layer, counted from the end of the span: [layers left, kind].
    Rates are rounded down to a grid, so a span may pass more than was asked for; it may use more
    machines of a kind than there are.
    """
    steps, longest = _levels(tables, tokens_per_s)
    if not steps.size:
        return []
    price, last = _tracks(longest, prices, max(lengths))
    which = np.array(lengths)
    chosen = _side_by_side(price[which], steps)
    spans = []
    for num_layers, levels in zip(lengths, chosen, strict=True):
        if not levels:
            continue
        tracks = tuple(sorted(_track(last, longest, level, num_layers) for level in levels))
        uses = np.zeros(len(tables.kinds), int)
        for kind, _ in (held for track in tracks for held in track):
            uses[kind] += 1
        rate = sum(min(float(tables.rates[i][k - 1]) for i, k in track) for track in tracks)
        spans.append(
            Span(num_layers=num_layers, tracks=tracks, tokens_per_s=rate, uses=tuple(uses.tolist()))
        )
    return spans


def _levels(tables: Tables, tokens_per_s: float) -> tuple[np.ndarray, np.ndarray]:
    """Steps of the grid at which some kind holds fewer layers, and layers by kind and level."""
    steps = np.arange(1, _GRID + 1)
    longest = tables.longest(steps / _GRID * tokens_per_s * (1 - 1e-12))
    top = np.append((longest[:, 1:] != longest[:, :-1]).any(axis=0), True)
    top &= longest.max(axis=0) > 0
    return steps[top], longest[:, top]


def _tracks(longest: np.ndarray, prices: Array, most: int) -> tuple[Array, np.ndarray]:
    """The cheapest track over each number of layers at each level: price and last machine."""
    num_levels = longest.shape[1]
    own = np.where(longest > 0, prices[:, :, None], np.inf)
    level = np.arange(num_levels)
    price = np.zeros((most + 1, num_levels))
    last = np.zeros((most + 1, num_levels), int)
    for num_layers in range(1, most + 1):
        total = price[np.maximum(num_layers - longest, 0), level] + own[num_layers]
        last[num_layers] = total.argmin(axis=0)
        price[num_layers] = total[last[num_layers], level]
    return price, last


def _track(last: np.ndarray, longest: np.ndarray, level: int, num_layers: int) -> Track:
    track = []
    while num_layers > 0:
        kind = int(last[num_layers, level])
        track.append((kind, int(longest[kind, level])))
        num_layers -= track[-1][1]
    return tuple(sorted(track))


def _side_by_side(price: Array, steps: np.ndarray) -> list[list[int]]:
    """Levels of the cheapest tracks that reach the whole grid together, by row; none if none do."""
    rows = len(price)
    cost = np.full((rows, _GRID + 1), np.inf)
    cost[:, 0] = 0.0
    choice = np.full((rows, _GRID + 1), -1)
    dearer = np.append(price[:, 1:], np.full((rows, 1), np.inf), axis=1)
    useful = np.isfinite(price) & (price < dearer)
    for level in np.flatnonzero(useful.any(axis=0))[::-1]:
        step, own = int(steps[level]), price[:, level, None]
        for _ in range(-(-_GRID // step)):
            new = np.append(np.repeat(own, step, axis=1), cost[:, 1 : _GRID + 1 - step] + own, 1)
            better = new < cost[:, 1:] * (1 - 1e-12)
            if not better.any():
                break
            cost[:, 1:] = np.where(better, new, cost[:, 1:])
            choice[:, 1:][better] = level
    chosen = []
    for row in range(rows):
        at, levels = _GRID, []
        while at > 0 and np.isfinite(cost[row, _GRID]):
            levels.append(int(choice[row, at]))
            at -= int(steps[levels[-1]])
        chosen.append(levels)
    return chosen
