"""Splits a graph that branches: exact dynamic programming over its down-sets, with pruning.

A pipeline is a growing row of down-sets, so the best one is a shortest path among pairs of them.
The question "is there a split below T?" is put for growing T between the independent bound and the
best split known, and the first that succeeds gives the optimum. Where a question would look at more
down-sets than memory or time allow, the graph is made coarser: one way gives good splits, another a
bound. Chosen over an integer programme: the same optima in seconds, no big-M relaxation to close.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from gimlax.errors import InternalError, PlanError
from gimlax.planning.solvers.coarse import joined, weightless
from gimlax.planning.solvers.dag import Assignment, DagProblem, faults, loads_s
from gimlax.planning.solvers.dag_bound import lower_bound_s
from gimlax.planning.solvers.ideals import along, grow, shrink
from gimlax.planning.solvers.orders import orders
from gimlax.planning.solvers.questions import Questions, TooManyError, settle
from gimlax.planning.solvers.sweep import Pipeline, TooLateError

# Parts of the accelerator seconds that are too small to look at, one after another while it works.
SHARES = (0.1, 0.03, 0.01, 0.003, 0.001, 0.0)
WIDEST = 32_000  # down-sets around a split that are looked at together
TIE = 1e-9  # splits closer than this part of their value are equally good
Clock = Callable[[], float]
Late = Callable[[], bool]


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
        self.time_limit_s = time_limit_s
        self.best_s = np.inf
        self.best: Assignment | None = None
        self.ends: tuple[int, ...] = ()  # of its devices, as sets of blocks of the whole graph
        self.ruled_out_s = 0.0
        self.num_ideals = 0

    def after(self, share: float) -> Late:
        """Whether this part of the time is over."""
        ends_s = self.started_s + share * self.time_limit_s
        return lambda: self.clock() > ends_s

    def run(self) -> DagSolution:
        bound_s = lower_bound_s(self.problem)
        if bound_s == np.inf:
            raise PlanError(self._infeasible())
        self.ruled_out_s = bound_s
        self.whole = Questions(self.problem, self.after(0.5))
        if not self.whole.few or len(self.whole.blocks.before) > 64:
            self._start()
        if self.best_s <= bound_s * (1 + TIE):
            proven = True
        else:
            proven = self._settled(self.whole, self.after(1.0)) if self.whole.few else self._hard()
        if self.best is None:
            if not proven:
                raise PlanError(
                    f"no split of {self.problem.num_nodes} nodes was found that fits, among those "
                    f"looked at in {self.time_limit_s:g} s; give more time, memory or devices"
                )
            raise PlanError(self._infeasible())
        return DagSolution(
            value_s=self.best_s,
            bound_s=self.best_s if proven else min(self.ruled_out_s, self.best_s),
            independent_bound_s=bound_s,
            assignment=self.best,
            proven=proven,
            seconds=self.clock() - self.started_s,
            num_ideals=self.num_ideals,
        )

    def _hard(self) -> bool:
        """More down-sets than are worth a table; whether the optimum was found nevertheless."""
        self._improve(self.after(0.25))
        late = self.after(0.7)
        if self.whole.can_ask(self._most_s(), late):
            return self._settled(self.whole, late) or self._bound(self.after(0.9))
        if self._bound(late) or self._settled(self.whole, self.after(0.8)):
            return True
        self._wander(self.after(1.0))
        return False

    def _start(self) -> None:
        """The best split along a few orders, however late: without it there is no answer."""
        masks = {mask for order in orders(self.whole.blocks) for mask in along(order)}
        self._keep(self.whole, self.whole.along(masks, np.inf, lambda: False))

    def _settled(self, questions: Questions, late: Late) -> bool:
        """Whether no split of this graph is better than the best that is now known."""
        try:
            found = self._settle(questions, late, is_bound=questions is self.whole)
        except (TooManyError, TooLateError):
            return False
        self._keep(questions, found)
        return True

    def _settle(self, questions: Questions, late: Late, is_bound: bool) -> Pipeline | None:
        """As `settle`; what it rules out is a bound of the whole graph, or is not."""

        def ruled_out(limit_s: float) -> None:
            if is_bound:
                self.ruled_out_s = max(self.ruled_out_s, limit_s)

        try:
            return settle(questions, self.ruled_out_s, self._most_s(), late, ruled_out)
        finally:
            self.num_ideals = max(self.num_ideals, questions.num_ideals)

    def _most_s(self) -> float:
        """The best load known, or one that no split exceeds."""
        if self.best is not None:
            return self.best_s
        problem = self.problem
        all_s = problem.accelerator_s.sum() + problem.output_s.sum()
        return 2.0 * max(float(all_s), float(problem.cpu_s.sum())) + 1.0

    def _improve(self, late: Late) -> None:
        """Good splits of the whole graph: the best ones of coarse graphs, finer and finer."""
        for share in SHARES:
            coarse = Questions(joined(self.problem, share), late)
            if not coarse.can_ask(self._most_s(), late) or not self._settled(coarse, late):
                return

    def _bound(self, late: Late) -> bool:
        """Bounds from graphs that lost what is small, less and less; whether one is reached."""
        for share in SHARES:
            light = Questions(weightless(self.problem, share), late)
            if not light.can_ask(self._most_s(), late):
                return False
            try:
                found = self._settle(light, late, is_bound=True)
            except (TooManyError, TooLateError):
                return False
            if found is None:
                return self.best is not None
            self.ruled_out_s = max(self.ruled_out_s, found.value_s)
            self._keep(light, found, exact=False)
            if self.best_s <= found.value_s * (1 + TIE):
                return True
        return False

    def _wander(self, late: Late) -> None:
        """Looks around the cuts of the best split, wider each time nothing better is there."""
        blocks = self.whole.blocks
        chains = {mask for order in orders(blocks) for mask in along(order)}
        steps, most = 2, 500
        while self.best is not None and not late() and most <= WIDEST:
            near = chains | set(self.ends)
            for end in self.ends[:-1]:
                inner = shrink(blocks, end, most // 4, steps)
                near |= inner | self._grown(inner, most, steps, late)
            try:
                found = self.whole.along(near, self.best_s * (1 - TIE), late)
            except TooLateError:
                return
            if found is None:
                steps, most = steps + 1, most * 2
            self._keep(self.whole, found)

    def _grown(self, starts: set[int], most: int, steps: int, late: Late) -> set[int]:
        while steps and not late():
            found = grow(self.whole.blocks, starts, most, late, steps)
            if found is not None:
                return found
            steps -= 1
        return set()

    def _keep(self, questions: Questions, found: Pipeline | None, exact: bool = True) -> None:
        """Remembers a split if it is the best; one of an inexact graph also has to be possible."""
        if found is None:
            return
        assignment, rank = questions.spread(found)
        value_s = float(loads_s(self.problem, assignment).max(initial=0.0))
        wrong = faults(self.problem, assignment)
        if exact and (wrong or abs(value_s - found.value_s) > 1e-6 * max(value_s, found.value_s)):
            raise InternalError(
                f"a split of {value_s} s was taken for {found.value_s} s: {'; '.join(wrong)}; "
                "please report the graph"
            )
        if wrong or value_s >= self.best_s:
            return
        self.best_s, self.best = value_s, assignment
        self.ends = self._ends(assignment, rank)

    def _ends(self, assignment: Assignment, rank: dict[int, int]) -> tuple[int, ...]:
        place = [rank[assignment[nodes[0]]] for nodes in self.whole.blocks.nodes]
        return tuple(
            sum(1 << block for block, at in enumerate(place) if at <= device)
            for device in range(len(rank))
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
