"""Several passes in flight: one worker thread per mesh and per link, one watcher per mesh.

A worker takes whatever task of any pass is ready, in the order in which tasks became ready; a link
has its own because `device_put` between two clients blocks its thread until the producer is done.
The watcher of a mesh waits on completion tokens: it stamps the end of a stage, raises the stage's
own error, and so bounds how far dispatch runs ahead of the device. The first failure stops
everything: all passes in flight end with one error each, and all threads end.

Chosen over asyncio because dispatch and copies block, and over a pool because the order of stages
on a mesh is the order of passes.
"""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import Any

import jax

from gimlax.errors import BackendError, GimlaxError, InternalError, SpecError
from gimlax.program import Run, Transfer, track_of_link
from gimlax.runtime.jobs import Job, PassFuture, Running, withdraw
from gimlax.runtime.lines import Line
from gimlax.runtime.passes import Pass, first_line, run_stage, send, stage_error
from gimlax.runtime.recording import Recording
from gimlax.runtime.schedule import Schedule, reads, writes

_RUN_AHEAD = 4  # stages dispatched to a mesh and not yet done


class Pipeline:
    """Threads for the meshes and links of a deployment; ends at the first failure or at `close`."""

    def __init__(
        self,
        meshes: Sequence[str],
        links: Sequence[tuple[str, str]],
        *,
        max_in_flight: int,
        clock: Callable[[], float],
        recording: Callable[[], Recording | None],
        send: Callable[[Pass, Transfer], None] = send,
        in_order: bool = False,
    ) -> None:
        """Starts the threads.

        Args:
            meshes: those of this process.
            links: those that begin here.
            max_in_flight: passes that `submit` lets in before it waits.
            clock: stamps spans, in seconds.
            recording: where spans go, None where they are not wanted.
            send: executes a transfer.
            in_order: whether stages run on a mesh in the one order in which passes and their steps
                come, and each when the one before is done: over several processes, since all of
                them have to run the same ones at the same time.
        """
        self._carry = send
        self._max_in_flight = max_in_flight
        self._clock = clock
        self._recording = recording
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._live: dict[Job, None] = {}
        self._running: deque[Running] = deque()
        self._stopped = False
        ahead = 1 if in_order else _RUN_AHEAD
        self._room = {mesh: threading.Semaphore(ahead) for mesh in meshes}
        self._tokens: dict[str, SimpleQueue[Running | None]] = {m: SimpleQueue() for m in meshes}
        tracks = (*meshes, *(track_of_link(*link) for link in links))
        self._lines: dict[str, Line[tuple[Job, int]]] = {m: Line() for m in meshes if in_order}
        self._ready: dict[str, SimpleQueue[tuple[Job, int] | None] | Line[tuple[Job, int]]] = {
            track: SimpleQueue() for track in tracks
        } | self._lines
        self._threads = [
            *(self._thread(self._work_on_mesh, mesh, f"gimlax {mesh}") for mesh in meshes),
            *(self._thread(self._watch, mesh, f"gimlax watch {mesh}") for mesh in meshes),
            *(self._thread(self._work_on_link, t, f"gimlax {t}") for t in tracks[len(meshes) :]),
        ]
        for thread in self._threads:
            thread.start()

    @property
    def stopped(self) -> bool:
        """Whether a failure or `close` has ended it."""
        return self._stopped

    @property
    def alive(self) -> bool:
        """Whether any of its threads still runs."""
        return any(thread.is_alive() for thread in self._threads)

    def submit(
        self, work: Pass, schedule: Schedule, assemble: Callable[[Pass], Any]
    ) -> PassFuture | None:
        """Starts a pass, waiting while `max_in_flight` are under way.

        Args:
            work: the pass, its carried state taken.
            schedule: the tasks of its phase.
            assemble: makes the result of the finished pass.

        Returns:
            Its future, or None if the pipeline has stopped: nothing was begun.
        """
        future = PassFuture(self, work.next_handles)
        job = Job(work, schedule, future, assemble)
        inside = threading.current_thread() in self._threads
        with self._lock:
            # A callback that submits must not wait for the thread that it blocks.
            while not self._stopped and not inside and len(self._live) >= self._max_in_flight:
                self._changed.wait()
            if self._stopped:
                return None
            future.job = job
            for handle in work.next_handles:
                handle._wait = future.result
            self._live[job] = None
            for task, track in enumerate(schedule.tracks):
                if track in self._lines:
                    self._lines[track].expect((job, task))
            for tree, cells in enumerate(work.state):
                for stage, cell in enumerate(cells):
                    task = schedule.task_of_stage[stage]
                    # A stage that uses nothing of a state has no arrays to wait for.
                    if (
                        task is not None
                        and cell.arrays is None
                        and tree in work.phase.stages[stage].carried
                    ):
                        job.missing[task] += 1
                        cell.waiters.append(lambda task=task: self._arrived(job, task))
            for task, missing in enumerate(job.missing):
                if missing == 0 and task not in schedule.inbound:
                    self._ready[schedule.tracks[task]].put((job, task))
        return future

    def arrive(self, job: Job, index: int, arrays: Sequence[jax.Array]) -> None:
        """Takes what an inbound transfer brought; a pass that has ended has no use for it."""
        task = job.schedule.tasks[index]
        assert isinstance(task, Transfer)
        if self._begin(job):
            for value, array in zip(task.values, arrays, strict=True):
                job.work.values[task.target, value] = array
            self._done(job, index)

    def cancel(self, job: Job) -> bool:
        """See `PassFuture.cancel`."""
        work = job.work
        with self._lock:
            if job.ended:
                return False
            if work.handles:
                if job.dispatched or not withdraw(work.next_handles):
                    return False
                for handle in work.next_handles:
                    handle._lose("was to come from a pass that was cancelled")
                work.give_back()
            self._end(job)
        return True

    def close(self) -> None:
        """Waits for the passes in flight and ends all threads.

        Raises:
            SpecError: called in a callback of a pass, where it would wait for itself.
        """
        self.check_not_inside()
        with self._lock:
            while self._live and not self._stopped:
                self._changed.wait()
        self.stop()

    def check_not_inside(self) -> None:
        """Raises `SpecError` in a callback of a pass, which would wait for itself."""
        if threading.current_thread() in self._threads:
            raise SpecError("close() was called in a callback of a pass; call it in another thread")

    def stop(self) -> None:
        """Ends all threads without regard to passes in flight."""
        with self._lock:
            self._stop()
        self.join()

    def join(self) -> None:
        """Waits until the threads of a stopped pipeline have ended; no-op in one of them."""
        current = threading.current_thread()
        if self._stopped and current not in self._threads:
            for thread in self._threads:
                thread.join()

    def futures(self) -> tuple[PassFuture, ...]:
        """The passes in flight."""
        with self._lock:
            return tuple(job.future for job in self._live)

    def under_way(self) -> dict[str, Running]:
        """Of each mesh the stage that its device is at: the first dispatched that is not done."""
        with self._lock:
            return {running.stage.mesh: running for running in reversed(self._running)}

    def _thread(self, target: Callable[[str], None], track: str, name: str) -> threading.Thread:
        return threading.Thread(target=self._guarded, args=(target, track), name=name, daemon=True)

    def _guarded(self, target: Callable[[str], None], track: str) -> None:
        try:
            target(track)
        except BaseException as error:
            fault = InternalError(
                f"the worker of {track!r} failed: {type(error).__name__}: {error}; please report it"
            )
            fault.__cause__ = error
            self._fail(fault)

    def _work_on_mesh(self, mesh: str) -> None:
        while (item := self._ready[mesh].get()) is not None:
            self._room[mesh].acquire()
            if self._begin(item[0]):
                self._run(mesh, *item)
            else:
                self._room[mesh].release()
            del item  # an idle worker must not keep the pass, and with it the deployment

    def _run(self, mesh: str, job: Job, index: int) -> None:
        task = job.schedule.tasks[index]
        assert isinstance(task, Run)
        stage = job.work.phase.stages[task.stage]
        start_s = self._clock()
        try:
            token = run_stage(job.work, stage)
        except BackendError as error:
            self._fail(self._blame(job, mesh) or error)
            return
        running = Running(job=job, stage=stage, token=token, start_s=start_s)
        with self._lock:
            self._running.append(running)
        self._tokens[mesh].put(running)
        self._done(job, index)

    def _watch(self, mesh: str) -> None:
        last_end_s = float("-inf")
        while (running := self._tokens[mesh].get()) is not None and not self._stopped:
            job, stage = running.job, running.stage
            try:
                running.token.block_until_ready()
            except Exception as error:
                blamed = self._blame(job, mesh)
                self._fail(blamed or _caused(stage_error(stage, error), error))
                return
            end_s = self._clock()
            recording = self._recording()
            if recording is not None:
                task = Run(stage=stage.index, streamed=(), inputs=(), outputs=())
                name = job.work.phase.task(task)
                recording.add(mesh, name, max(running.start_s, last_end_s), end_s)
            last_end_s = end_s
            self._room[mesh].release()
            self._complete(job, running)
            del running, job, recording

    def _work_on_link(self, track: str) -> None:
        while (item := self._ready[track].get()) is not None:
            if self._begin(item[0]):
                self._send(track, *item)
            del item

    def _send(self, track: str, job: Job, index: int) -> None:
        work, transfer = job.work, job.schedule.tasks[index]
        assert isinstance(transfer, Transfer)
        recording = self._recording()
        try:
            # Only what is waited for can be stamped; a link does one transfer at a time.
            if recording is not None:
                jax.block_until_ready([work.values[transfer.source, v] for v in transfer.values])
            start_s = self._clock()
            self._carry(work, transfer)
            keys = [(transfer.target, v) for v in transfer.values]
            copies = [work.values[key] for key in keys if key in work.values]
            self._done(job, index)
            if recording is not None:
                jax.block_until_ready(copies)
                recording.add(track, work.phase.task(transfer), start_s, self._clock())
            if index in job.schedule.outbound:
                self._complete(job)
        except Exception as error:
            blamed = self._blame(job, transfer.source)
            if blamed is None and not isinstance(error, BackendError):
                blamed = _caused(BackendError(f"transfer {track}: {first_line(error)}"), error)
            self._fail(blamed or error)

    def _begin(self, job: Job) -> bool:
        """Whether a task of this pass may still be dispatched; from then on it is under way."""
        with self._lock:
            if job.ended:
                return False
            if not job.dispatched:
                job.dispatched = True
                # Without carried state a pass can be cancelled until it ends.
                if job.work.handles:
                    job.future.set_running_or_notify_cancel()
            return True

    def _done(self, job: Job, index: int) -> None:
        """A task was dispatched: wakes what waits for its values, drops what nobody reads again."""
        schedule, work = job.schedule, job.work
        task, track = schedule.tasks[index], schedule.tracks[index]
        with self._lock:
            written = writes(task, track)
            for key in written:
                for waiting in schedule.wakes.get(key, ()):
                    self._arrived(job, waiting)
            if isinstance(task, Run):
                for cells in work.next_state:
                    cell = cells[task.stage]
                    for wake in cell.waiters:
                        wake()
                    cell.waiters.clear()
            for key in reads(task, track):
                if key in job.readers:
                    job.readers[key] -= 1
            for key in (*reads(task, track), *written):
                if job.readers.get(key) == 0:
                    work.values.pop(key, None)

    def _arrived(self, job: Job, task: int) -> None:
        job.missing[task] -= 1
        if job.missing[task] == 0:
            self._ready[job.schedule.tracks[task]].put((job, task))

    def _complete(self, job: Job, running: Running | None = None) -> None:
        with self._lock:
            if running is not None:
                self._running.remove(running)
            job.remaining -= 1
            if job.remaining or job.ended:
                return
            self._end(job)
        for handle in job.work.next_handles:
            handle._wait = None
        try:
            result = job.assemble(job.work)
        except BaseException as error:
            job.future.set_exception(error)
            raise
        job.future.set_result(result)

    def _end(self, job: Job) -> None:
        """Takes a pass out of the pipeline; the caller holds the lock and settles the future."""
        job.ended = True
        job.future.job = None
        self._live.pop(job, None)
        self._changed.notify_all()

    def _blame(self, job: Job, mesh: str) -> BackendError | None:
        """The first stage that failed, of this pass or on this mesh: later ones only pass it on."""
        with self._lock:
            running = tuple(self._running)
        for other in running:
            if other.job is job or other.stage.mesh == mesh:
                try:
                    other.token.block_until_ready()
                except Exception as error:
                    return _caused(stage_error(other.stage, error), error)
        return None

    def _fail(self, error: BaseException) -> None:
        """Stops the pipeline and ends every pass with an error of its own."""
        with self._lock:
            if self._stopped:
                return
            jobs = tuple(self._live)
            for job in jobs:
                if job.dispatched:
                    job.work.lose_state(f"was lost when a pass failed ({first_line(error)})")
                else:
                    for handle in job.work.next_handles:
                        handle._lose(f"never came to be, a pass before it failed ({error})")
                    job.work.give_back()
                self._end(job)
            self._stop()
        for job in jobs:
            kind = type(error) if isinstance(error, GimlaxError) else BackendError
            own = _caused(kind(str(error)), error.__cause__ or error)
            job.future.set_exception(own)

    def _stop(self) -> None:
        """Tells all threads to end; the caller holds the lock."""
        self._stopped = True
        for queue in (*self._ready.values(), *self._tokens.values()):
            queue.put(None)
        for room in self._room.values():
            room.release(len(self._threads))
        self._changed.notify_all()


def _caused(error: GimlaxError, cause: BaseException) -> Any:
    error.__cause__ = cause
    return error
