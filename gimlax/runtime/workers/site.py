"""The part of a deployment that one worker has: its stages, its share of the arrays, its passes.

It runs the pipeline of the embedded case. What differs is who fills it: cells and parameters are
known by numbers that the controller gave them, values come in over links from other workers, and
what ends a pass here is told, not returned.
"""

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax

from gimlax import _jax, fabric
from gimlax.errors import GimlaxError, InternalError
from gimlax.partition import partition_spec
from gimlax.program import Transfer, track_of_link
from gimlax.runtime.jobs import Ending, Job
from gimlax.runtime.passes import CompiledPhase, Key, Pass, outgoing, send
from gimlax.runtime.pipeline import Pipeline
from gimlax.runtime.recording import Recording
from gimlax.runtime.schedule import Schedule
from gimlax.runtime.stores import Cell
from gimlax.runtime.workers.hanging import Hangs
from gimlax.runtime.workers.laying import lay
from gimlax.runtime.workers.orders import Orders
from gimlax.runtime.workers.ports import PLACES, Ports
from gimlax.runtime.workers.tapping import Taps
from gimlax.runtime.workers.telling import PassOrder, streamed_keys

__all__ = ["Site"]

Config = tuple[tuple[str, Any], ...]

_STALLED_S = 1.0  # a value that has not come for so long is asked for again


@dataclass(slots=True)
class _Flight:
    """A pass that is under way, and the inbound transfers that it still waits for."""

    job: Job
    ask_s: float  # when to ask for what has not come, and how long after that to ask again
    wait_s: float
    missing: dict[int, str]


class _Rows:
    """Parameters as stages read them; stands where a `Placed` handle does."""

    __slots__ = ("_rows",)

    def __init__(self, rows: Mapping[int, tuple[jax.Array, ...]]) -> None:
        self._rows = rows


class _WorkerPass(Pass):
    """A pass of which this worker knows its own cells only."""

    __slots__ = ("epoch", "number")

    def lose_state(self, reason: str) -> None:
        """The controller knows what is lost: it holds the handles."""

    def give_back(self) -> None:
        """See `lose_state`."""


class Site:
    """Compiled stages of one worker and everything that passes over them need."""

    def __init__(
        self,
        orders: Orders,
        phases: Sequence[CompiledPhase],
        arrays: dict[int, jax.Array],
        meshes: Mapping[str, jax.sharding.Mesh],
        config: Config,
        tell: Callable[..., None],
        *,
        member: int,
        busy_elsewhere: Callable[[], bool],
    ) -> None:
        """Makes ready for passes.

        Args:
            orders: what to run.
            phases: compiled for them.
            arrays: parameters of the compilation by number, of other deployments of it too.
            meshes: live meshes of this process by name.
            config: JAX's configuration that everything was traced under.
            tell: sends a message (kind, fields, arrays) to the controller.
            member: which process of the worker this is.
            busy_elsewhere: whether stages of another site are under way, which those of this one
                may have to wait for.
        """
        self._meshes = meshes
        self._config = config
        self._tell = tell
        self._orders = orders
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self.arrays = arrays
        self.cells: dict[int, Cell] = {}
        self.taps = Taps()
        self._placed: dict[int, _Rows] = {}
        self._recording: Recording | None = None
        self._epoch = 0
        self._is_spoiled = False
        self._busy_elsewhere = busy_elsewhere
        self._live: dict[int, _Flight] = {}
        self._early: dict[int, dict[int, list[jax.Array]]] = defaultdict(dict)
        self._last = -1  # the pass that was started last
        self._ending = threading.Event()
        self._pipeline: Pipeline | None = None
        self._phases = tuple(phases)
        self._hangs = Hangs(self._phases, _STALLED_S / 2)
        self._over_processes = any(mesh.is_multi_process for mesh in meshes.values())
        elsewhere = {
            end
            for phase in orders.phases
            for step in phase.steps
            for end in (step.source, step.target)
            if end and end not in meshes
        }
        mine = [[stage for stage in phase.stages if stage] for phase in self._phases]
        self._mine = [[stage.index for stage in stages] for stages in mine]
        self._streamed = [streamed_keys(stages) for stages in mine]
        self._schedules = tuple(Schedule.build(phase, elsewhere) for phase in self._phases)
        self._places = {
            (phase, schedule.tasks[task]): PLACES * index + place
            for index, (phase, schedule) in enumerate(
                zip(self._phases, self._schedules, strict=True)
            )
            for of in schedule.links.values()
            for place, task in enumerate(of)
        }
        self.ports = Ports(
            orders,
            meshes,
            config,
            member,
            tell,
            self._arrive,
            lambda tag, error: self._failed(tag.pass_number, tag.attempt, error),
        )
        self._watcher = threading.Thread(target=self._ask_again, name="gimlax stalled", daemon=True)
        self._watcher.start()

    def drain(self) -> None:
        """Waits until no pass is under way."""
        with self._changed:
            while self._live:
                self._changed.wait()

    def shelve(self, mesh: str, numbers: Sequence[int], specs: Sequence[Any], rows: Any) -> None:
        """Keeps parameters under these numbers."""
        with _jax.using_config(self._config):
            self.arrays.update(zip(numbers, self._put(mesh, specs, rows), strict=True))

    def fill(self, mesh: str, number: int, specs: Sequence[Any], rows: Any) -> None:
        """Keeps state of a stage under this number; `rows` are nobody else's."""
        with _jax.using_config(self._config):
            arrays = self._put(mesh, specs, rows)
            copies = [array.copy() for array in arrays]  # what was received must not be donated
            self.cells[number] = Cell(tuple(copies))

    def _kept(self) -> dict[str, Any]:
        placed = self._placed
        return {"arrays": self.arrays, "cells": self.cells, "placed": placed, "taps": self.taps}

    def _drop(self, kept: Mapping[str, Sequence[int]]) -> None:
        """Lets go of what no handle stands for any more."""
        for name, of in self._kept().items():
            for number in kept[name]:
                of.pop(number, None)

    def census(self) -> dict[str, int]:
        """How much is kept."""
        return {name: len(of) for name, of in self._kept().items()}

    def record(self) -> None:
        """Begins to collect spans."""
        self._recording = Recording(0.0)

    def end_record(self) -> list[list[Any]]:
        """What was collected since, in seconds of this host's monotonic clock."""
        recording, self._recording = self._recording, None
        spans = recording.timeline.spans if recording is not None else ()
        return [[s.mesh, s.task, s.start_s, s.end_s] for s in spans]

    def keep(
        self, drop: Mapping[str, Sequence[int]] | None, placed: Sequence[tuple[int, Any]]
    ) -> None:
        """Lets go of what no handle stands for, and takes what placed arguments are made of."""
        if drop is not None:
            self._drop(drop)
        known = self.arrays
        for number, rows in placed:
            self._placed[number] = _Rows({row: tuple(known[n] for n in of) for row, of in rows})

    def start(self, order: PassOrder, arrays: Sequence[Any]) -> None:
        """Starts a pass; `arrays` are those of its streamed leaves. How it ends is told."""
        if order.finished:
            self.ports.forget(order.finished)
        number, phase = order.number, self._phases[order.phase]
        placed: Any = [self._placed[of] for of in order.placed]
        work = _WorkerPass(phase, placed, (), self._feed(order.phase, arrays))
        self._take_cells(work, order)
        outputs = self._orders.phases[order.phase].outputs if order.is_wanted else ()
        with self._lock:
            if order.epoch != self._epoch or self._is_spoiled:
                return
            if self._pipeline is None or self._pipeline.stopped:
                if self._pipeline is not None and self._over_processes:
                    return  # the other processes are still at the pass that failed
                self._pipeline = self._new_pipeline()
            pipeline = self._pipeline
        work.number, work.epoch = number, order.epoch
        if order.is_tapped:
            work.tap = self.taps.new(number)
        schedule = self._schedules[order.phase]
        job = Job(
            work,
            schedule,
            Ending(lambda found, error: self._ended(order, found, error)),
            lambda done: [done.values[key] for key in outputs],
        )
        if not pipeline.begin(job):
            return  # a pass before it failed, which was told
        with self._lock:
            self._last = max(self._last, number)
            early = self._early.pop(number, {})
            if not job.ended:
                missing = {i: schedule.tracks[i] for i in schedule.inbound if i not in early}
                ask_s = time.monotonic() + _STALLED_S
                self._live[number] = _Flight(job, ask_s, _STALLED_S, missing)
        for task, values in early.items():
            pipeline.arrive(job, task, values)

    def _arrive(self, track: str, tag: fabric.Tag, arrays: list[jax.Array]) -> None:
        """Takes values that another worker sent: of a pass that may not have been started yet."""
        number = tag.pass_number
        phase, place = divmod(tag.transfer, PLACES)
        index = self._schedules[phase].task_at(track, place)
        with self._lock:
            if tag.attempt != self._epoch:
                return
            flight, pipeline = self._live.get(number), self._pipeline
            if flight is None:
                if number > self._last:  # else its pass has ended, and this was sent twice
                    self._early[number][index] = arrays
                return
            if flight.missing.pop(index, None) is None:
                return  # it had come before
        assert pipeline is not None
        pipeline.arrive(flight.job, index, arrays)

    def _ask_again(self) -> None:
        """Asks for values that do not come, as a link may have lost them without a trace, and tells
        of a stage that does not end."""
        while not self._ending.wait(_STALLED_S / 2):
            now_s = time.monotonic()
            stalled: list[tuple[int, str]] = []
            with self._lock:
                for number, flight in self._live.items():
                    if flight.missing and flight.ask_s < now_s:
                        flight.wait_s *= 2  # what is asked for may be large, and on its way
                        flight.ask_s = now_s + flight.wait_s
                        stalled += [(number, track) for track in set(flight.missing.values())]
            for number, track in stalled:
                self.ports.ask_for(track, number)
            if (pipeline := self._pipeline) is not None and not self._busy_elsewhere():
                at: Any = pipeline.under_way().items()
                if hung := self._hangs.look({m: (of.job.work.number, of.stage) for m, of in at}):
                    self._tell("hung", {"what": hung})

    @property
    def is_busy(self) -> bool:
        """Whether a stage is under way."""
        pipeline = self._pipeline
        return pipeline is not None and bool(pipeline.under_way())

    def spoil(self, epoch: int) -> None:
        """Notes that a pass of this epoch could not be started here.

        Where other processes may have started it nothing more is, until the next epoch: stages of
        different passes would take each other's values.
        """
        with self._lock:
            self._is_spoiled = self._over_processes and epoch == self._epoch

    def reset(self, epoch: int) -> None:
        """Ends all passes that are under way: the controller has given them up."""
        with self._lock:
            self._epoch = epoch
            self._is_spoiled = False
            pipeline, self._pipeline = self._pipeline, None
            self._live.clear()
            self._changed.notify_all()
            self._early.clear()
        self.ports.forget_all()
        if pipeline is not None:
            pipeline.stop()

    def close(self) -> None:
        """Ends the threads and the links."""
        self._ending.set()
        self.ports.close()
        self.reset(-1)
        self._watcher.join()

    def _ended(self, order: PassOrder, outputs: Any, error: BaseException | None) -> None:
        with self._changed:
            self._live.pop(order.number, None)
            self._changed.notify_all()
        try:
            if error is None:
                self._hangs.came_through(order.phase)
                if order.tells:
                    self._tell("done", {}, outputs, (order.number, order.epoch))
                return
        except Exception as problem:  # an output that cannot be read or sent
            error = problem
        self._failed(order.number, order.epoch, error)

    def _failed(self, number: int, epoch: int, error: BaseException) -> None:
        known = isinstance(error, GimlaxError)
        kind = type(error).__name__ if known else "BackendError"
        what = str(error) if known else f"{type(error).__name__}: {error}"
        self._tell("failed", {"error": kind, "what": what}, (), (number, epoch))

    def _feed(self, phase: int, arrays: Sequence[Any]) -> dict[Key, Any]:
        fed = dict(zip(self._streamed[phase], arrays, strict=True))
        if dict(self._config).get("jax_enable_x64") or self._over_processes:
            # A host array left to the call would be narrowed there, outside of this context, or be
            # compared with those of the other processes.
            with _jax.using_config(self._config):
                return {key: lay([a], [self._whole(key[0])])[0] for key, a in fed.items()}
        return fed

    def _take_cells(self, work: _WorkerPass, order: PassOrder) -> None:
        mine, num_stages = self._mine[order.phase], len(work.phase.stages)
        for first in range(0, len(order.before), len(mine)):
            taken: list[Any] = [None] * num_stages
            fresh: list[Any] = [None] * num_stages
            numbers = (of[first : first + len(mine)] for of in (order.before, order.after))
            for stage, before, after in zip(mine, *numbers, strict=True):
                cell = self.cells.pop(before, None)
                if cell is None:
                    raise InternalError(f"state {before} is not on this worker; please report it")
                taken[stage] = cell
                fresh[stage] = self.cells[after] = Cell()
            work.state.append(tuple(taken))
            work.next_state.append(tuple(fresh))

    def _put(self, mesh: str, specs: Sequence[Any], rows: Sequence[Any]) -> Sequence[jax.Array]:
        live = self._meshes[mesh]
        lying = [jax.sharding.NamedSharding(live, partition_spec(spec)) for spec in specs]
        return jax.block_until_ready(lay(rows, lying))

    def _whole(self, mesh: str) -> jax.sharding.NamedSharding:
        return jax.sharding.NamedSharding(self._meshes[mesh], jax.sharding.PartitionSpec())

    def _new_pipeline(self) -> Pipeline:
        links = dict.fromkeys(
            (step.source, step.target)
            for phase in self._orders.phases
            for step in phase.steps
            if step.source in self._meshes
        )
        return Pipeline(
            tuple(self._meshes),
            tuple(links),
            max_in_flight=None,  # the controller lets in as many as it wants
            clock=time.perf_counter,
            recording=lambda: self._recording,
            send=self._send,
            try_send=lambda work, transfer: self._send(work, transfer, wait=False),
            in_order=self._over_processes,
        )

    def _send(self, work: Pass, transfer: Transfer, *, wait: bool = True) -> bool:
        """Whether it was sent; without `wait` it is not if that would have to be waited for."""
        if transfer.target in self._meshes:
            if wait:
                send(work, transfer)
            return wait
        assert isinstance(work, _WorkerPass)
        track = track_of_link(transfer.source, transfer.target)
        number = self._places[work.phase, transfer]
        tag = fabric.Tag(pass_number=work.number, transfer=number, attempt=work.epoch)
        return self.ports.send(track, tag, outgoing(work, transfer), wait=wait)
