"""Passes over workers: one message to each, and what they tell of the end.

A pass is done when all workers have told so. When a worker is lost, or cannot do a stage, nobody is
told of more passes until a recovery has given the compilation a footing again; then those in flight
are started anew, in their order, on states that were made good. After a failure they run one at a
time, so that the pass at fault is known: it ends with its error, and those that needed its state.
"""

import contextlib
import threading
import time
import warnings
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import wait
from typing import Any

import jax

from gimlax import _jax
from gimlax.errors import GimlaxError, SpecError
from gimlax.runtime.inventory import Tree
from gimlax.runtime.jobs import Job, PassFuture
from gimlax.runtime.passes import CompiledPhase, Key, Pass
from gimlax.runtime.recording import Recording
from gimlax.runtime.schedule import Schedule
from gimlax.runtime.workers.attempts import Attempt
from gimlax.runtime.workers.flights import Flight, Flights, is_long
from gimlax.runtime.workers.footing import Footing
from gimlax.runtime.workers.ground import Ground
from gimlax.runtime.workers.lineage import Applied, PassRecord, Value
from gimlax.runtime.workers.mending import Mender
from gimlax.runtime.workers.peers import Peer
from gimlax.runtime.workers.remote import RemoteStore, State, Stock, stock_of

__all__ = ["RemoteExecutor"]


class RemoteExecutor:
    """Runs the passes of a compilation on its workers."""

    def __init__(
        self,
        ground: Ground,
        phases: Sequence[CompiledPhase],
        store: RemoteStore,
        restore: Callable[["RemoteExecutor", Sequence[Flight]], None],
        *,
        max_in_flight: int,
        config: Sequence[tuple[str, Any]],
    ) -> None:
        """Begins to listen.

        Args:
            ground: where the compilation stands.
            phases: as callers see them.
            store: keeps what is placed.
            restore: makes the ground and the states of these flights good again.
            max_in_flight: passes that `submit` lets in before it waits.
            config: JAX's configuration of the trace.
        """
        self._ground = ground
        self._phases = tuple(phases)
        self._store = store
        self._empty: dict[int, Stock] = {}
        self._max_in_flight = max_in_flight
        self._config = tuple(config)
        self._x64 = bool(dict(config).get("jax_enable_x64"))
        # A jitted identity takes numpy arrays several times faster than `device_put` does.
        self._on_device = jax.jit(lambda arrays: arrays)
        self.flights = Flights(ground)
        self._mender = Mender(
            ground, self.flights, lambda flights: restore(self, flights), self._start
        )
        self._recording: Recording | None = None
        self._closed = False
        self._news: deque[str] = deque()
        self._outputs: list[tuple[tuple[Key, Key], ...]] = []
        self.watch(ground.footing)

    @property
    def is_recording(self) -> bool:
        """Whether spans are wanted."""
        return self._recording is not None

    @property
    def direct(self) -> bool:
        """Never: stages are dispatched in other processes."""
        return False

    @property
    def may_wait(self) -> bool:
        """Not in the thread that has to hear the answers."""
        return not _inside()

    def watch(self, footing: Footing) -> None:
        """Works on this footing from now on, and hears when one of its workers is lost."""
        with self._ground.lock:
            self._ground.footing = footing
            self._outputs = [
                tuple(
                    (there, here)
                    for there, here in zip(phase.outputs, called.outputs, strict=True)
                    if there is not None and here is not None
                )
                for phase, called in zip(footing.phases, self._phases, strict=True)
            ]
        # Workers outlive this: they must not keep it alive, or nobody could ever let go of it.
        me = weakref.ref(self)

        def lost(_: Peer) -> None:
            if (executor := me()) is not None:
                executor._lost(footing)

        for peer in footing.peers.values():
            peer.when_lost(lost, footing.number)

    def tell(self, news: str) -> None:
        """Warns the caller, in the caller's thread, at the next chance."""
        self._news.append(news)

    def submit(
        self,
        work: Pass,
        schedule: Schedule,
        assemble: Callable[[Pass], Any],
        *,
        check_open: Callable[[], None],
    ) -> PassFuture:
        """See `Executor`."""
        self.warn(4)
        ground = self._ground
        future = _Future(self, work.next_handles)
        job = Job(work, schedule, future, assemble)
        phase = next(i for i, phase in enumerate(self._phases) if phase is work.phase)
        stocks = [stock_of(placed) or self._unread(placed._tree) for placed in work.placed]
        before: list[State] = [cells[0] for cells in work.state]  # type: ignore[misc]
        for state in before:
            state.check()
            if is_long(state):
                self._shorten(state)
        flight = Flight(job, phase, stocks, before)
        with ground.changed:
            while (
                len(self.flights) >= self._max_in_flight
                and not self._closed
                and ground.broken is None
                and not _inside()
            ):
                ground.changed.wait()
            check_open()
            ground.check()
            for state in before:
                state.check()
            future.job = job
            future.set_running_or_notify_cancel()
            for handle in work.next_handles:
                handle._wait = future.result
            if ground.keeps_log and before:
                origins = [state.origin for state in before]
                record = PassRecord(phase, stocks, flight.streamed, origins)  # type: ignore[arg-type]
                for tree, state in enumerate(flight.after):
                    state.origin = Applied(record, tree)
            for state in before:
                state.consumed = True
            self.flights.add(flight)
            try:
                self._start()
            except BaseException:  # such as Ctrl-C: nobody will have its future
                self.flights.remove(flight)
                for state in before:
                    state.consumed = False
                self._mender.begin()
                raise
        return future

    def cancel(self, job: Job) -> bool:
        """Never: everything is dispatched when a pass is submitted."""
        return False

    def join(self) -> None:
        """Nothing to wait for."""

    @contextlib.contextmanager
    def record(self) -> Iterator[Recording]:
        """See `Executor`."""
        ground = self._ground
        with ground.lock:
            if self._recording is not None:
                raise SpecError("a recording is under way already; end it before the next begins")
            recording = self._recording = Recording(time.perf_counter())
        try:
            ground.steadily(Footing.record)
            yield recording
            wait([flight.job.future for flight in tuple(self.flights)])
        finally:
            self._recording = None
            self.collect(ground.footing, recording)

    def collect(self, footing: Footing, recording: Recording | None = None) -> None:
        """Takes over the spans of a footing, if any are wanted."""
        if (recording := recording or self._recording) is not None:
            for mesh, task, start_s, end_s in footing.end_record():
                recording.add(mesh, task, start_s, end_s)

    def check_may_close(self) -> None:
        """See `Executor`."""
        if _inside():
            raise SpecError("close() was called in a callback of a pass; call it in another thread")

    def close(self, idle: Callable[[], None]) -> None:
        """See `Executor`."""
        ground = self._ground
        with ground.changed:
            if self._closed:
                return
            self._closed = True
            ground.changed.notify_all()
            ending = [flight.job.future for flight in self.flights]
            while self.flights or ground.recovering:
                ground.changed.wait()
        wait(ending)  # of those that have left their results are still put together
        try:
            idle()
        finally:
            self.collect(ground.footing)  # of a block that has not ended
            ground.close()
        self.warn(4)

    def _unread(self, tree: Tree) -> Stock:
        """Of an argument that no stage reads."""
        if tree.index not in self._empty:
            self._empty[tree.index] = self._store.empty(tree)
        return self._empty[tree.index]

    def _start(self) -> None:
        """Starts what can be started; the caller holds the lock."""
        if self._ground.recovering:
            return
        for flight in self.flights.startable():
            self._start_one(flight)

    def _start_one(self, flight: Flight) -> None:
        footing = self._ground.footing
        flight.started = True
        before, after = [], []
        for state, following in zip(flight.before, flight.after, strict=True):
            assert state.held is not None
            before.append(state.held[1])
            after.append(footing.fresh())
            following.held = (footing, after[-1])
            state.held = None  # its cells are taken by the pass
        pairs = self._outputs[flight.phase]
        footing.start(
            Attempt(
                flight.phase,
                [stock.placing for stock in flight.stocks],  # type: ignore[misc]
                before,
                after,
                flight.streamed,
                wanted=True,
                done=lambda values: self._done(flight, pairs, values),
                failed=lambda error: self._fail(flight, error),
                tap=flight.job.work.tap,
            )
        )

    def _done(
        self, flight: Flight, pairs: Sequence[tuple[Key, Key]], values: dict[Key, Any]
    ) -> None:
        ground, work = self._ground, flight.job.work
        ground.progress()
        arrays = self._here([values[there] for there, _ in pairs])
        work.values.update(zip([here for _, here in pairs], arrays, strict=True))
        with ground.lock:
            if flight not in self.flights:
                return
            waited = self.flights.remove(flight)
            for state in flight.after:
                state.settled = True
                ground.states.add(state)
            if waited:
                self._start()
        for handle in work.next_handles:
            handle._wait = None
        try:
            result = flight.job.assemble(work)
        except BaseException as error:
            flight.job.future.set_exception(error)
            return
        flight.job.future.set_result(result)

    def _here(self, arrays: list[Any]) -> Sequence[Any]:
        if self._x64:
            with _jax.using_config(self._config):
                return self._on_device(arrays)
        return self._on_device(arrays) if arrays else arrays

    def _fail(self, flight: Flight, error: GimlaxError) -> None:
        """A worker could not do it."""
        with self._ground.lock:
            self.flights.failed.append((flight, error))
            self._mender.begin()

    def _lost(self, footing: Footing) -> None:
        with self._ground.lock:
            if self._ground.footing is footing and (self.flights or not self._closed):
                self._mender.begin()

    def _shorten(self, state: State) -> None:
        """Reads a state back, so that its log can be let go of."""
        if _inside():
            return
        with self._ground.changed:
            while not state.settled and state.gone is None:
                self._ground.changed.wait()
        leaves = range(len(state.tree.avals))

        def keep(_: Footing, read: list[Any]) -> None:
            state.origin = Value(state.tree.index, read)

        self._ground.steadily(lambda on: [state.read(on, leaf) for leaf in leaves], keep)

    def warn(self, stacklevel: int) -> None:
        """Gives the caller the news."""
        while self._news:
            warnings.warn(self._news.popleft(), stacklevel=stacklevel + 1)


class _Future(PassFuture):
    """Tells its caller what happened meanwhile."""

    def result(self, timeout: float | None = None) -> Any:
        """See `PassFuture`."""
        result = super().result(timeout)
        assert isinstance(self._owner, RemoteExecutor)
        self._owner.warn(2)
        return result


def _inside() -> bool:
    """Whether this is a thread that other passes need: it must not wait for them."""
    return threading.current_thread().name.startswith(("gimlax hear", "gimlax recover"))
