"""Who executes submitted passes: the worker threads of this process, or other processes.

Threads exist only from the first `submit` on, and end with `close`, with a failure, or when nobody
holds the executor any more.
"""

import contextlib
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import wait
from typing import Any, Protocol

from gimlax.errors import SpecError
from gimlax.runtime.jobs import PassFuture
from gimlax.runtime.passes import Pass
from gimlax.runtime.pipeline import Pipeline
from gimlax.runtime.recording import Recording
from gimlax.runtime.schedule import Schedule

__all__ = ["Executor", "LocalExecutor"]


class Executor(Protocol):
    """Runs submitted passes over one compilation."""

    @property
    def direct(self) -> bool:
        """Whether stages may be dispatched in the caller's thread just now."""
        ...

    @property
    def may_wait(self) -> bool:
        """Whether this thread may wait for what is asked of whoever runs stages."""
        ...

    def submit(
        self,
        work: Pass,
        schedule: Schedule,
        assemble: Callable[[Pass], Any],
        *,
        check_open: Callable[[], None],
    ) -> PassFuture:
        """Starts a pass, its carried state taken; waits while as many as it lets in are under way.

        Args:
            work: the pass.
            schedule: the tasks of its phase.
            assemble: makes the result of the finished pass.
            check_open: raises if it was closed meanwhile.
        """
        ...

    def record(self) -> contextlib.AbstractContextManager[Recording]:
        """Records spans until the block ends; the passes submitted in it are waited for."""
        ...

    def check_may_close(self) -> None:
        """Raises `SpecError` where `close` would wait for itself."""
        ...

    def close(self, idle: Callable[[], None]) -> None:
        """Waits for submitted passes, calls `idle`, and lets go of threads and processes."""
        ...


class LocalExecutor:
    """One pipeline of worker threads; one that a failure has stopped is replaced."""

    def __init__(
        self,
        meshes: Sequence[str],
        links: Sequence[tuple[str, str]],
        *,
        max_in_flight: int,
        clock: Callable[[], float],
    ) -> None:
        self._recording: Recording | None = None
        self._lock = threading.Lock()
        self._clock = clock
        # The workers must not keep the executor alive, or nobody could ever let go of it.
        me = weakref.ref(self)
        self._new_pipeline = lambda: Pipeline(
            meshes,
            links,
            max_in_flight=max_in_flight,
            clock=clock,
            recording=lambda: None if (found := me()) is None else found._recording,
        )
        self._pipelines: list[Pipeline] = []
        self._finalizer = weakref.finalize(self, _stop_all, self._pipelines)

    @property
    def direct(self) -> bool:
        """False while spans are recorded: only what is waited for can be stamped."""
        return self._recording is None

    @property
    def may_wait(self) -> bool:
        """Always: a thread that runs stages is not needed to read what they made."""
        return True

    def submit(
        self,
        work: Pass,
        schedule: Schedule,
        assemble: Callable[[Pass], Any],
        *,
        check_open: Callable[[], None],
    ) -> PassFuture:
        """See `Executor`."""
        while True:
            with self._lock:
                check_open()
                if not self._pipelines or self._pipelines[-1].stopped:
                    ending = [pipeline for pipeline in self._pipelines if pipeline.alive]
                    self._pipelines[:] = [*ending, self._new_pipeline()]
                pipeline = self._pipelines[-1]
            future = pipeline.submit(work, schedule, assemble)
            if future is not None:
                return future

    @contextlib.contextmanager
    def record(self) -> Iterator[Recording]:
        """See `Executor`."""
        with self._lock:
            if self._recording is not None:
                raise SpecError("a recording is under way already; end it before the next begins")
            recording = self._recording = Recording(self._clock())
        try:
            yield recording
            for pipeline in tuple(self._pipelines):
                wait(pipeline.futures())
        finally:
            self._recording = None

    def check_may_close(self) -> None:
        """See `Executor`."""
        for pipeline in tuple(self._pipelines):
            pipeline.check_not_inside()

    def close(self, idle: Callable[[], None]) -> None:
        """See `Executor`."""
        with self._lock:
            pipelines = tuple(self._pipelines)
        for pipeline in pipelines:
            pipeline.close()
        idle()


def _stop_all(pipelines: Sequence[Pipeline]) -> None:
    for pipeline in tuple(pipelines):
        pipeline.stop()
