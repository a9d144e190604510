"""Several passes in flight: a lane per mesh and per link, each with a thread, and watchers.

A lane runs whatever task of any pass is ready, in the order in which tasks became ready; a link
has its own because `device_put` between two clients blocks its thread until the producer is done.
Where that is quicker a task is run by the thread that made it ready (see `lanes`). A stage whose
token is there when its dispatch returns is done; else the watcher of its mesh waits for the token.
Either stamps the end of the stage and raises its own error, and so bounds how far dispatch runs
ahead of the device. The first failure stops everything: all passes in flight end with one error
each, and all threads end.

Chosen over asyncio because dispatch and copies block, and over a pool because the order of stages
on a mesh is the order of passes.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax

from gimlax.errors import BackendError, InternalError, SpecError
from gimlax.program import Run, Transfer, track_of_link
from gimlax.runtime.blaming import blame, blame_transfer, caused
from gimlax.runtime.in_flight import InFlight
from gimlax.runtime.jobs import Job, PassFuture, Running
from gimlax.runtime.lanes import Lane, Task
from gimlax.runtime.passes import Pass, run_stage, send, stage_error
from gimlax.runtime.recording import Recording
from gimlax.runtime.schedule import Schedule

_RUN_AHEAD = 4  # stages dispatched to a mesh and not yet done


class Pipeline:
    """Threads for the meshes and links of a deployment; ends at the first failure or at `close`."""

    def __init__(
        self,
        meshes: Sequence[str],
        links: Sequence[tuple[str, str]],
        *,
        max_in_flight: int | None,
        clock: Callable[[], float],
        recording: Callable[[], Recording | None],
        send: Callable[[Pass, Transfer], Any] = send,
        try_send: Callable[[Pass, Transfer], bool] | None = None,
        in_order: bool = False,
    ) -> None:
        """Starts the threads.

        Args:
            meshes: those of this process.
            links: those that begin here.
            max_in_flight: passes that `submit` lets in before it waits, None if it never does.
            clock: stamps spans, in seconds.
            recording: where spans go, None where they are not wanted.
            send: executes a transfer.
            try_send: does so if nothing has to be waited for, and tells whether it did. With it,
                `submit` and `arrive` may run short tasks in their caller's thread.
            in_order: whether stages run on a mesh in the one order in which passes and their steps
                come, and each when the one before is done: over several processes, since all of
                them have to run the same ones at the same time.
        """
        self._carry = send
        self._try_carry = try_send
        self._here = try_send is not None and len(meshes) == 1 and not in_order
        self._clock = clock
        self._recording = recording
        self._passes = InFlight(max_in_flight, self._stop_lanes)
        self._lock = self._passes.lock
        self._running: deque[Running] = deque()
        ahead = 1 if in_order else _RUN_AHEAD
        lanes = [Lane(mesh, ahead=ahead, in_order=in_order) for mesh in meshes]
        lanes += [Lane(track_of_link(*link), ahead=ahead) for link in links]
        self._lanes = {lane.track: lane for lane in lanes}
        self._threads = [
            *(self._thread(self._work, track, f"gimlax {track}") for track in self._lanes),
            *(self._thread(self._watch, mesh, f"gimlax watch {mesh}") for mesh in meshes),
        ]
        for thread in self._threads:
            thread.start()

    @property
    def stopped(self) -> bool:
        """Whether a failure or `close` has ended it."""
        return self._passes.stopped

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
        return future if self.begin(Job(work, schedule, future, assemble)) else None

    def begin(self, job: Job) -> bool:
        """Starts a pass as `submit` does; whether it was begun."""
        # A callback that submits must not wait for the thread that it blocks.
        wait = threading.current_thread() not in self._threads
        with self._lock:
            if not self._passes.let_in(job, wait=wait):
                return False
            for task, track in enumerate(job.schedule.tracks):
                if track in self._lanes:  # else another process does it
                    self._lanes[track].expect((job, task))
            ready = self._put([(job, task) for task in job.waits()])
        try:
            self._go_on(ready)
        except BaseException:  # such as Ctrl-C: what is ready is done elsewhere
            for lane in ready:
                lane.calls.put(True)
            raise
        return True

    def arrive(self, job: Job, index: int, arrays: Sequence[jax.Array]) -> None:
        """Takes what an inbound transfer brought; a pass that has ended has no use for it."""
        with self._lock:
            if not job.begin():
                return
            job.work.values.update(zip(job.schedule.writes[index], arrays, strict=True))
            ready = self._put(job.done(index))
        self._go_on(ready)

    def cancel(self, job: Job) -> bool:
        """See `PassFuture.cancel`."""
        return self._passes.cancel(job)

    def close(self) -> None:
        """Waits for the passes in flight and ends all threads.

        Raises:
            SpecError: called in a callback of a pass, where it would wait for itself.
        """
        self.check_not_inside()
        self._passes.wait()
        self.stop()

    def check_not_inside(self) -> None:
        """Raises `SpecError` in a callback of a pass, which would wait for itself."""
        if threading.current_thread() in self._threads:
            raise SpecError("close() was called in a callback of a pass; call it in another thread")

    def stop(self) -> None:
        """Ends all threads without regard to passes in flight."""
        with self._lock:
            self._passes.stop()
        self.join()

    def join(self) -> None:
        """Waits until nothing runs in a stopped pipeline any more; no-op in one of its threads."""
        current = threading.current_thread()
        if self.stopped and current not in self._threads:
            for thread in self._threads:
                thread.join()
            with self._lock:  # others may have been running tasks
                while any(lane.busy for lane in self._lanes.values()):
                    self._passes.changed.wait()

    def futures(self) -> tuple[PassFuture, ...]:
        """The passes in flight."""
        return self._passes.futures()

    def under_way(self) -> dict[str, Running]:
        """Of each mesh the stage that its device is at: the first dispatched that is not done."""
        with self._lock:
            return {running.stage.mesh: running for running in reversed(self._running)}

    def _thread(self, target: Callable[[Lane], None], track: str, name: str) -> threading.Thread:
        lane = self._lanes[track]
        return threading.Thread(target=self._guarded, args=(target, lane), name=name, daemon=True)

    def _guarded(self, target: Callable[[Lane], None], lane: Lane) -> None:
        try:
            target(lane)
        except BaseException as error:
            self._broke(lane, error)

    def _broke(self, lane: Lane, error: BaseException) -> None:
        fault = InternalError(
            f"the worker of {lane.track!r} failed: {type(error).__name__}: {error}; please report"
            " it"
        )
        self._failed(lane, caused(fault, error))

    def _work(self, lane: Lane) -> None:
        while lane.calls.get():
            while (found := self._take(lane, here=False)) is not None:
                job, index = found
                is_stage = isinstance(job.schedule.tasks[index], Run)
                self._go_on((self._run if is_stage else self._send)(lane, job, index))
                del found, job  # an idle thread must not keep the pass, and with it the deployment

    def _go_on(self, lanes: list[Lane]) -> None:
        """Runs here what may be, and what becomes ready by that; calls other lanes' threads."""
        for lane in lanes:  # which grow
            try:
                while lane.ready and (found := self._take(lane, here=True)) is not None:
                    job, index = found
                    is_stage = isinstance(job.schedule.tasks[index], Run)
                    more = (self._run if is_stage else self._try_send)(lane, job, index)
                    if more is None:
                        break
                    lanes += more
            except Exception as error:
                self._broke(lane, error)

    def _take(self, lane: Lane, *, here: bool) -> Task | None:
        """The next task, to be run now; None if there is none or it is not to be run `here`."""
        with self._lock:
            while lane.is_free and not self.stopped:
                found = lane.ready[0]
                if here and not self._is_for_helpers(*found, lane):
                    lane.calls.put(True)
                    return None
                lane.ready.popleft()
                if found[0].begin():
                    lane.busy = True
                    return found
        return None

    def _is_for_helpers(self, job: Job, index: int, lane: Lane) -> bool:
        if isinstance(job.schedule.tasks[index], Run):
            return self._here and lane.is_short(job, index)
        # Only what is waited for can be stamped.
        return self._try_carry is not None and self._recording() is None

    def _run(self, lane: Lane, job: Job, index: int) -> list[Lane]:
        """Executes a stage; returns the lanes that have something to do now."""
        task = job.schedule.tasks[index]
        assert isinstance(task, Run)
        stage = job.work.phase.stages[task.stage]
        start_s = self._clock()
        try:
            token: Any = run_stage(job.work, stage)
        except BackendError as error:
            return self._failed(lane, self._blame(job, lane.track) or error)
        took_s = self._clock() - start_s
        running = Running(job, index, stage, token, start_s)
        is_done = lane.ahead == 0 and token.is_ready()
        if not is_done:
            with self._lock:
                self._running.append(running)
            # What will be done soon is waited for here, unless more can be dispatched meanwhile.
            is_done = lane.ahead == 0 and not lane.ready and lane.is_brief(job, index)
        if is_done and (error := self._end_stage(lane, running)) is not None:
            return self._failed(lane, error)
        with self._lock:
            lane.took(job, index, took_s)
            self._leave(lane)
            ready = self._put(job.done(index))
            if not is_done:
                lane.ahead += 1
            elif running in self._running:
                self._running.remove(running)
            has_ended = is_done and self._passes.count_down(job)
        if not is_done:
            lane.tokens.put(running)
        elif has_ended:
            self._passes.settle(job)
        return ready

    def _watch(self, lane: Lane) -> None:
        while (running := lane.tokens.get()) is not None and not self.stopped:
            job = running.job
            if (error := self._end_stage(lane, running)) is not None:
                self._passes.fail(error)
                return
            with self._lock:
                lane.ahead -= 1
                self._running.remove(running)
                has_ended = self._passes.count_down(job)
                if lane.is_free:
                    lane.calls.put(True)
            if has_ended:
                self._passes.settle(job)
            del running, job

    def _end_stage(self, lane: Lane, running: Running) -> BackendError | None:
        """Waits for a stage and stamps its end; its error if it has one."""
        job, stage = running.job, running.stage
        try:
            running.token.block_until_ready()
        except Exception as error:
            return self._blame(job, lane.track) or caused(stage_error(stage, error), error)
        lane.stamp(running, self._clock(), self._recording())
        return None

    def _send(self, lane: Lane, job: Job, index: int) -> list[Lane]:
        """Executes a transfer; returns the lanes that have something to do now."""
        work, transfer = job.work, job.schedule.tasks[index]
        assert isinstance(transfer, Transfer)
        recording = self._recording()
        try:
            # Only what is waited for can be stamped; a link does one transfer at a time.
            if recording is not None:
                jax.block_until_ready([work.values[key] for key in job.schedule.reads[index]])
            start_s = self._clock()
            self._carry(work, transfer)
            keys = job.schedule.writes[index]
            copies = [work.values[key] for key in keys if key in work.values]
            ready = self._sent(lane, job, index)
            if recording is not None:
                jax.block_until_ready(copies)
                recording.add(lane.track, work.phase.task(transfer), start_s, self._clock())
        except Exception as error:
            return self._failed(lane, self._why(lane, job, transfer, error))
        return ready

    def _try_send(self, lane: Lane, job: Job, index: int) -> list[Lane] | None:
        """Does so without waiting; None if its thread was called to do it."""
        transfer = job.schedule.tasks[index]
        assert isinstance(transfer, Transfer) and self._try_carry is not None
        try:
            if self._try_carry(job.work, transfer):
                return self._sent(lane, job, index)
        except Exception as error:
            return self._failed(lane, self._why(lane, job, transfer, error))
        with self._lock:
            lane.ready.appendleft((job, index))
            self._leave(lane)
        lane.calls.put(True)
        return None

    def _sent(self, lane: Lane, job: Job, index: int) -> list[Lane]:
        with self._lock:
            self._leave(lane)
            ready = self._put(job.done(index))
            has_ended = index in job.schedule.outbound and self._passes.count_down(job)
        if has_ended:
            self._passes.settle(job)
        return ready

    def _why(self, lane: Lane, job: Job, transfer: Transfer, error: Exception) -> BaseException:
        return blame_transfer(self._started(), job, transfer.source, lane.track, error)

    def _failed(self, lane: Lane, error: BaseException) -> list[Lane]:
        self._passes.fail(error)
        with self._lock:
            self._leave(lane)
        return []

    def _leave(self, lane: Lane) -> None:
        """Nobody runs a task of the lane now; the caller holds the lock."""
        lane.busy = False
        if self.stopped:
            self._passes.changed.notify_all()

    def _put(self, tasks: Iterable[Task]) -> list[Lane]:
        """Lets tasks wait for their turn; their lanes. The caller holds the lock."""
        lanes = []
        for job, index in tasks:
            lane = self._lanes[job.schedule.tracks[index]]
            lane.ready.append((job, index))
            lanes.append(lane)
        return lanes

    def _blame(self, job: Job, mesh: str) -> BackendError | None:
        return blame(self._started(), job, mesh)

    def _started(self) -> tuple[Running, ...]:
        with self._lock:
            return tuple(self._running)

    def _stop_lanes(self) -> None:
        for lane in self._lanes.values():
            lane.calls.put(False)
            lane.tokens.put(None)
