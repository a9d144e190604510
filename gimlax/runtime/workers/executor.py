"""Passes over workers: one message to each, and what they tell of the end.

As in one process the first failure ends all passes in flight, each with an error of its own. From
then on passes belong to a later epoch, and whatever an earlier one still sends is dropped.
"""

import contextlib
import itertools
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import wait
from typing import Any

import jax

from gimlax import _jax
from gimlax.errors import BackendError, GimlaxError, SpecError
from gimlax.runtime.jobs import Job, PassFuture
from gimlax.runtime.passes import CompiledPhase, Key, Pass, first_line
from gimlax.runtime.recording import Recording
from gimlax.runtime.schedule import Schedule
from gimlax.runtime.workers.joining import Links
from gimlax.runtime.workers.peers import Peer, error_of
from gimlax.runtime.workers.remote import RemoteStore, number_of
from gimlax.runtime.workers.wire import Message, from_wire

__all__ = ["RemoteExecutor"]


class _Flight:
    """A pass that is under way: which workers have not told of its end."""

    __slots__ = ("job", "missing")

    def __init__(self, job: Job, missing: set[str]) -> None:
        self.job = job
        self.missing = missing


class RemoteExecutor:
    """Runs the passes of a deployment on its workers."""

    def __init__(
        self,
        deployment: int,
        phases: Sequence[CompiledPhase],
        peers: Mapping[str, Peer],
        store: RemoteStore,
        links: Links,
        *,
        max_in_flight: int,
        config: Sequence[tuple[str, Any]],
    ) -> None:
        """`peers` has the worker of each mesh; see `RemoteStore` for the rest."""
        self._deployment = deployment
        self._phases = tuple(phases)
        self._peers = {peer.name: peer for peer in peers.values()}
        self._store = store
        self._links = links
        self._finished: dict[str, list[int]] = {peer.name: [] for peer in peers.values()}
        self._max_in_flight = max_in_flight
        self._config = tuple(config)
        self._x64 = bool(dict(config).get("jax_enable_x64"))
        # A jitted identity takes numpy arrays several times faster than `device_put` does.
        self._on_device = jax.jit(lambda arrays: arrays)
        self._numbers = itertools.count()
        self._epoch = 0
        self._flights: dict[int, _Flight] = {}
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._recording: Recording | None = None
        self._closed = False
        self._stages = {  # by worker and phase the (row, stage) that it runs
            (name, i): [(s.row, s) for s in phase.stages if peers[s.mesh].name == name]
            for name in self._peers
            for i, phase in enumerate(self._phases)
        }
        self._outputs = {
            (name, i): tuple(
                dict.fromkeys(k for k in phase.outputs if k and peers[k[0]].name == name)
            )
            for name in self._peers
            for i, phase in enumerate(self._phases)
        }
        for peer in self._peers.values():
            peer.listen(deployment, lambda message, name=peer.name: self._hear(name, message))
            peer.when_lost(self._lost)

    @property
    def direct(self) -> bool:
        """Never: stages are dispatched in other processes."""
        return False

    def submit(
        self,
        work: Pass,
        schedule: Schedule,
        assemble: Callable[[Pass], Any],
        *,
        check_open: Callable[[], None],
    ) -> PassFuture:
        """See `Executor`."""
        future = PassFuture(self, work.next_handles)
        job = Job(work, schedule, future, assemble)
        phase = next(i for i, phase in enumerate(self._phases) if phase is work.phase)
        placed = {name: self._placed(name, phase, work) for name in self._peers}
        inside = threading.current_thread().name.startswith("gimlax hear")
        with self._lock:
            while not inside and len(self._flights) >= self._max_in_flight and not self._closed:
                self._changed.wait()
            check_open()
            for peer in self._peers.values():
                if peer.lost is not None:
                    raise BackendError(str(peer.lost))
            number = next(self._numbers)
            future.job = job
            future.set_running_or_notify_cancel()
            for handle in work.next_handles:
                handle._wait = future.result
            self._flights[number] = _Flight(job, set(self._peers))
            # Inside the lock, so that all workers are told of passes in one order.
            for name, peer in self._peers.items():
                self._tell(peer, number, phase, work, placed[name])
        return future

    def cancel(self, job: Job) -> bool:
        """Never: everything is dispatched when a pass is submitted."""
        return False

    def join(self) -> None:
        """Nothing to wait for."""

    @contextlib.contextmanager
    def record(self) -> Iterator[Recording]:
        """See `Executor`."""
        with self._lock:
            if self._recording is not None:
                raise SpecError("a recording is under way already; end it before the next begins")
            recording = self._recording = Recording(time.perf_counter())
        fields = {"deployment": self._deployment}
        try:
            for peer in self._peers.values():
                peer.ask("record", fields)
            yield recording
            wait([flight.job.future for flight in tuple(self._flights.values())])
        finally:
            self._recording = None
            for peer in self._peers.values():
                if peer.lost is None:
                    said, _ = peer.ask("end record", fields)
                    for mesh, task, start_s, end_s in said["spans"]:
                        recording.add(mesh, task, start_s, end_s)

    def check_may_close(self) -> None:
        """See `Executor`."""
        if threading.current_thread().name.startswith("gimlax hear"):
            raise SpecError("close() was called in a callback of a pass; call it in another thread")

    def close(self) -> None:
        """See `Executor`."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._changed.notify_all()
            while self._flights:
                self._changed.wait()
        self._links.close()
        for peer in self._peers.values():
            if peer.lost is None:
                with contextlib.suppress(BackendError):
                    peer.ask("close", {"deployment": self._deployment})
            peer.ignore(self._deployment)

    def _placed(self, name: str, phase: int, work: Pass) -> list[int]:
        numbers = []
        for placed in work.placed:
            rows = {
                row: placed._rows[row]
                for i in range(len(self._phases))
                for row, _ in self._stages[name, i]
            }
            numbers.append(self._store.number_of(placed, name, rows))
        return numbers

    def _tell(self, peer: Peer, number: int, phase: int, work: Pass, placed: list[int]) -> None:
        mine = [stage.index for _, stage in self._stages[peer.name, phase]]
        cells = [
            [tree, stage, number_of(before[stage]), number_of(after[stage])]
            for tree, (before, after) in enumerate(zip(work.state, work.next_state, strict=True))
            for stage in mine
        ]
        meshes = {stage.mesh for _, stage in self._stages[peer.name, phase]}
        streamed = [(key, leaf) for key, leaf in work.streamed.items() if key[0] in meshes]
        finished, self._finished[peer.name] = self._finished[peer.name], []
        peer.tell(
            "pass",
            {
                "deployment": self._deployment,
                "drop": self._store.garbage.take(peer.name),
                "finished": finished,
                "pass": number,
                "epoch": self._epoch,
                "phase": phase,
                "placed": placed,
                "cells": cells,
                "streamed": [key for key, _ in streamed],
            },
            [leaf for _, leaf in streamed],
        )

    def _hear(self, name: str, message: Message) -> None:
        fields = message.fields
        if message.kind == "failed":
            if fields["epoch"] == self._epoch:
                self._fail(error_of(fields))
            return
        if message.kind in ("broken", "missing"):
            self._links.hear(message.kind, fields)
        if message.kind != "done":
            return
        arrays = from_wire(message)
        with self._lock:
            flight = self._flights.get(fields["pass"])
            if flight is None or fields["epoch"] != self._epoch:
                return
            phase = self._phases.index(flight.job.work.phase)
            flight.missing.discard(name)
            self._keep(flight.job.work, self._outputs[name, phase], arrays)
            if flight.missing:
                return
            self._end(fields["pass"])
        job = flight.job
        for handle in job.work.next_handles:
            handle._wait = None
        try:
            result = job.assemble(job.work)
        except BaseException as error:
            job.future.set_exception(error)
            return
        job.future.set_result(result)

    def _keep(self, work: Pass, keys: Sequence[Key], arrays: Sequence[Any]) -> None:
        if self._x64:
            with _jax.using_config(self._config):
                arrays = self._on_device(list(arrays))
        elif arrays:
            arrays = self._on_device(list(arrays))
        work.values.update(zip(keys, arrays, strict=True))

    def _lost(self, peer: Peer) -> None:
        assert peer.lost is not None
        self._fail(peer.lost)

    def _fail(self, error: GimlaxError) -> None:
        """Ends every pass in flight with an error of its own; later ones are of a new epoch."""
        with self._lock:
            self._epoch += 1
            jobs = [flight.job for flight in self._flights.values()]
            for number in tuple(self._flights):
                self._end(number)
            for peer in self._peers.values():
                if peer.lost is None:
                    peer.begin("reset", {"deployment": self._deployment, "epoch": self._epoch})
        for job in jobs:
            job.work.lose_state(f"was lost when a pass failed ({first_line(error)})")
            own = type(error)(str(error))
            own.__cause__ = error
            job.future.set_exception(own)

    def _end(self, number: int) -> None:
        """Takes a pass out; the caller holds the lock and settles the future."""
        flight = self._flights.pop(number)
        for finished in self._finished.values():
            finished.append(number)
        flight.job.ended = True
        flight.job.future.job = None
        self._changed.notify_all()
