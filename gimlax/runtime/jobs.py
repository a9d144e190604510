"""A submitted pass: its future, and what the pipeline keeps of it until it ends."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol

import jax

from gimlax.errors import GimlaxError
from gimlax.runtime.compilation import CompiledStage
from gimlax.runtime.handles import Carried
from gimlax.runtime.passes import Pass
from gimlax.runtime.schedule import Schedule
from gimlax.runtime.stores import Cell


class Owner(Protocol):
    """What a future asks of the pipeline that runs its pass."""

    def cancel(self, job: "Job") -> bool:
        """Takes the pass out, if that leaves all state consistent."""
        ...

    def join(self) -> None:
        """Waits for the threads of a pipeline that has stopped."""
        ...


class PassFuture(Future[Any]):
    """The result of a submitted pass, as a `concurrent.futures.Future`.

    It is done when every stage of the pass is: `result()` returns outputs that are computed, or
    raises the error of the stage that failed. `carried` are the states after this pass; they can be
    passed to the next `submit` before this pass is done. Callbacks run in a thread of the pipeline
    and must not block.
    """

    def __init__(self, owner: "Owner", carried: tuple[Carried, ...]) -> None:
        super().__init__()
        self._owner = owner
        self.job: Job | None = None
        self.carried = carried

    def cancel(self) -> bool:
        """Drops the pass if that leaves all state consistent.

        True if nothing of it was dispatched (the states it was given are good again), or if it
        carries no state (what is not yet dispatched is dropped, the rest discarded). Else False: it
        runs on.
        """
        job = self.job
        if job is None or not self._owner.cancel(job):
            return self.cancelled()
        super().cancel()
        self.set_running_or_notify_cancel()  # tells those who wait()
        return True

    def result(self, timeout: float | None = None) -> Any:
        """The outputs, waiting for them at most `timeout` seconds."""
        try:
            return super().result(timeout)
        except GimlaxError:
            self._owner.join()
            raise


class Job:
    """A pass in the pipeline: what its tasks still wait for, and how it ends."""

    __slots__ = (
        "assemble",
        "dispatched",
        "ended",
        "future",
        "missing",
        "readers",
        "remaining",
        "schedule",
        "work",
    )

    def __init__(
        self,
        work: Pass,
        schedule: Schedule,
        future: PassFuture,
        assemble: Callable[[Pass], Any],
    ) -> None:
        self.work = work
        self.schedule = schedule
        self.future = future
        self.assemble = assemble
        self.missing = list(schedule.missing)
        self.readers = dict(schedule.readers)
        self.remaining = schedule.num_awaited
        self.dispatched = False
        self.ended = False


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Running:
    """A dispatched stage whose token has not come in."""

    job: Job
    stage: CompiledStage
    token: jax.Array
    start_s: float


def withdraw(handles: Sequence[Carried]) -> bool:
    """Takes promised states back, if no other pass has taken one."""
    taken: list[tuple[Carried, tuple[Cell, ...]]] = []
    for handle in handles:
        if not handle._cells:
            break
        try:
            taken.append((handle, handle._cells.pop()))
        except IndexError:
            break
    else:
        return True
    for handle, cells in taken:
        handle._give_back(cells)
    return False
