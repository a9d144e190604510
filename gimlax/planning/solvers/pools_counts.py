"""How many meshes of each holder, as an integer programme (HiGHS), and how requests flow then.

Every term of a plan is linear in the counts n of meshes and the flows f of requests per second,
divided by the rate R = what enters. So the least value is the zero of a parametric programme
(Dinkelbach 1967): minimise value(n, f) * R - best * R, and as long as that is negative there is a
better plan. With the counts fixed what is left is a linear programme in shares of the requests
(Charnes and Cooper 1962), which gives the flows and the terms to full precision.
Units: seconds, requests per second, those of the objective.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from scipy import optimize, sparse

from gimlax.planning.objective import Objective
from gimlax.planning.problem import Terms
from gimlax.planning.solvers.pools_bound import Holder
from gimlax.planning.solvers.pools_problem import Array, Ints, PoolsProblem

__all__ = ["Columns", "Flow", "Held", "fewest", "terms_of"]

# Requests that a holder must get to be worth its devices, as a share of all.
_NEGLIGIBLE = 1e-9
# Two values that differ by less than this share are the same.
_SAME = 1e-9


@dataclass(frozen=True, slots=True)
class Held:
    """`count` meshes of shape `option` that hold `[first, stop)` and serve `requests_per_s`
    together, of which `onward` go on to meshes of each pool (nothing after the last segment)."""

    option: int
    first: int
    stop: int
    count: int
    requests_per_s: float
    onward: tuple[float, ...]


class Flow(NamedTuple):
    """Requests through a number of meshes: what each holds and serves, and all terms."""

    held: tuple[Held, ...]
    terms: Terms
    value: float


def terms_of(problem: PoolsProblem, held: Sequence[Held]) -> Terms:
    """All terms of a plan that serves as many requests as its meshes can in these proportions."""
    rate = sum(h.requests_per_s for h in held if h.first == 0)
    latency_s = joules = 0.0
    period_s = usd_per_s = idle_watts = 0.0
    for h in held:
        share, group = h.requests_per_s / rate, problem.option_group[h.option]
        stage_s = float(problem.stage_s[h.option, h.first, h.stop])
        busy_s = float(problem.busy_s[h.option, h.first, h.stop])
        latency_s += share * stage_s
        if h.stop < problem.num_segments:
            latency_s += float(np.dot(h.onward, problem.hop_s[group, :, h.stop])) / rate
        period_s = max(period_s, share * busy_s / h.count)
        usd_per_s += h.count * float(problem.usd_per_s[h.option])
        idle_watts += h.count * float(problem.idle_watts[h.option])
        drawn = problem.busy_watts[h.option] - problem.idle_watts[h.option]
        joules += share * stage_s * float(drawn)
    return Terms(
        latency_s=latency_s,
        period_s=period_s,
        usd=usd_per_s * period_s,
        joules=joules + idle_watts * period_s,
    )


def fewest(problem: PoolsProblem, objective: Objective, flow: Flow) -> Flow:
    """The same shares on as few meshes as the limits allow, if the goal does not mind fewer."""
    busy_s = [
        h.requests_per_s * flow.terms.period_s * float(problem.busy_s[h.option, h.first, h.stop])
        for h in flow.held
    ]
    # At this rate one mesh of each would do.
    rate = max(1 / max(busy_s), 1 / objective.term_limits[1])
    held = tuple(
        replace(h, count=min(math.ceil(seconds * rate - 1e-9), h.count))
        for h, seconds in zip(flow.held, busy_s, strict=True)
    )
    terms = terms_of(problem, held)
    slower = flow.terms.period_s / terms.period_s
    held = tuple(
        replace(
            h,
            requests_per_s=h.requests_per_s * slower,
            onward=tuple(part * slower for part in h.onward),
        )
        for h in held
    )
    value = objective.value(terms)
    limits = zip(terms, objective.term_limits, strict=True)
    kept = all(math.isinf(most) or term <= most * (1 + _SAME) for term, most in limits)
    if not kept or value > flow.value * (1 + _SAME):
        return flow
    return Flow(held=held, terms=terms, value=value)


class _Charge(NamedTuple):
    """What a weighted sum of terms takes, per mesh of each holder, per request on each column,
    and per period."""

    held: Array
    column: Array
    period: float


class Columns:
    """Some holders of a problem, and the columns of requests that leave them.

    Where the objective looks at latency, a column is a holder with the pool that its requests go on
    to, so that hand-overs are charged by their links; else there is one column a holder, and
    whatever leaves a boundary may go on with whoever begins there.
    """

    def __init__(
        self, problem: PoolsProblem, holders: Sequence[Holder], objective: Objective, rate: float
    ) -> None:
        """Args:
        problem: what holders take.
        holders: each once.
        objective: what is minimised, and the limits.
        rate: requests per second that no plan exceeds, the unit of flows.
        """
        self.holders = tuple(holders)
        self._problem = problem
        self._objective = objective
        self._rate = rate
        option, first, stop = (np.array(column) for column in zip(*holders, strict=True))
        self._option, self._first, self._stop = option, first, stop
        self._busy_s = problem.busy_s[option, first, stop]
        self._stage_s = problem.stage_s[option, first, stop]
        self._group = problem.option_group[option]
        n, every = problem.num_segments, range(problem.num_groups)
        self._follows = objective.needs("latency") and problem.num_groups > 1
        columns = [
            (k, target)
            for k, holder in enumerate(holders)
            for target in (every if self._follows and holder.stop < n else [0])
        ]
        self._of, self._target = (np.array(column) for column in zip(*columns, strict=True))
        self._enters = self._first[self._of] == 0
        hop_s = problem.hop_s[self._group[self._of], self._target, self._stop[self._of]]
        self._hop_s = np.where(self._stop[self._of] < n, hop_s, 0.0)  # unused where not followed
        self._balance, self._num_places = self._balanced()
        self._used = sparse.csr_array(
            (self._busy_s[self._of], (self._of, np.arange(len(self._of)))),
            (len(holders), len(self._of)),
        )
        self._goal = self._charge(objective.term_weights)
        self._limited = [
            (self._charge([float(k == term) for k in range(4)]), most)
            for term, most in enumerate(objective.term_limits)
            if np.isfinite(most)
        ]

    def _charge(self, weights: Sequence[float]) -> _Charge:
        prices = self._problem.prices(weights)
        column = prices.stage[self._option] * self._stage_s
        return _Charge(
            held=prices.held[self._option],
            column=column[self._of] + prices.hop * self._hop_s,
            period=prices.period,
        )

    def _balanced(self) -> tuple[sparse.csr_array, int]:
        """What enters each place less what leaves it, [place, column], and how many places.

        A place is an inner boundary, with the pool that goes on from there if columns tell it.
        """
        num = len(self._of)
        of_pools = self._problem.num_groups if self._follows else 1
        pool = self._group[self._of] if self._follows else np.zeros(num, int)
        into = self._stop[self._of] * of_pools + self._target
        out = self._first[self._of] * of_pools + pool
        rows = np.concatenate([into, out])
        values = np.repeat([1.0, -1.0], num)
        shape = ((self._problem.num_segments + 1) * of_pools, num)
        full = sparse.coo_array((values, (rows, np.tile(np.arange(num), 2))), shape).tocsr()
        inner = np.unique(rows)
        boundary = inner // of_pools
        places = inner[(boundary > 0) & (boundary < self._problem.num_segments)]
        return full[places], len(places)

    def counts(
        self, best: Flow | None, *, time_limit_s: float, relative_gap: float
    ) -> tuple[Array | None, bool]:
        """Numbers of meshes of each holder for a plan better than `best`.

        Args:
            best: a plan; None asks for the largest rate within the limits instead.
            time_limit_s: for HiGHS.
            relative_gap: at which it may stop.

        Returns:
            The counts, None if there are none or none was found; and whether that is proved.
        """
        if best is None:
            goal = np.concatenate([np.zeros(len(self.holders)), -1.0 * self._enters])
        else:
            # In units of what the plan at hand is charged per second.
            unit = max(best.value / best.terms.period_s, 1e-300)
            column = self._goal.column - best.value * self._enters
            goal = np.concatenate([self._goal.held, column * self._rate]) / unit
        return self._solved(goal, time_limit_s, relative_gap)

    def _solved(
        self, goal: Array, time_limit_s: float, relative_gap: float
    ) -> tuple[Array | None, bool]:
        """Counts of least `goal` that keep to the devices and the limits."""
        num, num_columns = len(self.holders), len(self._of)
        room, limits = self._problem.rooms()
        room = room[:, self._option]
        most = np.where(room > 0, limits[:, None] / np.where(room > 0, room, 1), np.inf)
        most_count = np.floor(most).min(axis=0)
        most_flow = np.minimum(most_count / (self._rate * self._busy_s), 1.0)[self._of]
        busy = sparse.hstack([-sparse.eye_array(num), self._used * self._rate])
        unused = sparse.csr_array((len(room), num_columns))
        fitting = sparse.hstack([sparse.csr_array(room), unused])
        places = self._num_places
        flowing = sparse.hstack([sparse.csr_array((places, num)), self._balance])
        constraints = [
            (busy, -np.inf, 0.0),
            (fitting, -np.inf, limits),
            *([(flowing, 0.0, 0.0)] if places else []),
            *(self._within(charge, limit) for charge, limit in self._limited),
        ]
        solved = optimize.milp(
            goal,
            integrality=np.repeat([1, 0], [num, num_columns]),
            bounds=optimize.Bounds(0, np.concatenate([most_count, most_flow])),  # pyright: ignore[reportArgumentType]
            constraints=[
                optimize.LinearConstraint(matrix, low, high)  # pyright: ignore[reportArgumentType]
                for matrix, low, high in constraints
            ],
            options={"time_limit": max(time_limit_s, 0.01), "mip_rel_gap": relative_gap},
        )
        if solved.x is None:
            return None, solved.status == 2  # 2: there are none
        return np.round(solved.x[:num]), solved.status == 0

    def _within(self, charge: _Charge, limit: float) -> tuple[Array, float, float]:
        """A row that keeps a charge per request below a limit."""
        unit = limit * self._rate
        row = np.concatenate(
            [charge.held / unit, charge.column * (self._rate / unit) - self._enters]
        )
        return row[None], -np.inf, -charge.period / unit

    def flow(self, counts: Array) -> Flow | None:
        """The best flow through so many meshes, None if none keeps the limits."""
        num = len(self._of)
        unit_s = 1 / self._rate
        rows = [sparse.hstack([self._used / unit_s, -counts[:, None]])]
        most = [np.zeros(len(counts))]
        for charge, limit in self._limited:
            period = (charge.period + charge.held @ counts) * unit_s
            rows.append(sparse.csr_array(np.append(charge.column, period)[None] / limit))
            most.append(np.ones(1))
        nothing = sparse.csr_array((self._num_places, 1))
        entering = sparse.csr_array(np.append(self._enters, 0.0)[None])
        equal = sparse.vstack([entering, sparse.hstack([self._balance, nothing])])
        period = (self._goal.period + self._goal.held @ counts) * unit_s
        goal = np.append(self._goal.column, period)
        open_ = np.append((counts > 0)[self._of], np.inf)
        solved = optimize.linprog(
            goal / max(float(np.abs(goal).max()), 1e-300),
            A_ub=sparse.vstack(rows).tocsr(),
            b_ub=np.concatenate(most),
            A_eq=equal.tocsr(),
            b_eq=np.append(1.0, np.zeros(self._num_places)),
            bounds=np.stack([np.zeros(num + 1), open_], axis=1),
        )
        if solved.status != 0:
            return None
        return self._told(counts, np.maximum(solved.x[:num], 0.0))

    def _told(self, counts: Array, shares: Array) -> Flow:
        """Shares of the requests on columns as what each holder serves, and the terms."""
        problem, objective = self._problem, self._objective
        served = np.bincount(self._of, shares, len(self.holders))
        served = np.where(counts > 0, served, 0.0)
        if not any(c.column.any() for c in (self._goal, *(c for c, _ in self._limited))):
            served = self._evened(counts, served)
        used = np.flatnonzero(served > _NEGLIGIBLE)
        onward = np.zeros((len(self.holders), problem.num_groups))
        if self._follows:
            np.add.at(onward, (self._of, self._target), shares)
            onward[self._stop == problem.num_segments] = 0.0
        else:
            onward[used] = self._handed_over(used, served)
        period_s = float((served[used] * self._busy_s[used] / counts[used]).max())
        held = tuple(
            Held(
                *self.holders[k],
                count=int(counts[k]),
                requests_per_s=float(served[k]) / period_s,
                onward=tuple(float(share) / period_s for share in onward[k]),
            )
            for k in used
        )
        terms = terms_of(problem, held)
        return Flow(held=held, terms=terms, value=objective.value(terms))

    def _evened(self, counts: Array, served: Array) -> Array:
        """The same in each run, shared out by what its holders can do. [holder]"""
        able = counts / self._busy_s
        result = np.zeros_like(served)
        for run in set(zip(self._first.tolist(), self._stop.tolist(), strict=True)):
            same = (self._first == run[0]) & (self._stop == run[1])
            if able[same].any():
                result[same] = served[same].sum() * able[same] / able[same].sum()
        return result

    def _handed_over(self, used: Ints, served: Array) -> Array:
        """To which pools requests go on, over the quickest links. [holder, pool]"""
        groups = range(self._problem.num_groups)
        result = np.zeros((len(used), len(groups)))
        group, first, stop = self._group[used], self._first[used], self._stop[used]
        for boundary in np.unique(stop[stop < self._problem.num_segments]):
            ends = [served[used][(stop == boundary) & (group == g)].sum() for g in groups]
            starts = [served[used][(first == boundary) & (group == g)].sum() for g in groups]
            moved = _quickest(np.array(ends), np.array(starts), self._problem.hop_s[:, :, boundary])
            for k in np.flatnonzero(stop == boundary):
                result[k] = moved[group[k]] * served[used[k]] / ends[group[k]]
        return result


def _quickest(ends: Array, starts: Array, hop_s: Array) -> Array:
    """How much goes from each pool to each with the least seconds in all. [source, target]"""
    sources, targets = np.flatnonzero(ends), np.flatnonzero(starts)
    moved = np.zeros_like(hop_s)
    if min(len(sources), len(targets)) <= 1:
        moved[np.ix_(sources, targets)] = np.outer(ends[sources], starts[targets]) / starts.sum()
        return moved
    num, each = len(sources), len(targets)
    leaving = np.kron(np.eye(num), np.ones(each))
    arriving = np.kron(np.ones(num), np.eye(each))
    solved = optimize.linprog(
        hop_s[np.ix_(sources, targets)].ravel() / max(float(hop_s.max()), 1e-300),
        A_eq=np.vstack([leaving, arriving[:-1]]),  # the last one follows from the others
        b_eq=np.concatenate([ends[sources], starts[targets[:-1]]]),
    )
    moved[np.ix_(sources, targets)] = np.maximum(solved.x, 0.0).reshape(num, each)
    return moved
