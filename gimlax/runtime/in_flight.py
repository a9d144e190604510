"""The passes that are under way in a pipeline, and how they end: each once."""

import threading
from collections.abc import Callable

from gimlax.errors import BackendError, GimlaxError
from gimlax.runtime.blaming import caused
from gimlax.runtime.jobs import Job, PassFuture

__all__ = ["InFlight"]


class InFlight:
    """Passes under way, and the lock that guards them and all that the pipeline knows of them.

    Attributes:
        lock: to be held where that is said.
        changed: is told of everything that somebody may wait for.
        stopped: whether nothing is begun any more.
    """

    def __init__(self, most: int | None, stop: Callable[[], None]) -> None:
        """Has none yet.

        Args:
            most: passes that are let in at once, None for all.
            stop: is called when nothing is begun any more, with the lock held.
        """
        self.lock = threading.Lock()
        self.changed = threading.Condition(self.lock)
        self.stopped = False
        self._most = most
        self._stop = stop
        self._live: dict[Job, None] = {}

    def let_in(self, job: Job, *, wait: bool) -> bool:
        """Takes a pass, with `wait` once there is room; False if nothing is begun any more.

        The caller holds the lock.
        """
        while wait and not self.stopped and self._most is not None and len(self) >= self._most:
            self.changed.wait()
        if self.stopped:
            return False
        job.future.job = job
        for handle in job.work.next_handles:
            handle._wait = job.future.result
        self._live[job] = None
        return True

    def __len__(self) -> int:
        return len(self._live)

    def futures(self) -> tuple[PassFuture, ...]:
        """Of all of them."""
        with self.lock:
            return tuple(job.future for job in self._live)

    def wait(self) -> None:
        """Waits until there is none."""
        with self.lock:
            while self._live and not self.stopped:
                self.changed.wait()

    def cancel(self, job: Job) -> bool:
        """Takes a pass out, if that leaves all state consistent."""
        with self.lock:
            if job.ended or not job.give_up():
                return False
            self._end(job)
        return True

    def count_down(self, job: Job) -> bool:
        """One less is awaited; whether the pass has ended by that, and is to be settled.

        The caller holds the lock.
        """
        job.remaining -= 1
        if job.remaining or job.ended:
            return False
        self._end(job)
        return True

    def settle(self, job: Job) -> None:
        """Gives a pass that has ended its result; without the lock."""
        for handle in job.work.next_handles:
            handle._wait = None
        try:
            result = job.assemble(job.work)
        except BaseException as error:
            job.future.set_exception(error)
            raise
        job.future.set_result(result)

    def fail(self, error: BaseException) -> None:
        """Stops everything and ends every pass with an error of its own; only the first counts."""
        with self.lock:
            if self.stopped:
                return
            jobs = tuple(self._live)
            for job in jobs:
                job.lose(error)
                self._end(job)
            self.stop()
        for job in jobs:
            kind = type(error) if isinstance(error, GimlaxError) else BackendError
            job.future.set_exception(caused(kind(str(error)), error.__cause__ or error))

    def stop(self) -> None:
        """Begins nothing any more; the caller holds the lock."""
        self.stopped = True
        self._stop()
        self.changed.notify_all()

    def _end(self, job: Job) -> None:
        job.ended = True
        job.future.job = None
        self._live.pop(job, None)
        self.changed.notify_all()
