"""The best pipeline over given down-sets with all loads below a limit: one dynamic programme.

State: (accelerators used, CPUs used, down-set done), value: the least largest load so far. A state
goes on only if the value is below the limit, fewer devices do not reach it as well, and what is
left can still be done by the devices that are left; sorted by work, the pairs that matter lie in a
window whose width is the limit. Exact over the given down-sets: all of them, or a sample.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from gimlax.planning.solvers.dag import Array
from gimlax.planning.solvers.pair_loads import PairLoads

ROWS, COLUMNS = 128, 2048  # a tile of pairs stays in the cache of a core
ROUNDING = 1e-9


class TooLateError(Exception):
    """The time was over before the programme was through."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pipeline:
    """Devices in order: whether each is an accelerator, and the blocks (as bits) up to its end."""

    value_s: float
    accelerator: tuple[bool, ...]
    ends: tuple[int, ...]


def sweep(
    pairs: PairLoads,
    num_accelerators: int,
    num_cpus: int,
    limit_s: float,
    late: Callable[[], bool],
) -> Pipeline | None:
    """The best pipeline whose value is below `limit_s`, or None if there is none.

    Raises:
        TooLateError: `late()` became true.
    """
    return _Sweep(pairs, num_accelerators, num_cpus, limit_s, late).run()


class _Sweep:
    def __init__(
        self,
        pairs: PairLoads,
        num_accelerators: int,
        num_cpus: int,
        limit_s: float,
        late: Callable[[], bool],
    ) -> None:
        self.pairs, self.ideals = pairs, pairs.ideals
        self.most = num_accelerators, num_cpus
        self.limit_s, self.late = limit_s, late
        self.values: dict[tuple[int, int], Array] = {}
        self.parents: dict[tuple[int, int], np.ndarray] = {}

    def run(self) -> Pipeline | None:
        size = len(self.ideals)
        shape = [(a, c) for a in range(self.most[0] + 1) for c in range(self.most[1] + 1)]
        for state in shape:
            self.values[state] = np.full(size, np.inf)
            self.parents[state] = np.zeros(size, np.int32)
        self.values[0, 0][0] = 0.0
        for a, c in shape:
            alive = self._alive(a, c)
            if a < self.most[0]:
                self._extend((a, c), (a + 1, c), alive, self.pairs.accelerator)
            if c < self.most[1]:
                self._extend((a, c), (a, c + 1), alive, self.pairs.cpu)
        best = min(shape, key=lambda state: (self.values[state][-1], sum(state)))
        if not self.values[best][-1] < self.limit_s:
            return None
        return self._trace(best)

    def _left_s(self, a: int, c: int) -> float:
        """Accelerator seconds that the devices left after (a, c) can take."""
        accelerators, cpus = self.most[0] - a, self.most[1] - c
        if self.limit_s == np.inf or (cpus and self.ideals.relief == np.inf):
            return np.inf
        seconds = accelerators * self.limit_s
        if cpus:
            seconds += cpus * self.ideals.relief * self.limit_s
        return seconds + ROUNDING * self.ideals.accelerator_s[-1]

    def _alive(self, a: int, c: int) -> np.ndarray:
        """Down-sets that this state reaches and from which it may go on."""
        values = self.values[a, c]
        keep = values < self.limit_s
        for fewer in ((a - 1, c), (a, c - 1)):
            if fewer in self.values:
                keep &= values < self.values[fewer]
        ideals = self.ideals
        rest = ideals.accelerator_s[-1] - ideals.accelerator_s
        if c == self.most[1]:
            rest = rest + ideals.cut_s  # every net that is cut here, some accelerator pays
        keep &= rest <= self._left_s(a, c)
        return np.flatnonzero(keep)

    def _extend(
        self,
        source: tuple[int, int],
        target: tuple[int, int],
        alive: np.ndarray,
        loads: Callable[[np.ndarray, slice], Array],
    ) -> None:
        """Offer what each source can reach with one more device."""
        work = self.ideals.accelerator_s
        on_accelerator = target[0] > source[0]
        per_s = 1.0 if on_accelerator else self.ideals.relief
        reach = np.inf if np.inf in (per_s, self.limit_s) else self.limit_s * per_s
        reach += ROUNDING * work[-1]
        least = np.searchsorted(work, work[-1] - self._left_s(*target), "left")
        values, parents, before = self.values[target], self.parents[target], self.values[source]
        rows = max(len(alive), 1) if self.pairs.whole else ROWS
        for start in range(0, len(alive), rows):
            inner = alive[start : start + rows]
            first = max(int(least), int(inner[0]) + 1)
            stop = int(np.searchsorted(work, work[inner[-1]] + reach, "right"))
            columns = max(stop, 1) if self.pairs.whole else COLUMNS
            for left in range(first, stop, columns):
                if self.late():
                    raise TooLateError
                outer = slice(left, min(left + columns, stop))
                value = loads(inner, outer)
                np.maximum(value, before[inner, None], out=value)
                best = value.argmin(axis=0)
                value = value[best, np.arange(value.shape[1])]
                better = value < values[outer]
                np.copyto(values[outer], value, where=better)
                origin = inner[best] if on_accelerator else ~inner[best]
                np.copyto(parents[outer], origin, where=better, casting="same_kind")

    def _trace(self, state: tuple[int, int]) -> Pipeline:
        value_s = float(self.values[state][-1])
        at, accelerator, ends = len(self.ideals) - 1, [], []
        while at:
            a, c = state
            parent = int(self.parents[state][at])
            ends.append(self.ideals.mask(at))
            accelerator.append(parent >= 0)
            state = (a - 1, c) if parent >= 0 else (a, c - 1)
            at = parent if parent >= 0 else ~parent
        return Pipeline(
            value_s=value_s, accelerator=tuple(accelerator[::-1]), ends=tuple(ends[::-1])
        )
