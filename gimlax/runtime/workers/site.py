"""The part of a deployment that one worker has: its stages, its share of the arrays, its passes.

It runs the pipeline of the embedded case. What differs is who fills it: cells and parameters are
known by numbers that the controller gave them, values come in over links from other workers, and
what ends a pass here is told, not returned.
"""

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import jax
import numpy as np

from gimlax import _jax
from gimlax.errors import BackendError, GimlaxError, InternalError
from gimlax.partition import partition_spec
from gimlax.program import Transfer, track_of_link
from gimlax.runtime.compilation import CompiledStage, Order, Progress, compile_orders
from gimlax.runtime.exporting import ExportedStage, load_stage
from gimlax.runtime.jobs import Job
from gimlax.runtime.passes import CompiledPhase, Key, Pass, send
from gimlax.runtime.pipeline import Pipeline
from gimlax.runtime.recording import Recording
from gimlax.runtime.schedule import Schedule
from gimlax.runtime.stores import Cell
from gimlax.runtime.workers.orders import Orders, PhaseOrder

__all__ = ["Outlet", "Site"]

Outlet = Callable[[Mapping[str, Any], Sequence[jax.Array]], None]
Config = tuple[tuple[str, Any], ...]


class _Rows:
    """Parameters as stages read them; stands where a `Placed` handle does."""

    __slots__ = ("_rows",)

    def __init__(self, rows: Mapping[int, tuple[jax.Array, ...]]) -> None:
        self._rows = rows


class _WorkerPass(Pass):
    """A pass of which this worker knows its own cells only."""

    __slots__ = ("number",)

    def lose_state(self, reason: str) -> None:
        """The controller knows what is lost: it holds the handles."""

    def give_back(self) -> None:
        """See `lose_state`."""


class Site:
    """Compiled stages of one worker and everything that passes over them need."""

    def __init__(
        self,
        orders: Orders,
        arrays: Sequence[Any],
        meshes: Mapping[str, jax.sharding.Mesh],
        config: Config,
        tell: Callable[..., None],
        progress: Callable[[Progress], None],
    ) -> None:
        """Compiles all stages.

        Args:
            orders: what to run.
            arrays: artefacts and constants that the orders number.
            meshes: live meshes of this process by name.
            config: JAX's configuration that everything was traced under.
            tell: sends a message (kind, fields, arrays) to the controller.
            progress: told after each distinct stage.

        Raises:
            BackendError: a stage cannot be compiled.
        """
        self._meshes = meshes
        self._config = config
        self._tell = tell
        self._orders = orders
        self._outlets: dict[str, Outlet] = {}
        self._lock = threading.Lock()
        self.arrays: dict[int, jax.Array] = {}
        self.cells: dict[int, Cell] = {}
        self._placed: dict[int, _Rows] = {}
        self._recording: Recording | None = None
        self._epoch = 0
        self._live: dict[int, Job] = {}
        self._early: dict[int, list[tuple[int, list[jax.Array]]]] = defaultdict(list)
        self._pipeline: Pipeline | None = None
        self.num_compiled = 0
        self._phases = self._compile(arrays, progress)
        elsewhere = {
            end
            for phase in orders.phases
            for step in phase.steps
            for end in (step.source, step.target)
            if end and end not in meshes
        }
        self._schedules = tuple(Schedule.build(phase, elsewhere) for phase in self._phases)

    def analyses(self) -> list[list[Any]]:
        """Of each stage (phase, index): XLA's cost and memory analysis, None where it has none."""
        return [
            [phase.name, stage.index, *_analyse(stage.compiled)]
            for phase in self._phases
            for stage in phase.stages
            if stage is not None
        ]

    def connect(self, track: str, outlet: Outlet) -> None:
        """Where values of this link go."""
        self._outlets[track] = outlet

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

    def place(self, number: int, rows: Mapping[int, Sequence[int]]) -> None:
        """Which parameters each stage (by its row) reads from the argument of this number."""
        known = self.arrays
        self._placed[number] = _Rows({row: tuple(known[n] for n in of) for row, of in rows.items()})

    def _drop(self, arrays: Sequence[int], cells: Sequence[int], placed: Sequence[int]) -> None:
        """Lets go of what no handle stands for any more."""
        for kept, numbers in (
            (self.arrays, arrays),
            (self.cells, cells),
            (self._placed, placed),
        ):
            for number in numbers:
                kept.pop(number, None)

    def census(self) -> dict[str, int]:
        """How much is kept."""
        return {"arrays": len(self.arrays), "cells": len(self.cells), "placed": len(self._placed)}

    def record(self) -> None:
        """Begins to collect spans."""
        self._recording = Recording(0.0)

    def end_record(self) -> list[list[Any]]:
        """What was collected since, in seconds of this host's monotonic clock."""
        recording, self._recording = self._recording, None
        spans = recording.timeline.spans if recording is not None else ()
        return [[s.mesh, s.task, s.start_s, s.end_s] for s in spans]

    def start(self, fields: Mapping[str, Any], arrays: Sequence[Any]) -> None:
        """Starts a pass; how it ends is told.

        Args:
            fields: number and epoch of the pass, phase, placed arguments by tree, cells as [tree,
                stage, number in, number out], streamed leaves as [mesh, leaf], and what to drop.
            arrays: of the streamed leaves.
        """
        if fields["drop"] is not None:
            self._drop(**fields["drop"])
        number, index = fields["pass"], fields["phase"]
        phase = self._phases[index]
        work = _WorkerPass(phase, self._rows(fields["placed"]), (), self._feed(fields, arrays))
        for taken, fresh in self._take_cells(fields["cells"], len(phase.stages)):
            work.state.append(taken)
            work.next_state.append(fresh)
        outputs = self._orders.phases[index].outputs
        with self._lock:
            if fields["epoch"] != self._epoch:
                return
            if self._pipeline is None or self._pipeline.stopped:
                self._pipeline = self._new_pipeline()
            pipeline = self._pipeline
        work.number = number
        future = pipeline.submit(
            work, self._schedules[index], lambda done: [done.values[key] for key in outputs]
        )
        if future is None:
            return  # a pass before it failed, which was told
        job = future.job
        if job is not None:
            with self._lock:
                self._live[number] = job
                early = self._early.pop(number, ())
            for task, values in early:
                pipeline.arrive(job, task, values)
        future.add_done_callback(lambda ended: self._ended(number, fields["epoch"], ended))

    def arrive(self, fields: Mapping[str, Any], arrays: Sequence[Any]) -> None:
        """Takes values that another worker sent: of a pass that may not have been started yet."""
        number = fields["pass"]
        phase = self._phases[fields["phase"]]
        schedule = self._schedules[fields["phase"]]
        index = schedule.task_at(fields["track"], fields["place"])
        task = schedule.tasks[index]
        assert isinstance(task, Transfer)
        with _jax.using_config(self._config):
            values = jax.device_put(
                list(arrays), [phase.lying[task.target, value] for value in task.values]
            )
        with self._lock:
            if fields["epoch"] != self._epoch:
                return
            job, pipeline = self._live.get(number), self._pipeline
            if job is None:
                self._early[number].append((index, values))
                return
        assert pipeline is not None
        pipeline.arrive(job, index, values)

    def reset(self, epoch: int) -> None:
        """Ends all passes that are under way: the controller has given them up."""
        with self._lock:
            self._epoch = epoch
            pipeline, self._pipeline = self._pipeline, None
            self._live.clear()
            self._early.clear()
        if pipeline is not None:
            pipeline.stop()

    def close(self) -> None:
        """Ends the threads."""
        self.reset(-1)

    def _ended(self, number: int, epoch: int, future: Any) -> None:
        with self._lock:
            self._live.pop(number, None)
        error = future.exception()
        try:
            if error is None:
                self._tell("done", {"pass": number, "epoch": epoch}, future.result())
                return
        except Exception as problem:  # an output that cannot be read or sent
            error = problem
        kind = type(error).__name__ if isinstance(error, GimlaxError) else "BackendError"
        self._tell("failed", {"pass": number, "epoch": epoch, "error": kind, "what": str(error)})

    def _rows(self, numbers: Sequence[int]) -> Any:
        return [self._placed[number] for number in numbers]

    def _feed(self, fields: Mapping[str, Any], arrays: Sequence[Any]) -> dict[Key, Any]:
        fed = {
            (mesh, leaf): array
            for (mesh, leaf), array in zip(fields["streamed"], arrays, strict=True)
        }
        if dict(self._config).get("jax_enable_x64"):
            # A host array left to the call would be narrowed there, outside of this context.
            with _jax.using_config(self._config):
                return {key: jax.device_put(a, self._whole(key[0])) for key, a in fed.items()}
        return fed

    def _take_cells(self, given: Sequence[Sequence[int]], num_stages: int) -> list[Any]:
        trees: dict[int, tuple[list[Any], list[Any]]] = {}
        for tree, stage, before, after in given:
            taken, fresh = trees.setdefault(tree, ([None] * num_stages, [None] * num_stages))
            cell = self.cells.pop(before, None)
            if cell is None:
                raise InternalError(f"state {before} is not on this worker; please report it")
            taken[stage] = cell
            fresh[stage] = self.cells[after] = Cell()
        return [trees[tree] for tree in sorted(trees)]

    def _put(self, mesh: str, specs: Sequence[Any], rows: Sequence[Any]) -> Sequence[jax.Array]:
        live = self._meshes[mesh]
        lying = [jax.sharding.NamedSharding(live, partition_spec(spec)) for spec in specs]
        return jax.block_until_ready(jax.device_put(list(rows), lying))

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
            max_in_flight=self._orders.max_in_flight,
            clock=time.perf_counter,
            recording=lambda: self._recording,
            send=self._send,
        )

    def _send(self, work: Pass, transfer: Transfer) -> None:
        if transfer.target in self._meshes:
            send(work, transfer)
            return
        assert isinstance(work, _WorkerPass)
        track = track_of_link(transfer.source, transfer.target)
        phase = self._phases.index(work.phase)
        place = self._schedules[phase].place_of(transfer)
        arrays = [work.values[transfer.source, value] for value in transfer.values]
        fields = {"pass": work.number, "epoch": self._epoch, "phase": phase}
        try:
            self._outlets[track]({**fields, "track": track, "place": place}, arrays)
        except OSError as error:
            raise BackendError(f"transfer {track}: the other worker is gone ({error})") from error

    def _compile(
        self, arrays: Sequence[Any], progress: Callable[[Progress], None]
    ) -> tuple[CompiledPhase, ...]:
        stages = [(phase, stage) for phase in self._orders.phases for stage in phase.stages]
        orders = []
        for _, stage in stages:
            mesh = self._meshes[stage.mesh]
            lowered = load_stage(
                ExportedStage(
                    description=stage.description,
                    platform=stage.platform,
                    axes=tuple(zip(mesh.axis_names, mesh.axis_sizes, strict=True)),
                    artifact=bytes(arrays[stage.artifact]),
                    inputs=stage.inputs,
                    results=stage.results,
                    donates=stage.donates,
                    config=self._config,
                ),
                mesh,
            )
            avals = jax.tree.leaves(lowered.args_info)
            key = (
                lowered.as_text(),
                tuple((a.shape, str(a.dtype)) for a in avals),
                tuple(str(aval) for aval in jax.tree.leaves(lowered.out_info)),
                (lowered.in_tree, lowered.out_tree),
                (stage.mesh, stage.inputs, stage.results, stage.donates),
            )
            orders.append(
                Order(lowered=lowered, key=key, config=self._config, description=stage.description)
            )
        compiled, self.num_compiled = compile_orders(orders, progress)
        constants: dict[tuple[str, int], jax.Array] = {}
        with _jax.using_config(self._config):
            for _, stage in stages:
                for n in stage.constants:
                    if (stage.mesh, n) not in constants:
                        constants[stage.mesh, n] = jax.device_put(
                            arrays[n], self._whole(stage.mesh)
                        )
        made: dict[tuple[str, int], CompiledStage] = {}
        for (phase, stage), call in zip(stages, compiled, strict=True):
            made[phase.name, stage.index] = CompiledStage(
                index=stage.index,
                mesh=stage.mesh,
                description=stage.description,
                call=call,
                compiled=call,
                row=stage.row,
                resident=stage.resident,
                carried=stage.carried,
                constants=tuple(constants[stage.mesh, n] for n in stage.constants),
                streamed=tuple((stage.mesh, leaf) for leaf in stage.streamed),
                received=tuple((stage.mesh, value) for value in stage.received),
                produced=tuple((stage.mesh, value) for value in stage.produced),
            )
        return tuple(self._phase(phase, made) for phase in self._orders.phases)

    def _phase(
        self, phase: PhaseOrder, made: Mapping[tuple[str, int], CompiledStage]
    ) -> CompiledPhase:
        return CompiledPhase(
            name=phase.name,
            # None stands for a stage of another worker, which no step here names.
            stages=cast(Any, tuple(made.get((phase.name, i)) for i in range(phase.num_stages))),
            steps=tuple(step.step() for step in phase.steps),
            outputs=phase.outputs,
            lying={
                (mesh, value): jax.sharding.NamedSharding(self._meshes[mesh], partition_spec(spec))
                for mesh, value, spec in phase.lying
            },
        )


def _analyse(compiled: Any) -> tuple[Any, Any]:
    found: list[Any] = []
    for question in (compiled.cost_analysis, compiled.memory_analysis):
        try:
            answer = question()
        except (NotImplementedError, RuntimeError):
            answer = None
        if answer is not None and not isinstance(answer, dict):
            keys = [key for key in dir(answer) if key.endswith("_in_bytes")]
            answer = {key: getattr(answer, key) for key in keys}
        found.append(answer and {k: float(v) for k, v in answer.items() if np.isfinite(v)})
    return found[0], found[1]
