"""Chains on pools of equal devices: how many meshes of which shape hold which run of segments.

A holder is a mesh of some shape with a run of segments; requests flow through holders from the
first boundary to the last, so a plan is a flow, and its rate the largest that the holders carry.
That has replicas of a stage, replicas on another kind of device, and several pipelines with other
cuts side by side as one case. Counts are whole numbers, the flow is not: an integer programme over
holders (HiGHS), exact with all holders where there are few, else with those that the prices of
devices (`pools_bound.py`) and the counting programme (`pools_columns.py`) single out, which is a
local search: in each round holders near the best plan come in. Units: seconds, requests per second.
"""

import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, sparse

from gimlax.planning.solvers.pools_bound import Bound, most_requests_per_s
from gimlax.planning.solvers.pools_columns import Holder, counted, near
from gimlax.planning.solvers.pools_problem import Array, PoolsProblem

__all__ = ["Held", "Solution", "solve"]

# As many holders as the exact programme is tried with.
MOST_EXACT = 600
# A round of the search is the last if its plan is this close to the bound.
_CLOSE = 2e-3
# Requests that a holder must get to be worth its devices, as a share of all.
_NEGLIGIBLE = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """`count` meshes of shape `option` that hold `[first, stop)` and serve `requests_per_s`
    together."""

    option: int
    first: int
    stop: int
    count: int
    requests_per_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Solution:
    """The best plan found, and a rate that no plan exceeds.

    `method` is 'exact' if nothing better exists, 'local' if a search ended, 'stopped' if its time
    was over.
    """

    held: tuple[Held, ...]
    requests_per_s: float
    bound: Bound
    method: str

    @property
    def gap(self) -> float:
        """By which share a plan could at most be faster."""
        return self.bound.requests_per_s / self.requests_per_s - 1


def solve(problem: PoolsProblem, *, time_limit_s: float = 20.0) -> Solution | None:
    """The plan of the largest rate that was found, or None if no plan is possible.

    Args:
        problem: what holders take and how many devices there are.
        time_limit_s: about how long the search may take.
    """
    ends_s = time.monotonic() + time_limit_s
    bound = most_requests_per_s(problem)
    if not bound.requests_per_s > 0:
        return None
    possible = np.argwhere(problem.possible())
    everything = [Holder(*map(int, row)) for row in possible] if len(possible) <= MOST_EXACT else []
    if everything:
        best, proved = _best_counts(problem, everything, bound, time_limit_s, relative_gap=0.0)
        if proved:
            return _solution(best, bound, "exact")
    else:
        best, proved = [], False
    # Few and good: holders of the fractional optimum as well would only slow the programme down.
    whole = counted(problem, bound)
    holders = dict.fromkeys([*everything, *whole])
    rounds, stopped = 0, False
    while True:
        left_s = ends_s - time.monotonic()
        # The first round gets half of what is left, so that there is a second one.
        found, _ = _best_counts(
            problem, list(holders), bound, max(left_s / 2, 0.2), relative_gap=_CLOSE / 2
        )
        better = _rate(found) > _rate(best) * (1 + 1e-6)
        best = found if better else best
        rounds += 1
        stopped = time.monotonic() > ends_s - 0.25 * time_limit_s
        if (
            _rate(best) * (1 + _CLOSE) >= bound.requests_per_s
            or stopped
            or (rounds > 2 and not better)
        ):
            break
        used = [Holder(h.option, h.first, h.stop) for h in best]
        others = near(problem, bound, seed=rounds) if used else bound.holders
        holders = dict.fromkeys([*used, *whole, *others])
    return _solution(best, bound, "stopped" if stopped else "local")


def _solution(held: list[Held], bound: Bound, method: str) -> Solution | None:
    if not held:
        return None
    rate = _rate(held)
    return Solution(held=tuple(held), requests_per_s=rate, bound=bound, method=method)


def _rate(held: list[Held]) -> float:
    return sum(h.requests_per_s for h in held if h.first == 0)


def _best_counts(
    problem: PoolsProblem,
    holders: list[Holder],
    bound: Bound,
    time_limit_s: float,
    *,
    relative_gap: float,
) -> tuple[list[Held], bool]:
    """The integer programme over some holders: what it found, and whether that is proved best.

    Variables: a count and a flow for each holder; flows are in shares of the bound.
    """
    num = len(holders)
    option, first, stop = (np.array(column) for column in zip(*holders, strict=True))
    rate = 1 / (problem.busy_s[option, first, stop] * bound.requests_per_s)
    rows, limits = problem.rooms()
    room = sparse.csr_array(rows[:, option])
    flow = _flow(first, stop, problem.num_segments)
    most = np.floor((limits[:, None] / np.where(rows > 0, rows, np.nan))[:, option])
    most_count = np.nanmin(most, axis=0)
    most_of_each = np.concatenate([most_count, np.minimum(most_count * rate, 1.0)])
    within = sparse.hstack([-sparse.diags_array(rate), sparse.eye_array(num)])
    fitting = sparse.hstack([room, sparse.csr_array(room.shape)])
    balanced = sparse.csr_array(np.hstack([np.zeros_like(flow), flow]))
    constraints = [
        optimize.LinearConstraint(matrix, low, high)  # pyright: ignore[reportArgumentType]
        for matrix, low, high in (
            (within, -np.inf, 0.0),
            (fitting, -np.inf, limits),
            *([(balanced, 0.0, 0.0)] if len(flow) else []),
        )
    ]
    solved = optimize.milp(
        np.concatenate([np.zeros(num), -1.0 * (first == 0)]),
        integrality=np.repeat([1, 0], num),
        bounds=optimize.Bounds(0, most_of_each),  # pyright: ignore[reportArgumentType]
        constraints=constraints,
        options={"time_limit": time_limit_s, "mip_rel_gap": relative_gap},
    )
    if solved.x is None:
        return [], False
    counts = np.round(solved.x[:num])
    return _spread(holders, counts, rate, bound.requests_per_s, flow), solved.status == 0


def _flow(first: NDArray[np.int64], stop: NDArray[np.int64], num_segments: int) -> Array:
    """What enters each inner boundary less what leaves it. [boundary, holder]"""
    num = len(first)
    columns = np.concatenate([np.arange(num), np.arange(num)])
    values = np.repeat([1.0, -1.0], num)
    shape = (num_segments + 1, num)
    full = sparse.coo_array((values, (np.concatenate([stop, first]), columns)), shape=shape).tocsr()
    inner = np.unique(np.concatenate([first, stop]))
    return full[inner[(inner > 0) & (inner < num_segments)]].toarray()


def _spread(
    holders: list[Holder], counts: Array, rate: Array, unit: float, flow: Array
) -> list[Held]:
    """The largest flow through so many holders, shared evenly: by rate among those of a run.

    The programme's own flow may be off by its tolerance of whole numbers.
    """
    starts = np.array([holder.first == 0 for holder in holders])
    balanced = np.zeros(len(flow))
    solved = optimize.linprog(
        -1.0 * starts,
        A_eq=flow if len(balanced) else None,
        b_eq=balanced if len(balanced) else None,
        bounds=np.stack([np.zeros(len(counts)), counts * rate], axis=1),
    )
    total = float(solved.x[starts].sum())
    runs: dict[tuple[int, int], list[int]] = {}
    for k in np.flatnonzero(counts):
        runs.setdefault((holders[k].first, holders[k].stop), []).append(int(k))
    return [
        Held(
            option=holders[k].option,
            first=first,
            stop=stop,
            count=int(counts[k]),
            requests_per_s=carried
            * float(counts[k] * rate[k] / (counts * rate)[same].sum())
            * unit,
        )
        for (first, stop), same in sorted(runs.items())
        if (carried := float(solved.x[same].sum())) > _NEGLIGIBLE * total
        for k in same
    ]
