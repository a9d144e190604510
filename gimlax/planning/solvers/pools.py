"""Chains on pools of equal devices: how many meshes of which shape hold which run of segments.

A holder is a mesh of some shape with a run of segments; requests flow through holders from the
first boundary to the last, so a plan is a flow. That has replicas of a stage, replicas on another
kind of device, and several pipelines with other cuts side by side as one case. Counts are whole
numbers, the flow is not: an integer programme over holders (`pools_counts.py`), exact with all
holders where there are few, else with those that the prices of devices (`pools_bound.py`) and the
counting programme (`pools_columns.py`) single out, which is a local search: in each round holders
near the best plan come in. Units: seconds, requests per second, those of the objective.
"""

import math
import time
from dataclasses import dataclass, replace

import numpy as np

from gimlax.planning.objective import Objective, certified
from gimlax.planning.problem import Terms
from gimlax.planning.solvers.pools_bound import Holder, lower_bound
from gimlax.planning.solvers.pools_columns import Pipelines
from gimlax.planning.solvers.pools_counts import Counting, Flow, fewest, flow_of
from gimlax.planning.solvers.pools_flows import Held, at_rate, occupied, terms_of
from gimlax.planning.solvers.pools_problem import PoolsProblem

__all__ = ["Held", "Solution", "solve"]

# As many holders as the exact programme is tried with.
MOST_EXACT = 600
# A round of the search is the last if its plan is this close to the bound.
_CLOSE = 2e-3
# Two plans whose values differ by less than this share are equally good.
_SAME = 1e-7


@dataclass(frozen=True, slots=True, kw_only=True)
class Solution:
    """The best plan found, and a value that no plan goes below.

    `method` is 'exact' if nothing better exists, 'local' if a search ended, 'stopped' if its time
    was over.
    """

    held: tuple[Held, ...]
    terms: Terms
    value: float
    bound: float
    method: str

    @property
    def gap(self) -> float:
        """By which share a plan could at most be better."""
        return self.value / self.bound - 1 if self.bound > 0 else float("inf")


def solve(
    problem: PoolsProblem, objective: Objective, *, time_limit_s: float = 20.0
) -> Solution | None:
    """The plan of the least value that was found, or None if none was.

    Args:
        problem: what holders take and how many devices there are.
        objective: what is minimised, and the limits; what it looks at has to be known of all
            shapes.
        time_limit_s: about how long the search may take.
    """
    ends_s = time.monotonic() + time_limit_s
    bound = lower_bound(problem, objective)
    if not np.isfinite(bound.value):
        return None
    fastest = Objective(goal="throughput")
    period_s = bound.value if objective == fastest else lower_bound(problem, fastest).value
    most = 1 / period_s
    possible = problem.possible()
    few = possible.sum() <= MOST_EXACT
    everything = [Holder(*row) for row in np.argwhere(possible).tolist()] if few else []
    best: Flow | None = None
    if everything:
        counting = Counting(problem, everything, objective, most)
        best, proved = _best(counting, objective, None, time_limit_s, relative_gap=0.0)
        if proved:
            return _solution(problem, objective, best, bound.value, "exact")
    # Few and good: holders of the fractional optimum as well would only slow the programme down.
    whole_model = np.flatnonzero(possible[:, 0, -1]).tolist()
    ways = [([Holder(option, 0, problem.num_segments)], 0.0) for option in whole_model]
    pipelines = Pipelines(problem, bound, most)
    ways += pipelines.of_many_rates()
    for way, rate in ways:
        plain = _alone(problem, objective, way, rate)
        if plain is not None and (best is None or plain.value < best.value):
            best = plain
    whole = [holder for way, _ in ways for holder in way]
    holders = dict.fromkeys([*everything, *whole])
    rounds, stopped = 0, False
    while True:
        left_s = ends_s - time.monotonic()
        # The first round gets half of what is left, so that there is a second one.
        counting = Counting(problem, list(holders), objective, most)
        found, _ = _best(counting, objective, best, max(left_s / 2, 0.2), relative_gap=_CLOSE / 2)
        better = found is not None and (best is None or found.value < best.value * (1 - 1e-6))
        best = found if better else best
        rounds += 1
        stopped = time.monotonic() > ends_s - 0.25 * time_limit_s
        if (
            (best is not None and best.value <= bound.value * (1 + _CLOSE))
            or stopped
            or (rounds > 2 and not better)
        ):
            break
        used = [Holder(h.option, h.first, h.stop) for h in best.held] if best else []
        others = pipelines.near(seed=rounds) if used else bound.holders
        holders = dict.fromkeys([*used, *whole, *others])
    method = "stopped" if stopped else "local"
    return _solution(problem, objective, best, bound.value, method)


def _alone(
    problem: PoolsProblem, objective: Objective, way: list[Holder], rate: float
) -> Flow | None:
    """One pipeline of a rate and nothing else, None if it breaks a limit or devices are too few.

    Args:
        problem: what holders take.
        objective: has the limits.
        way: the holders in order, none if there are none.
        rate: requests per second; at least what one mesh of each can do.
    """
    if not way:
        return None
    pools = [int(problem.option_group[holder.option]) for holder in way]
    hot = np.eye(problem.num_groups).tolist()
    nothing = [0.0] * problem.num_groups
    into, out = [nothing, *(hot[p] for p in pools[:-1])], [*(hot[p] for p in pools[1:]), nothing]
    held = [
        Held(*holder, count=1, requests_per_s=1.0, inward=tuple(a), onward=tuple(b))
        for holder, a, b in zip(way, into, out, strict=True)
    ]
    most = max(rate, 1 / max(max(occupied(problem, h)) for h in held))
    counts = [math.ceil(max(occupied(problem, h)) * most - 1e-9) for h in held]
    rows, limits = problem.rooms()
    if (rows[:, [holder.option for holder in way]] @ counts > limits).any():
        return None
    held = [replace(h, count=count) for h, count in zip(held, counts, strict=True)]
    return flow_of(problem, objective, at_rate(held, 1 / terms_of(problem, held).period_s))


def _best(
    counting: Counting,
    objective: Objective,
    start: Flow | None,
    time_limit_s: float,
    *,
    relative_gap: float,
) -> tuple[Flow | None, bool]:
    """The best plan with these holders, and whether that is proved.

    Args:
        counting: the programme over the holders.
        objective: what is minimised.
        start: a plan that is known.
        time_limit_s: for all programmes.
        relative_gap: at which a programme may stop.
    """
    ends_s = time.monotonic() + time_limit_s
    latency, _, usd, joules = objective.term_weights
    only_rate = not (latency or usd or joules)
    best = start
    if best is None or only_rate:
        counts, proved = counting.counts(None, time_limit_s=time_limit_s, relative_gap=relative_gap)
        found = None if counts is None else counting.flow(counts)
        if found is None or only_rate:
            return found, proved and (found is not None or counts is None)
        best = found
    while True:
        left_s = ends_s - time.monotonic()
        counts, proved = counting.counts(best, time_limit_s=left_s, relative_gap=relative_gap)
        found = None if counts is None else counting.flow(counts)
        if found is None or found.value >= best.value * (1 - _SAME):
            return best, proved
        best = found
        if time.monotonic() > ends_s:
            return best, False


def _solution(
    problem: PoolsProblem, objective: Objective, flow: Flow | None, bound: float, method: str
) -> Solution | None:
    if flow is None:
        return None
    flow = fewest(problem, objective, flow)
    return Solution(
        held=flow.held,
        terms=flow.terms,
        value=flow.value,
        bound=certified(bound, flow.value),
        method=method,
    )
