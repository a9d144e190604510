"""Is there a split below a limit? Asked of one graph again and again, for limits that grow.

What a limit leaves open is little, so a failing question is cheap and raises the bound, and the
first that succeeds gives the optimum. Where there are few down-sets all are tabulated once; else
each question looks for those that its limit lets through.
"""

from collections.abc import Callable, Iterable

import numpy as np

from gimlax.planning.solvers.blocks import contract
from gimlax.planning.solvers.dag import Assignment, DagProblem
from gimlax.planning.solvers.ideals import grow, members, tabulate
from gimlax.planning.solvers.orders import thrifty
from gimlax.planning.solvers.pair_loads import SMALL, PairLoads
from gimlax.planning.solvers.sweep import Pipeline, TooLateError, sweep
from gimlax.planning.solvers.windows import Devices, cuttable

FEW = 40_000  # down-sets that are tabulated once for all questions
MEMORY_BYTES = 512 * 2**20  # what the tables of down-sets may take
MOST = 200_000  # down-sets of which pairs are looked at in one question
TIE = 1e-9  # splits closer than this part of their value are equally good
FIRST_STEP, GROWTH = 0.005, 1.5  # by which limits lie above what is ruled out
Late = Callable[[], bool]


class TooManyError(Exception):
    """More down-sets than may be looked at."""


class Questions:
    """A graph that is asked.

    Attributes:
        problem, blocks: the graph.
        few: whether all its down-sets are tabulated.
        num_ideals: most down-sets that one question looked at.
    """

    def __init__(self, problem: DagProblem, late: Late) -> None:
        self.problem, self.blocks = problem, contract(problem)
        n, nets = len(self.blocks.before), len(self.blocks.nets)
        # More devices than blocks are of no use to anybody.
        self.devices = min(problem.num_accelerators, n), min(problem.num_cpus, n)
        self.most = min(MOST, MEMORY_BYTES // (3 * n + 2 * nets + 200))
        found = grow(self.blocks, [0], min(FEW, self.most), late) if n else {0}
        self.num_ideals = 0
        self.whole = None if found is None else self._pairs(members(self.blocks, found))
        self.few = found is not None
        self.order = [] if self.few else thrifty(self.blocks)

    def along(self, masks: Iterable[int], limit_s: float, late: Late) -> Pipeline | None:
        """The best split below the limit that is cut at some of these down-sets only."""
        return self._swept(self._pairs(members(self.blocks, masks)), limit_s, late)

    def below(self, limit_s: float, late: Late) -> Pipeline | None:
        """The best split below the limit, None if there is none.

        Raises:
            TooManyError: there are too many down-sets for this limit.
            TooLateError: `late()` became true.
        """
        if self.whole is not None:
            return self._swept(self.whole, limit_s, late)
        member = self._cuttable(limit_s, late)
        if member is None:
            raise TooLateError if late() else TooManyError
        if not len(member):
            return None
        return self._swept(self._pairs(member), limit_s, late)

    def can_ask(self, limit_s: float, late: Late) -> bool:
        """Whether a question with this limit looks at few enough down-sets."""
        return self.few or self._cuttable(limit_s, late) is not None

    def spread(self, pipeline: Pipeline) -> tuple[Assignment, dict[int, int]]:
        """The device of each node, and the place of each used device in their order."""
        device, used = [0] * len(self.blocks.before), [0, self.problem.num_accelerators]
        rank: dict[int, int] = {}
        before = 0
        for accelerator, end in zip(pipeline.accelerator, pipeline.ends, strict=True):
            kind = 0 if accelerator else 1
            rank[used[kind]] = len(rank)
            for block in range(len(device)):
                if (end & ~before) >> block & 1:
                    device[block] = used[kind]
            used[kind] += 1
            before = end
        if not rank:
            rank[0] = 0
        return tuple(self.blocks.spread(device, rank, self.problem.num_nodes)), rank

    def _cuttable(self, limit_s: float, late: Late) -> np.ndarray | None:
        devices = Devices(
            num_accelerators=self.devices[0],
            num_cpus=self.devices[1],
            capacity_bytes=self.problem.capacity_bytes,
            limit_s=limit_s,
        )
        return cuttable(self.blocks, self.order, devices, self.most, late)

    def _pairs(self, member: np.ndarray) -> PairLoads:
        self.num_ideals = max(self.num_ideals, len(member))
        return PairLoads(tabulate(self.blocks, member), self.problem.capacity_bytes)

    def _swept(self, pairs: PairLoads, limit_s: float, late: Late) -> Pipeline | None:
        return sweep(pairs, *self.devices, limit_s, late)


def settle(
    questions: Questions,
    ruled_out_s: float,
    known_s: float,
    late: Late,
    ruled_out: Callable[[float], None] = lambda limit_s: None,
) -> Pipeline | None:
    """The optimum if it is better than what is known, else None.

    Args:
        questions: the graph.
        ruled_out_s: no split is below it.
        known_s: the value of a known split; inf without one.
        late: whether time is over.
        ruled_out: told each limit below which there is no split.

    Raises:
        TooManyError, TooLateError: as `Questions.below` does.
    """
    if ruled_out_s >= known_s * (1 - TIE):
        return None
    at_once = questions.whole is not None and len(questions.whole.ideals) <= SMALL
    slack = FIRST_STEP
    while not at_once:
        limit_s = max(ruled_out_s, 1e-300) * (1 + slack)
        if limit_s >= known_s * (1 - TIE):
            break
        found = questions.below(limit_s, late)
        if found is not None:
            return found
        ruled_out(limit_s)
        ruled_out_s, slack = limit_s, slack * GROWTH
    return questions.below(known_s * (1 - TIE), late)
