"""A submitted pass: its future, and what the pipeline keeps of it until it ends."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol

from gimlax.errors import GimlaxError
from gimlax.program import Run
from gimlax.runtime.compilation import CompiledStage
from gimlax.runtime.handles import Carried
from gimlax.runtime.passes import Pass, first_line
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


class Ending:
    """Stands where a `PassFuture` does if nobody waits: calls with the result or the error."""

    __slots__ = ("_call", "job")

    def __init__(self, call: Callable[[Any, BaseException | None], None]) -> None:
        self._call = call
        self.job: Job | None = None

    def set_running_or_notify_cancel(self) -> bool:
        """Nobody cancels it."""
        return True

    def set_result(self, result: Any) -> None:
        """It has ended well."""
        self._call(result, None)

    def set_exception(self, error: BaseException) -> None:
        """It has failed."""
        self._call(None, error)


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
        future: Any,  # a `PassFuture` or an `Ending`
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

    def waits(self) -> list[int]:
        """Lets tasks wait for carried state that is still to come; which tasks are ready at once.

        The caller holds the pipeline's lock, as for the following.
        """
        work, schedule = self.work, self.schedule
        for tree, cells in enumerate(work.state):
            for stage, cell in enumerate(cells):
                task = schedule.task_of_stage[stage]
                # A stage that uses nothing of a state has no arrays to wait for.
                if (
                    task is not None
                    and cell.arrays is None
                    and tree in work.phase.stages[stage].carried
                ):
                    self.missing[task] += 1
                    cell.waiters.append((self, task))
        return [
            task
            for task, missing in enumerate(self.missing)
            if missing == 0 and task not in schedule.inbound
        ]

    def begin(self) -> bool:
        """Whether a task of this pass may still be dispatched; from then on it is under way."""
        if self.ended:
            return False
        if not self.dispatched:
            self.dispatched = True
            # Without carried state a pass can be cancelled until it ends.
            if self.work.handles:
                self.future.set_running_or_notify_cancel()
        return True

    def give_up(self) -> bool:
        """Takes the states of a pass that is cancelled back, if that leaves all consistent."""
        work = self.work
        if work.handles:
            if self.dispatched or not withdraw(work.next_handles):
                return False
            for handle in work.next_handles:
                handle._lose("was to come from a pass that was cancelled")
            work.give_back()
        return True

    def lose(self, error: BaseException) -> None:
        """Marks its states as what the failure of a pass made of them."""
        if self.dispatched:
            self.work.lose_state(f"was lost when a pass failed ({first_line(error)})")
            return
        for handle in self.work.next_handles:
            handle._lose(f"never came to be, a pass before it failed ({error})")
        self.work.give_back()

    def done(self, index: int) -> "list[tuple[Job, int]]":
        """A task was dispatched: drops what nobody reads again; what is ready by that."""
        schedule, work, missing = self.schedule, self.work, self.missing
        ready: list[tuple[Job, int]] = []
        for task in schedule.wakes[index]:
            missing[task] -= 1
            if missing[task] == 0:
                ready.append((self, task))
        task = schedule.tasks[index]
        if work.next_state and isinstance(task, Run):
            for cells in work.next_state:
                cell = cells[task.stage]
                for other, waiting in cell.waiters:
                    other.missing[waiting] -= 1
                    if other.missing[waiting] == 0:
                        ready.append((other, waiting))
                cell.waiters.clear()
        for key in schedule.counted[index]:
            self.readers[key] -= 1
            if self.readers[key] == 0:
                work.values.pop(key, None)
        for key in schedule.unread[index]:
            work.values.pop(key, None)
        return ready


@dataclass(frozen=True, slots=True, eq=False)
class Running:
    """A dispatched stage whose token has not come in; `index` is its task."""

    job: Job
    index: int
    stage: CompiledStage
    token: Any
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
