"""What the phases of one compilation share: meshes, handles, compiled stages, workers.

Threads exist only from the first `submit` on, and end with `close`, with a failure, or when nobody
holds the deployment any more.
"""

import contextlib
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import wait
from typing import Any

import jax

from gimlax import _jax
from gimlax.devices import check_one_client
from gimlax.errors import SpecError
from gimlax.graph import Role
from gimlax.program import Program
from gimlax.runtime.arrangement import Arrangement
from gimlax.runtime.compilation import Progress, compile_stages
from gimlax.runtime.handles import Carried, Placed, init, place
from gimlax.runtime.inventory import Tree, take_inventory
from gimlax.runtime.jobs import PassFuture
from gimlax.runtime.passes import CompiledPhase, Pass
from gimlax.runtime.pipeline import Pipeline
from gimlax.runtime.recording import Recording
from gimlax.runtime.schedule import Schedule
from gimlax.runtime.stores import LocalStore


class Deployment:
    """Programs compiled for live meshes, and all that their executables share."""

    def __init__(
        self,
        programs: Sequence[Program],
        meshes: Mapping[str, jax.sharding.Mesh],
        *,
        donates: Mapping[str, bool],
        arrangement: Arrangement | None = None,
        max_in_flight: int | None = None,
        progress: Callable[[Progress], None] | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Compiles all stages.

        Args:
            programs: one per phase, with the same placement.
            meshes: a live mesh of one client for each mesh name of the placement.
            donates: whether each mesh may donate.
            arrangement: how arrays lie on these meshes; whole by default.
            max_in_flight: passes that `submit` takes before it waits; by default twice the stages
                and two more.
            progress: told after each distinct stage.
            clock: stamps spans, in seconds.

        Raises:
            SpecError: a mesh mixes clients, or `max_in_flight` is not positive.
            BackendError: a stage cannot be compiled.
        """
        if max_in_flight is not None and max_in_flight < 1:
            raise SpecError(f"max_in_flight is {max_in_flight}; at least 1 pass must be let in")
        for name, mesh in meshes.items():
            check_one_client(mesh, name)
        arrangement = arrangement or Arrangement(meshes=meshes)
        self.programs = tuple(programs)
        self.store = LocalStore()
        self.inventory = take_inventory(programs, arrangement)
        self._config = programs[0].partition.traced.config
        stages, self.num_compiled = compile_stages(programs, self.inventory, donates, progress)
        self.phases = tuple(
            CompiledPhase.build(program, of_phase, arrangement)
            for program, of_phase in zip(programs, stages, strict=True)
        )
        self.recording: Recording | None = None
        self.closed = False
        self._lock = threading.Lock()
        names = tuple(dict.fromkeys(self.inventory.placement))
        limit = max_in_flight or 2 * len(self.inventory.placement) + 2
        links = tuple(dict.fromkeys(link for program in programs for link, _ in program.links))
        self._clock = clock
        # The workers must not keep the deployment alive, or nobody could ever let go of it.
        me = weakref.ref(self)
        self._new_pipeline = lambda: Pipeline(
            names,
            links,
            max_in_flight=limit,
            clock=clock,
            recording=lambda: None if (found := me()) is None else found.recording,
        )
        self._pipelines: list[Pipeline] = []
        self._finalizer = weakref.finalize(self, _stop_all, self._pipelines)

    def check_open(self, name: str) -> None:
        """Raises `SpecError` after `close`."""
        if self.closed:
            raise SpecError(f"executable {name!r} is closed; compile the plan again")

    def submit(
        self, name: str, work: Pass, schedule: Schedule, assemble: Callable[[Pass], Any]
    ) -> PassFuture:
        """Starts a pass on the workers; a pipeline that a failure has stopped is replaced."""
        while True:
            with self._lock:
                self.check_open(name)
                if not self._pipelines or self._pipelines[-1].stopped:
                    ending = [pipeline for pipeline in self._pipelines if pipeline.alive]
                    self._pipelines[:] = [*ending, self._new_pipeline()]
                pipeline = self._pipelines[-1]
            future = pipeline.submit(work, schedule, assemble)
            if future is not None:
                return future

    def place(self, trees: Sequence[Any]) -> Any:
        """One resident tree per resident argument; a tuple of handles if there are several."""
        return self._each(trees, self.inventory.resident, "resident", "place")

    def init(self, trees: Sequence[Any]) -> Any:
        """One state per carried argument; a tuple of handles if there are several."""
        return self._each(trees, self.inventory.carried, "carried", "init")

    def make_handle(self, tree: Tree, value: Any) -> Placed | Carried:
        """The handle of one argument given as an ordinary tree."""
        make = place if tree.role is Role.RESIDENT else init
        with _jax.using_config(self._config):
            return make(self.inventory, self.store, tree, value)

    def handle_maker(self, name: str) -> Callable[[Tree, Any], Placed | Carried]:
        """`make_handle` that warns once what placing parameters at each call costs."""
        warned: set[Role] = set()

        def make(tree: Tree, value: Any) -> Placed | Carried:
            handle = self.make_handle(tree, value)
            if tree.role is Role.RESIDENT and not warned:
                warned.add(tree.role)
                warnings.warn(
                    f"{name!r}: {tree.name} was passed as an ordinary tree, so its {handle.nbytes}"
                    " bytes are placed anew at each call; pass what place() returns",
                    stacklevel=6,
                )
            return handle

        return make

    @contextlib.contextmanager
    def record(self) -> Iterator[Recording]:
        """Records spans until the block ends; the passes submitted in it are waited for."""
        with self._lock:
            if self.recording is not None:
                raise SpecError("a recording is under way already; end it before the next begins")
            recording = self.recording = Recording(self._clock())
        try:
            yield recording
            for pipeline in tuple(self._pipelines):
                wait(pipeline.futures())
        finally:
            self.recording = None

    def close(self) -> None:
        """Waits for submitted passes and ends all threads; a second time it does nothing."""
        with self._lock:
            pipelines = tuple(self._pipelines)
            for pipeline in pipelines:
                pipeline.check_not_inside()
            self.closed = True
        for pipeline in pipelines:
            pipeline.close()

    def _each(self, trees: Sequence[Any], expected: Sequence[Tree], role: str, verb: str) -> Any:
        if len(trees) != len(expected):
            names = ", ".join(tree.name for tree in expected) or "none"
            raise SpecError(
                f"{verb}() was given {len(trees)} trees, but there are {len(expected)} {role}"
                f" arguments ({names}); give one tree for each, in this order"
            )
        handles = tuple(map(self.make_handle, expected, trees))
        return handles[0] if len(handles) == 1 else handles


def _stop_all(pipelines: Sequence[Pipeline]) -> None:
    for pipeline in tuple(pipelines):
        pipeline.stop()
