"""Intervals of layers on machines so that as many tokens as possible pass every layer.

Each machine holds one interval of consecutive layers and passes so many tokens per second as its
kind does with that number of layers; a token may enter a machine at any layer that it holds. (The
placement problem of Helix, Mei et al., ASPLOS 2025.)

The largest flow of a layout is the least, over the layers, of the summed rates of their holders:
machines whose loss stops all flow must leave some layer without a holder, because from any layer
that is held one can go on to the holder that reaches farthest. So this is a covering problem, and
no network is needed to solve it. It is solved for blocks, intervals that all their holders share:
given a rate T, an item is a smallest group of machines that together reach T with k layers each,
and a knapsack over the machines says how many layers items can cover. T is bisected.

If that leaves a gap, the rest of the time goes to intervals that overlap at will
(`cover_greedy.py`), or where there are few to an exact integer programme over all of them.
"""

import itertools
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import optimize, sparse

from gimlax.errors import PlanError
from gimlax.planning.problem import Array
from gimlax.planning.solvers.cover_bound import most_tokens_per_s
from gimlax.planning.solvers.cover_greedy import overlapping
from gimlax.planning.solvers.cover_problem import CoverProblem, Interval

__all__ = ["CoverProblem", "CoverSolution", "Interval", "flow_tokens_per_s", "solve_cover"]

_MOST_STATES = 30_000
_FEW = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class CoverSolution:
    """The best layout found, and what no layout can exceed.

    Attributes:
        value: tokens/s.
        bound: tokens/s, by an argument that never looks at a layout.
        layout: one interval for each machine that is used.
        seconds: spent.
    """

    value: float
    bound: float
    layout: tuple[Interval, ...]
    seconds: float

    @property
    def gap(self) -> float:
        """By which share the best layout may at most lie above this one."""
        return self.bound / self.value - 1


def flow_tokens_per_s(problem: CoverProblem, layout: Sequence[Interval]) -> float:
    """The largest flow through a layout; 0 where a layer has no holder.

    Where a link may bind the maximum flow is computed; else it is the least cover of a layer.
    """
    rates = [float(problem.rates[i.machine][i.num_layers - 1]) for i in layout]
    covered = np.zeros(problem.num_layers)
    if not layout:
        return 0.0
    for held, rate in zip(layout, rates, strict=True):
        covered[held.first_layer : held.first_layer + held.num_layers] += rate
    if not covered.all() or max(rates) <= problem.link_tokens_per_s:
        return float(covered.min())
    return _max_flow(problem, layout, rates)


def _max_flow(problem: CoverProblem, layout: Sequence[Interval], rates: list[float]) -> float:
    """Maximum flow with limited links between machines, as a linear programme."""
    outside = len(layout)
    edges: list[tuple[int, int, float]] = []
    for a, x in enumerate(layout):
        if x.first_layer == 0:
            edges.append((outside, a, math.inf))
        if x.first_layer + x.num_layers >= problem.num_layers:
            edges.append((a, outside, math.inf))
        for b, y in enumerate(layout):
            stop = x.first_layer + x.num_layers
            if a != b and y.first_layer <= stop < y.first_layer + y.num_layers:
                edges.append((a, b, problem.link_tokens_per_s))
    source, target, limit = (np.array(column) for column in zip(*edges, strict=True))
    columns = np.arange(len(edges))
    shape = (outside + 1, len(edges))
    into = sparse.coo_array((np.ones(len(edges)), (target, columns)), shape=shape).tocsr()
    out = sparse.coo_array((np.ones(len(edges)), (source, columns)), shape=shape).tocsr()
    solved = optimize.linprog(
        -(target == outside).astype(float),
        A_ub=into[:outside],
        b_ub=rates,
        A_eq=(into - out)[:outside],
        b_eq=np.zeros(outside),
        bounds=np.stack([np.zeros(len(edges)), limit], axis=1),
    )
    return float(-solved.fun) if solved.status == 0 else 0.0


def solve_cover(problem: CoverProblem, *, time_limit_s: float = 1.0) -> CoverSolution:
    """A layout of most tokens per second.

    Raises:
        PlanError: all machines together cannot hold the layers.
    """
    start = time.perf_counter()
    _check_room(problem)
    capped = _capped(problem)
    figures = (problem.num_layers, problem.counts, problem.rates)
    most = sum(n * float(np.max(problem.rates[kind])) for kind, n in problem.counts.items())
    best = _blocks(capped, most, start + time_limit_s / 4)
    value = flow_tokens_per_s(problem, best)
    bound = most_tokens_per_s(*figures, reached=value)
    few = math.prod(n + 1 for n in problem.counts.values()) * problem.num_layers <= _FEW
    for method in (_all_intervals,) if few else (overlapping, _all_intervals):
        if bound > value * (1 + 1e-6):
            left_s = time_limit_s - (time.perf_counter() - start)
            share_s = left_s if method is _all_intervals else left_s * 0.9
            other = method(capped, best, value, share_s)
            if other and flow_tokens_per_s(problem, other) > value:
                best, value = other, flow_tokens_per_s(problem, other)
    if not best or value <= 0:
        raise PlanError(
            "cover problem: no layout was found that passes any token; raise the time limit"
        )
    return CoverSolution(
        value=value,
        bound=max(bound, value),
        layout=tuple(sorted(best)),
        seconds=time.perf_counter() - start,
    )


def _check_room(problem: CoverProblem) -> None:
    room = sum(n * len(problem.rates[kind]) for kind, n in problem.counts.items())
    if room < problem.num_layers:
        raise PlanError(
            f"cover problem: the machines hold {room} layers together, and there are "
            f"{problem.num_layers}: {problem.num_layers - room} layers have no room; add machines"
        )


def _capped(problem: CoverProblem) -> CoverProblem:
    """The same with no rate above that of a link: then no link binds, whatever the layout."""
    limit = problem.link_tokens_per_s
    return CoverProblem(
        num_layers=problem.num_layers,
        counts=problem.counts,
        rates={kind: np.minimum(rates, limit) for kind, rates in problem.rates.items()},
    )


def _blocks(problem: CoverProblem, most: float, end: float) -> list[Interval]:
    """The best layout in blocks: T is bisected, and raised to what the layout found reaches.

    At `end` (of the clock) what was found so far has to do.
    """
    best = _cover_blocks(problem, 1e-12)
    low, high = (flow_tokens_per_s(problem, best), most) if best else (0.0, 0.0)
    while high > low * (1 + 1e-9) and time.perf_counter() < end:
        middle = (low + high) / 2
        found = _cover_blocks(problem, middle)
        if found:
            best, low = found, flow_tokens_per_s(problem, found)
        else:
            high = middle
    return best


def _cover_blocks(problem: CoverProblem, rate: float) -> list[Interval]:
    """Blocks that cover all layers, each of at least this rate; empty if there are none."""
    kinds = list(problem.counts)
    counts = np.array([problem.counts[kind] for kind in kinds])
    items = list(_items(problem, kinds, rate))
    if not items:
        return []
    states = math.prod(counts + 1)
    chosen = (
        _by_table(items, counts, problem.num_layers)
        if states <= _MOST_STATES
        else _by_programme(items, counts, problem.num_layers)
    )
    layout: list[Interval] = []
    first = 0
    for num_layers, group in chosen:
        if first + num_layers > problem.num_layers:  # the last block may reach back
            first = problem.num_layers - num_layers
        for kind, number in zip(kinds, group, strict=True):
            held = Interval(first_layer=max(first, 0), num_layers=num_layers, machine=kind)
            layout += [held] * number
        first += num_layers
    return layout


def _items(
    problem: CoverProblem, kinds: list[str], rate: float
) -> Iterator[tuple[int, tuple[int, ...]]]:
    """Layers and machines of each kind: smallest groups whose summed rate reaches `rate`."""
    longest = max(len(problem.rates[kind]) for kind in kinds)
    for num_layers in range(1, min(longest, problem.num_layers) + 1):
        own = [
            float(problem.rates[k][num_layers - 1]) if num_layers <= len(problem.rates[k]) else 0.0
            for k in kinds
        ]
        most = [
            min(problem.counts[kind], math.ceil(rate / r)) if r > 0 else 0
            for kind, r in zip(kinds, own, strict=True)
        ]
        usable = [k for k, n in enumerate(most) if n]
        for mixed in range(1, min(len(usable), 3) + 1):
            for which in itertools.combinations(usable, mixed):
                yield from _groups(num_layers, which, own, most, rate)


def _groups(
    num_layers: int, which: tuple[int, ...], own: list[float], most: list[int], rate: float
) -> Iterator[tuple[int, tuple[int, ...]]]:
    """Smallest groups of exactly these kinds: the last kind fills what the others leave."""
    for numbers in itertools.product(*(range(1, most[k] + 1) for k in which[:-1])):
        missing = rate - sum(n * own[k] for n, k in zip(numbers, which[:-1], strict=True))
        last = math.ceil(missing / own[which[-1]] * (1 - 1e-12))
        if not 1 <= last <= most[which[-1]]:
            continue
        group = [0] * len(own)
        for k, n in zip(which, (*numbers, last), strict=True):
            group[k] = n
        total = sum(n * r for n, r in zip(group, own, strict=True))
        if all(total - own[k] < rate for k in which):
            yield num_layers, tuple(group)


def _by_table(
    items: list[tuple[int, tuple[int, ...]]], counts: Array, num_layers: int
) -> list[tuple[int, tuple[int, ...]]]:
    """Knapsack by a table over all numbers of machines; the items used, or none if too few."""
    shape = tuple(counts + 1)
    layers = np.zeros(shape, int)
    last = np.full(shape, -1)
    for index, (gain, group) in enumerate(items):
        number = 0
        while all((number + 1) * n <= c for n, c in zip(group, counts, strict=True)):
            number += 1
        # A group of many kinds can be used a few times only, so repeats are passes.
        for _ in range(number):
            to = tuple(slice(n, None) for n in group)
            come = tuple(slice(0, c + 1 - n) for n, c in zip(group, counts, strict=True))
            better = layers[come] + gain > layers[to]
            if not better.any():
                break
            layers[to] = np.where(better, layers[come] + gain, layers[to])
            last[to] = np.where(better, index, last[to])
    at = tuple(counts)
    if layers[at] < num_layers:
        return []
    chosen = []
    while layers[at] > 0 and last[at] >= 0:
        gain, group = items[last[at]]
        chosen.append((gain, group))
        at = tuple(a - n for a, n in zip(at, group, strict=True))
    return chosen if sum(gain for gain, _ in chosen) >= num_layers else []


def _by_programme(
    items: list[tuple[int, tuple[int, ...]]], counts: Array, num_layers: int
) -> list[tuple[int, tuple[int, ...]]]:
    """The same as an integer programme, where the table would be too large."""
    gains = np.array([gain for gain, _ in items], float)
    groups = np.array([group for _, group in items], float).T
    solved = optimize.milp(
        -gains,
        constraints=_at_most(groups, counts),
        integrality=np.ones(len(items)),
        options={"time_limit": 0.05, "mip_rel_gap": 0.0},
    )
    if solved.x is None:
        return []
    numbers = np.round(solved.x).astype(int)
    if numbers @ gains < num_layers:
        return []
    return [item for item, number in zip(items, numbers, strict=True) for _ in range(number)]


def _at_most(rows: Array, limits: Array) -> optimize.LinearConstraint:
    below = np.full(len(limits), -np.inf)
    return optimize.LinearConstraint(rows, below, limits)  # pyright: ignore[reportArgumentType]


def _all_intervals(
    problem: CoverProblem, start: Sequence[Interval], reached: float, time_limit_s: float
) -> list[Interval]:
    """All intervals of all kinds as an integer programme; the best found in time."""
    del start, reached
    n = problem.num_layers
    columns = [
        Interval(first_layer=first, num_layers=k, machine=kind)
        for kind, rates in problem.rates.items()
        for k in range(1, min(len(rates), n) + 1)
        for first in range(n - k + 1)
        if rates[k - 1] > 0
    ]
    if time_limit_s <= 0 or len(columns) > 20_000:
        return []
    kinds = list(problem.counts)
    scale = max(float(problem.rates[c.machine][c.num_layers - 1]) for c in columns)
    cover = np.zeros((n, len(columns) + 1))
    used = np.zeros((len(kinds), len(columns) + 1))
    for j, c in enumerate(columns):
        rate = float(problem.rates[c.machine][c.num_layers - 1]) / scale
        cover[c.first_layer : c.first_layer + c.num_layers, j] = rate
        used[kinds.index(c.machine), j] = 1
    cover[:, -1] = -1
    limits = np.array([problem.counts[kind] for kind in kinds], float)
    goal = np.zeros(len(columns) + 1)
    goal[-1] = -1
    solved = optimize.milp(
        goal,
        constraints=[
            optimize.LinearConstraint(sparse.csr_array(cover), 0.0),
            _at_most(used, limits),
        ],
        integrality=np.append(np.ones(len(columns)), 0),
        options={"time_limit": time_limit_s, "mip_rel_gap": 1e-9},
    )
    if solved.x is None:
        return []
    numbers = np.round(solved.x[:-1]).astype(int)
    return [c for c, number in zip(columns, numbers, strict=True) for _ in range(number)]
