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
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from scipy import optimize, sparse

from gimlax.planning.objective import Objective
from gimlax.planning.problem import Terms
from gimlax.planning.solvers.pools_bound import Holder
from gimlax.planning.solvers.pools_flows import Columns, Held, at_rate, occupied, terms_of
from gimlax.planning.solvers.pools_problem import Array, PoolsProblem

__all__ = ["Counting", "Flow", "fewest", "flow_of"]

# Two values that differ by less than this share are the same.
_SAME = 1e-9


class Flow(NamedTuple):
    """Requests through a number of meshes: what each holds and serves, and all terms."""

    held: tuple[Held, ...]
    terms: Terms
    value: float


def flow_of(problem: PoolsProblem, objective: Objective, held: tuple[Held, ...]) -> Flow | None:
    """What is held with its terms, None if it breaks a limit."""
    terms = terms_of(problem, held)
    limits = zip(terms, objective.term_limits, strict=True)
    if not all(math.isinf(most) or term <= most * (1 + 1e-7) for term, most in limits):
        return None
    return Flow(held=held, terms=terms, value=objective.value(terms))


def fewest(problem: PoolsProblem, objective: Objective, flow: Flow) -> Flow:
    """The same shares on as few meshes as the limits allow and the goal does not mind."""
    meshes = [max(occupied(problem, h)) for h in flow.held]
    # At so many times the rate one mesh of each would do.
    slowest = max(1 / max(meshes), flow.terms.period_s / objective.term_limits[1])
    for slower in (min(slowest, 1.0), 1.0):
        fewer = tuple(
            replace(h, count=min(math.ceil(needed * slower - 1e-9), h.count))
            for h, needed in zip(flow.held, meshes, strict=True)
        )
        fewer = at_rate(fewer, 1 / terms_of(problem, fewer).period_s)
        found = flow_of(problem, objective, fewer)
        if found is not None and found.value <= flow.value * (1 + _SAME):
            return found
    return flow


class _Charge(NamedTuple):
    """What a weighted sum of terms takes, per mesh of each holder, per request on each column,
    and per period."""

    held: Array
    column: Array
    period: float


class Counting:
    """The programme over some holders of a problem."""

    def __init__(
        self, problem: PoolsProblem, holders: Sequence[Holder], objective: Objective, rate: float
    ) -> None:
        """Args:
        problem: what holders take.
        holders: each once.
        objective: what is minimised, and the limits.
        rate: requests per second that no plan exceeds, the unit of flows.
        """
        self._problem = problem
        self._holders = tuple(holders)
        self._objective = objective
        self._rate = rate
        self._columns = Columns.of_holders(problem, holders)
        self._goal = self._charge(objective.term_weights)
        self._limited = [
            (self._charge([float(k == term) for k in range(len(objective.term_limits))]), most)
            for term, most in enumerate(objective.term_limits)
            if math.isfinite(most)
        ]

    def _charge(self, weights: Sequence[float]) -> _Charge:
        prices, columns = self._problem.prices(weights), self._columns
        option, first, stop = (np.array(each) for each in zip(*self._holders, strict=True))
        stage = prices.stage[option] * self._problem.stage_s[option, first, stop]
        hop = prices.hop[0, 0] * columns.hop_s  # of any two pools the same
        return _Charge(
            held=prices.held[option],
            column=np.where(columns.leaves, stage[columns.of] + hop, 0.0),
            period=prices.period,
        )

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
        columns, num = self._columns, len(self._holders)
        if best is None:
            goal = np.concatenate([np.zeros(num), -columns.enters])
        else:
            # In units of what the plan at hand is charged per second.
            unit = max(best.value / best.terms.period_s, 1e-300)
            column = self._goal.column - best.value * columns.enters
            goal = np.concatenate([self._goal.held, column * self._rate]) / unit
        room, limits = self._problem.rooms()
        room = room[:, [holder.option for holder in self._holders]]
        most = np.where(room > 0, limits[:, None] / np.where(room > 0, room, 1), np.inf)
        most_count = np.floor(most).min(axis=0)
        alone = len(columns.busy_of)
        made = sparse.csr_array((np.ones(alone), (np.arange(alone), columns.busy_of)), (alone, num))
        unused, places = sparse.csr_array((len(room), len(columns.of))), columns.num_places
        balance = sparse.hstack([sparse.csr_array((places, num)), columns.balance])
        constraints = [
            (sparse.hstack([-made, columns.busy * self._rate]), -np.inf, 0.0),
            (sparse.hstack([sparse.csr_array(room), unused]), -np.inf, limits),
            *([(balance, 0.0, 0.0)] if places else []),
            *(self._within(charge, limit) for charge, limit in self._limited),
        ]
        solved = optimize.milp(
            goal,
            integrality=np.repeat([1, 0], [num, len(columns.of)]),
            bounds=optimize.Bounds(0, np.append(most_count, np.ones(len(columns.of)))),  # pyright: ignore[reportArgumentType]
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
        column = charge.column * (self._rate / unit) - self._columns.enters
        return np.append(charge.held / unit, column)[None], -np.inf, -charge.period / unit

    def flow(self, counts: Array) -> Flow | None:
        """The best flow through so many meshes, None if none keeps the limits."""
        columns, unit_s = self._columns, 1 / self._rate
        num, places = len(columns.of), columns.num_places
        rows = [sparse.hstack([columns.busy / unit_s, -counts[columns.busy_of][:, None]])]
        most = [np.zeros(len(columns.busy_of))]
        for charge, limit in self._limited:
            period = (charge.period + charge.held @ counts) * unit_s
            rows.append(sparse.csr_array(np.append(charge.column, period)[None] / limit))
            most.append(np.ones(1))
        entering = sparse.csr_array(np.append(columns.enters, 0.0)[None])
        balance = sparse.hstack([columns.balance, sparse.csr_array((places, 1))])
        period = (self._goal.period + self._goal.held @ counts) * unit_s
        goal = np.append(self._goal.column, period)
        solved = optimize.linprog(
            goal / max(float(np.abs(goal).max()), 1e-300),
            A_ub=sparse.vstack(rows).tocsr(),
            b_ub=np.concatenate(most),
            A_eq=sparse.vstack([entering, balance]).tocsr(),
            b_eq=np.append(1.0, np.zeros(places)),
            bounds=np.stack(
                [np.zeros(num + 1), np.append((counts > 0)[columns.of], np.inf)], axis=1
            ),
        )
        if solved.status != 0:
            return None
        charges = [self._goal, *(charge for charge, _ in self._limited)]
        held = columns.held(
            self._problem,
            self._holders,
            counts,
            np.maximum(solved.x[:num], 0.0),
            even=not any(charge.column.any() for charge in charges),
        )
        return flow_of(self._problem, self._objective, held)
