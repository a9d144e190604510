"""Checks of live passes: what the stages of every N-th were given and made, probed in a thread.

The pass itself runs as always and its results are handed on as they are. What its stages were given
and made is kept (its tap), and a thread compares it with what the reference makes of the same. One
check at a time: a pass that is due waits for the one before to end. A pass that is tried again,
since a worker was lost, is checked once, by what the last attempt left.

NaN and infinity are looked for where the stages made them, one boolean an array, so that only of a
stage that made some more is asked. A NaN is always told; an infinity only where the reference,
given the same, makes none there, since models mask with infinities on purpose.
"""

import threading
import warnings
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from gimlax.errors import ContractWarning, GimlaxError
from gimlax.graph import Role, Traced
from gimlax.graph.widening import widen_arrays
from gimlax.partition import Stage
from gimlax.program import Program
from gimlax.runtime.passes import Pass
from gimlax.runtime.probing.checking import examine
from gimlax.runtime.probing.comparing import is_finite
from gimlax.runtime.probing.probing import Probe
from gimlax.runtime.probing.reference import Reference
from gimlax.runtime.probing.report import Report
from gimlax.runtime.probing.seam import StageInputs, Target
from gimlax.runtime.tapping import Tap

__all__ = ["LiveCheck", "LiveChecks"]

_KEPT = 16  # reports


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveCheck:
    """What was found of a pass.

    Attributes:
        number: of the pass, the first is 1.
        report: of the probe with its inputs.
        not_finite: a sentence on the first stage that made NaN or infinity, empty if none did.
    """

    number: int
    report: Report
    not_finite: str

    @property
    def ok(self) -> bool:
        """Whether all is within its bounds and finite."""
        return self.report.ok and not self.not_finite

    def __str__(self) -> str:
        found = [self.not_finite, self.report.explain()]
        return f"pass {self.number}: {'; '.join(filter(None, found)) or 'within its bounds'}"


class LiveChecks:
    """Checks every N-th pass of one phase."""

    def __init__(
        self,
        traced: Traced,
        name: str,
        every: int,
        tap: Callable[[int], Tap],
        target: Callable[[Pass, Tap], Target],
        may_wait: Callable[[], bool],
    ) -> None:
        """Of a phase.

        Args:
            traced: what the phase runs.
            name: of the phase.
            every: how many passes from one that is checked to the next; the first one is.
            tap: a new one for a pass of this number.
            target: what there is to compare of a pass that has ended, with its tap.
            may_wait: whether the calling thread may wait for a check: not if the check needs it.
        """
        self._every = every
        self._tap = tap
        self._target = target
        self._may_wait = may_wait
        self._traced = traced
        self._name = name
        self._lock = threading.Lock()
        self._count = 0
        self._checks: deque[LiveCheck] = deque(maxlen=_KEPT)
        self._reference: Reference | None = None
        self._thread: ThreadPoolExecutor | None = None
        self._under_way: deque[Future[None]] = deque()
        self._has_looked_inside = False

    @property
    def checks(self) -> tuple[LiveCheck, ...]:
        """The last ones; waits for one that is under way, but not in a callback over workers."""
        self._wait()
        return tuple(self._checks)

    def begin(self, work: Pass) -> None:
        """Gives a pass a tap if it is due, when the check before has ended."""
        with self._lock:
            number = self._count = self._count + 1
        if (number - 1) % self._every == 0:
            self._wait()
            work.tap = self._tap(number)
            # The caller may write the next inputs into the same arrays before they are compared.
            work.streamed = {
                key: np.array(fed) if isinstance(fed, np.ndarray) else fed
                for key, fed in work.streamed.items()
            }

    def end(self, work: Pass) -> None:
        """Starts the check of a pass that has a tap and was dispatched to its end."""
        if work.tap is None:
            return
        with self._lock:
            if self._thread is None:
                self._thread = ThreadPoolExecutor(1, "gimlax check")
            self._under_way.append(self._thread.submit(self._check, work, work.tap))

    def close(self) -> None:
        """Waits for the check that is under way and ends the thread."""
        try:
            self._wait()
        finally:
            with self._lock:
                if self._thread is not None:
                    self._thread.shutdown()
                    self._thread = None

    def _wait(self) -> None:
        """Waits, and raises what a warning became if the user's filters make errors of them."""
        while self._under_way and self._may_wait():
            try:
                under_way = self._under_way.popleft()
            except IndexError:  # another thread waits too
                return
            under_way.result()

    def _check(self, work: Pass, tap: Tap) -> None:
        try:
            self._reference = self._reference or Reference(self._traced.config)
            not_finite = tap.stages_not_finite()
            target = self._target(work, tap)
            bad = _first_not_finite(not_finite, target, self._reference)
            # Looking for the segment compiles parts of the stage, so it is done once.
            report = examine(target, self._reference, bisect=not self._has_looked_inside)
            self._has_looked_inside |= not report.ok
            check = LiveCheck(number=tap.number, report=report, not_finite=bad)
        except (GimlaxError, RuntimeError) as error:  # such as of a device that has failed since
            warnings.warn(
                f"{self._name!r}: pass {tap.number} could not be checked: {error}",
                ContractWarning,
                stacklevel=1,
            )
            return
        finally:
            tap.let_go()
        self._checks.append(check)
        if not check.ok:
            warnings.warn(f"{self._name!r}, {check}", ContractWarning, stacklevel=1)


def _first_not_finite(stages: Sequence[int], target: Target, reference: Reference) -> str:
    """A sentence on the first of these stages that made what is worth telling; else empty."""
    probe, observed = Probe(target.runner, reference), target.observed
    assert observed is not None
    program = probe.program
    for index in stages:
        stage = program.partition.stages[index]
        inputs = probe.inputs(stage, target.given, observed.received(index))
        found = target.runner.run(index, inputs)
        expected = reference.run(stage.jaxpr, inputs.flat)
        for (what, _), mine, theirs in zip(probe.named(stage), found.flat, expected, strict=True):
            if said := _told(mine, theirs):
                where = program.describe_stage(index)
                cause = _cause(stage, program, inputs)
                return f"{where} is the first to make {said} in {what}; {cause}"
    return ""


def _told(found: Any, expected: Any) -> str:
    """What of an array is not finite and worth telling, and whether the reference has it too."""
    if not jnp.issubdtype(found.dtype, np.inexact):
        return ""
    (mine,) = widen_arrays([found])
    nan = np.isnan(mine)
    infinite = np.isinf(mine) & ~np.isinf(expected)
    if not nan.any() and not infinite.any():
        return ""
    word, where = ("NaN", nan) if nan.any() else ("infinity", infinite)
    alike = bool((where & ~np.isfinite(expected)).sum() == where.sum())
    reference = "has none of it there" if not alike else "makes the same of it"
    return f"{word} ({int(where.sum())} of {where.size}, the reference {reference})"


def _cause(stage: Stage, program: Program, inputs: StageInputs) -> str:
    """Whether what a stage was given was finite; if not, which of it was not."""
    partition = program.partition
    arguments = partition.traced.arguments
    names = [
        *(arguments[partition.leaf(Role.RESIDENT, part)].path for part in stage.resident),
        *(arguments[partition.leaf(Role.CARRIED, part)].path for part in stage.carried),
        *(f"constant {index}" for index in stage.constants),
        *(arguments[leaf].path for leaf in stage.streamed),
        *(f"value {value} of a stage before it" for value in stage.received),
    ]
    bad = [n for n, array in zip(names, inputs.flat, strict=True) if not is_finite(array)]
    return (
        f"it was given some in {', '.join(bad[:5])}" if bad else "all that it was given is finite"
    )
