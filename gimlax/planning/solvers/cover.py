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

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import optimize, sparse

from gimlax.errors import PlanError
from gimlax.planning.problem import Array
from gimlax.planning.solvers.cover_bound import (
    CoverBound,
    bound_tokens_per_s,
    tightened_tokens_per_s,
)
from gimlax.planning.solvers.cover_greedy import overlapping
from gimlax.planning.solvers.cover_problem import CoverProblem, Interval
from gimlax.planning.solvers.cover_search import search_spans

__all__ = ["CoverProblem", "CoverSolution", "Interval", "flow_tokens_per_s", "solve_cover"]

_FEW = 1_000
_NEAR = 1e-3
_SOON_S = 0.05
_MANY_HOLDERS = 2


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


def solve_cover(
    problem: CoverProblem,
    *,
    time_limit_s: float = 1.0,
    clock: Callable[[], float] = time.perf_counter,
) -> CoverSolution:
    """A layout of most tokens per second.

    Args:
        problem: what to cover with what.
        time_limit_s: to be kept to.
        clock: what the limit is measured by, in seconds.

    Raises:
        PlanError: all machines together cannot hold the layers.
    """
    start = clock()
    _check_room(problem)
    figures = (problem.num_layers, problem.counts, problem.rates)

    def left_s() -> float:
        return time_limit_s - (clock() - start)

    best: list[Interval] = []
    value, most = 0.0, math.inf
    bound = bound_tokens_per_s(*figures, time_limit_s=0.4 * left_s(), clock=clock)
    if math.prod(n + 1 for n in problem.counts.values()) * problem.num_layers <= _FEW:
        best, most = _all_intervals(_capped(problem), left_s())
        value = flow_tokens_per_s(problem, best)
        most = most if problem.link_tokens_per_s >= most else math.inf
    most = min(most, bound.tokens_per_s)
    if most > value * (1 + 1e-6):
        other, flow = _found(problem, bound, left_s(), clock)
        best, value = (other, flow) if flow > value else (best, value)
    if most > value * (1 + 1e-6) and value:
        tight = tightened_tokens_per_s(*figures, bound, value, time_limit_s=left_s(), clock=clock)
        most = min(most, tight)
    if not best or value <= 0:
        raise PlanError(
            "cover problem: no layout was found that passes any token; raise the time limit"
        )
    return CoverSolution(
        value=value,
        bound=max(most, value),
        layout=tuple(sorted(best)),
        seconds=clock() - start,
    )


def _found(
    problem: CoverProblem, bound: CoverBound, time_limit_s: float, clock: Callable[[], float]
) -> tuple[list[Interval], float]:
    """The best layout by spans, and then by intervals that overlap at will, with its flow."""
    many = max(map(len, bound.sets), default=0) > _MANY_HOLDERS
    time_limit_s *= 0.95 if many else 0.8  # the rest is for the bound
    end = clock() + time_limit_s

    def enough(flow: float) -> bool:
        """Whether it is near the bound, and soon proven to be the most."""
        figures = (problem.num_layers, problem.counts, problem.rates)
        if flow < bound.tokens_per_s * (1 - _NEAR):
            return False
        most = tightened_tokens_per_s(
            *figures, bound, flow, tolerance=1.0, time_limit_s=_SOON_S, clock=clock
        )
        return most <= flow * (1 + 1e-6)

    share = 0.3 if many else 0.6  # the more holders a layer has, the better small changes do
    capped = _capped(problem)
    layout = search_spans(
        capped, bound, enough=enough, time_limit_s=share * time_limit_s, clock=clock
    )
    if layout and not enough(flow_tokens_per_s(capped, layout)):
        layout = overlapping(capped, bound, layout, time_limit_s=end - clock(), clock=clock)
    return layout, flow_tokens_per_s(problem, layout)


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


def _at_most(rows: Array, limits: Array) -> optimize.LinearConstraint:
    below = np.full(len(limits), -np.inf)
    return optimize.LinearConstraint(rows, below, limits)  # pyright: ignore[reportArgumentType]


def _all_intervals(problem: CoverProblem, time_limit_s: float) -> tuple[list[Interval], float]:
    """All intervals of all kinds as an integer programme; the best found in time, and a bound."""
    n = problem.num_layers
    columns = [
        Interval(first_layer=first, num_layers=k, machine=kind)
        for kind, rates in problem.rates.items()
        for k in range(1, min(len(rates), n) + 1)
        for first in range(n - k + 1)
        if rates[k - 1] > 0
    ]
    if time_limit_s <= 0 or not columns:
        return [], math.inf
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
        return [], math.inf
    numbers = np.round(solved.x[:-1]).astype(int)
    layout = [c for c, number in zip(columns, numbers, strict=True) for _ in range(number)]
    return layout, -float(solved.mip_dual_bound) * scale * (1 + 1e-9)
