"""Splits a graph that branches: exact dynamic programming over its down-sets, with pruning.

A pipeline is a growing row of down-sets, so the best one is a shortest path among pairs of them.
Down-sets are enumerated once; then the question "is there a split below T?" is put for growing T
between the independent bound and the best split along a few orders of the nodes. What T leaves
open is little, so a failing question is cheap and raises the bound, and the first that succeeds
gives the optimum. Where there are more down-sets than memory or time allow, the same programme runs
over a sample of them around the best split, which is then the best known, with a gap.
Chosen over an integer programme: the same optima in seconds, and no big-M relaxation to close.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from gimlax.errors import InternalError, PlanError
from gimlax.planning.solvers.blocks import Blocks, contract
from gimlax.planning.solvers.dag import Assignment, DagProblem, faults, loads_s
from gimlax.planning.solvers.dag_bound import lower_bound_s
from gimlax.planning.solvers.ideals import along, grow, last_of, shrink, tabulate
from gimlax.planning.solvers.orders import orders
from gimlax.planning.solvers.pair_loads import SMALL, PairLoads
from gimlax.planning.solvers.sweep import Pipeline, TooLateError, sweep

MEMORY_BYTES = 512 * 2**20  # what the tables of down-sets may take
TIE = 1e-9  # splits closer than this part of their value are equally good
Clock = Callable[[], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class DagSolution:
    """The best split found.

    Attributes:
        value_s: load of its busiest device, seconds per sample.
        bound_s: no split is below it: what the search has ruled out, or the independent bound.
        independent_bound_s: the part of it that does not rest on the search.
        assignment: the device of each node.
        proven: whether no split is better.
        seconds: how long it took.
        num_ideals: down-sets that were looked at.
    """

    value_s: float
    bound_s: float
    independent_bound_s: float
    assignment: Assignment
    proven: bool
    seconds: float
    num_ideals: int

    @property
    def gap(self) -> float:
        """How much better the optimum of the model can be, as a part of the value."""
        return 0.0 if self.value_s <= 0 else max(0.0, 1 - self.bound_s / self.value_s)


def solve_downsets(
    problem: DagProblem, *, time_limit_s: float = 60.0, clock: Clock = time.monotonic
) -> DagSolution:
    """The split whose busiest device is least busy.

    Args:
        problem: graph and devices.
        time_limit_s: when the search stops; the best split then comes with its gap.
        clock: what measures it.

    Raises:
        PlanError: no split fits the memory of the accelerators, or none was found in time.
    """
    return _Search(problem, time_limit_s, clock).run()


class _Search:
    def __init__(self, problem: DagProblem, time_limit_s: float, clock: Clock) -> None:
        self.problem, self.clock = problem, clock
        self.started_s = clock()
        self.ends_s = self.started_s + time_limit_s
        self.blocks: Blocks = contract(problem)
        self.best: Pipeline | None = None
        self.ruled_out_s = 0.0
        self.num_ideals = 0

    def late(self) -> bool:
        return self.clock() > self.ends_s

    def half_over(self) -> bool:
        """Whether the other half of the time is needed for what a sample of down-sets can give."""
        return 2 * self.clock() > self.started_s + self.ends_s

    def run(self) -> DagSolution:
        bound_s = lower_bound_s(self.problem)
        if bound_s == np.inf:
            raise PlanError(self._infeasible())
        self.ruled_out_s = bound_s
        n, width = len(self.blocks.before), len(self.blocks.before) + len(self.blocks.nets)
        most = MEMORY_BYTES // (4 * width + 200)
        proven = False
        found = grow(self.blocks, [0], most, self.half_over) if n else {0: 0}
        try:
            if found is None or len(found) > SMALL:
                self._start()
            if found is None:
                self._wander()
            else:
                self._settle(found)
                proven = True
        except TooLateError:
            pass
        if self.best is None and not proven and self.late():
            raise PlanError(
                f"no split of {self.problem.num_nodes} nodes was found in "
                f"{self.ends_s - self.started_s:g} s; give more time"
            )
        if self.best is None:
            raise PlanError(self._infeasible())
        return self._solution(self.best, bound_s, proven)

    def _pairs(self, found: dict[int, int]) -> PairLoads:
        self.num_ideals = max(self.num_ideals, len(found))
        return PairLoads(tabulate(self.blocks, found), self.problem.capacity_bytes)

    def _ask(self, pairs: PairLoads, limit_s: float, late: Callable[[], bool]) -> bool:
        """Whether there is a split below the limit among these down-sets; keeps the best."""
        k, cpus = self.problem.num_accelerators, self.problem.num_cpus
        found = sweep(pairs, k, cpus, limit_s, late)
        if found is not None:
            self.best = found
        return found is not None

    def _below_best(self) -> float:
        return np.inf if self.best is None else self.best.value_s * (1 - TIE)

    def _start(self) -> None:
        """The best split along a few orders, however late: without it there is no answer."""
        chains = {mask for order in orders(self.blocks) for mask in along(order)}
        pairs = self._pairs({mask: last_of(self.blocks, mask) for mask in chains})
        self._ask(pairs, np.inf, lambda: False)

    def _settle(self, found: dict[int, int]) -> None:
        """The optimum over all down-sets, by limits that grow from the bound to the best known."""
        pairs = self._pairs(found)
        slack = 0.01
        while len(found) > SMALL:
            limit_s = max(self.ruled_out_s, 1e-300) * (1 + slack)
            if limit_s >= self._below_best():
                break
            if self._ask(pairs, limit_s, self.late):
                return
            self.ruled_out_s, slack = limit_s, slack * 1.5
        self._ask(pairs, self._below_best(), self.late)

    def _wander(self) -> None:
        """Looks around the cuts of the best split, wider each time nothing better is there."""
        chains = {mask for order in orders(self.blocks) for mask in along(order)}
        steps, most = 2, 500
        while self.best is not None and not self.late() and most <= 64_000:
            near = set(chains)
            for end in self.best.ends[:-1]:
                inner = shrink(self.blocks, end, most // 4, steps)
                near |= inner
                near |= set(self._grown(inner, most, steps))
            masks = {mask: last_of(self.blocks, mask) for mask in near}
            if not self._ask(self._pairs(masks), self._below_best(), self.late):
                steps, most = steps + 1, most * 2

    def _grown(self, starts: set[int], most: int, steps: int) -> dict[int, int]:
        while steps:
            found = grow(self.blocks, starts, most, self.late, steps)
            if found is not None:
                return found
            steps -= 1
        return {}

    def _solution(self, best: Pipeline, bound_s: float, proven: bool) -> DagSolution:
        k = self.problem.num_accelerators
        device, used = [0] * len(self.blocks.before), [0, k]
        rank: dict[int, int] = {}
        before = 0
        for accelerator, end in zip(best.accelerator, best.ends, strict=True):
            kind = 0 if accelerator else 1
            rank[used[kind]] = len(rank)
            for block in range(len(device)):
                if (end & ~before) >> block & 1:
                    device[block] = used[kind]
            used[kind] += 1
            before = end
        if not rank:
            rank[0] = 0
        assignment = tuple(self.blocks.spread(device, rank, self.problem.num_nodes))
        value_s = float(loads_s(self.problem, assignment).max(initial=0.0))
        wrong = faults(self.problem, assignment)
        if wrong or abs(value_s - best.value_s) > 1e-6 * max(value_s, best.value_s):
            raise InternalError(
                f"a split of {value_s} s was taken for {best.value_s} s: {'; '.join(wrong)}; "
                "please report the graph"
            )
        return DagSolution(
            value_s=value_s,
            bound_s=value_s if proven else min(self.ruled_out_s, value_s),
            independent_bound_s=bound_s,
            assignment=assignment,
            proven=proven,
            seconds=self.clock() - self.started_s,
            num_ideals=self.num_ideals,
        )

    def _infeasible(self) -> str:
        """Which constraint cannot hold, and by how much."""
        problem, capacity = self.problem, self.problem.capacity_bytes
        _, group = np.unique(problem.colour, return_inverse=True)
        size = np.bincount(group, problem.num_bytes)
        unsupported = np.flatnonzero(~problem.supported)
        if not problem.num_cpus:
            if len(unsupported):
                return f"node {unsupported[0]} runs on no accelerator and there is no CPU; add one"
            largest = int(size.argmax())
            if size[largest] > capacity:
                node = int(np.flatnonzero(group == largest)[0])
                return (
                    f"node {node} with its colour needs {size[largest]:.0f} bytes, an accelerator "
                    f"has {capacity:.0f}: {size[largest] - capacity:.0f} are missing"
                )
        room = problem.num_accelerators * capacity
        return (
            f"{problem.num_nodes} nodes need {size.sum():.0f} bytes, {problem.num_accelerators} "
            f"accelerators have {room:.0f}, and no pipeline of them and {problem.num_cpus} CPUs "
            "holds all; add devices or memory"
        )
