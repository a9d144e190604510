"""What the phases of one compilation share: handles, compiled stages, and who executes passes."""

import contextlib
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax

from gimlax import _jax
from gimlax.devices import check_one_client
from gimlax.errors import SpecError
from gimlax.graph import Chain, Role
from gimlax.planning import Plan
from gimlax.program import Program
from gimlax.runtime.arrangement import Arrangement
from gimlax.runtime.compilation import CompiledStage, Progress, compile_stages
from gimlax.runtime.executors import Executor, LocalExecutor
from gimlax.runtime.handles import Carried, Placed, init, place
from gimlax.runtime.inventory import Inventory, Tree, take_inventory
from gimlax.runtime.jobs import PassFuture
from gimlax.runtime.passes import CompiledPhase, Pass
from gimlax.runtime.probing.live import LiveStages
from gimlax.runtime.probing.seam import StageRunner
from gimlax.runtime.recording import Recording
from gimlax.runtime.schedule import Schedule
from gimlax.runtime.stores import LocalStore, Store
from gimlax.runtime.tapping import LocalTap, Tap

__all__ = ["Deployment", "Standing", "deploy_here", "passes_let_in"]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Standing:
    """What runs just now.

    Attributes:
        programs: one per phase, of the plan in force.
        phases: of each program its compiled stages.
        inventory: how arguments lie on its meshes.
        num_compiled: distinct stages of all phases.
        plan: the plan in force, None where it is the one that was compiled first.
        chain: whose segments the programs cut; without it a probe cannot look into a stage.
        runner: runs single stages of a program for a probe, which may use placed parameters.
    """

    programs: tuple[Program, ...]
    phases: tuple[CompiledPhase, ...]
    inventory: Inventory
    num_compiled: int
    runner: Callable[[Program, Sequence[CompiledStage], Sequence[Placed]], StageRunner]
    plan: Plan | None = None
    chain: Chain | None = None


class Deployment:
    """Programs that can be run, and all that their executables share."""

    def __init__(
        self,
        *,
        programs: Sequence[Program],
        phases: Sequence[CompiledPhase],
        inventory: Inventory,
        store: Store,
        executor: Executor,
        standing: Callable[[], Standing],
        new_tap: Callable[[int], Tap] = LocalTap,
        standing_of: Callable[[Any], Standing] | None = None,
    ) -> None:
        """Puts together what was compiled.

        Args:
            programs: one per phase, with the same placement, as callers see them.
            phases: of each program, what callers give and get.
            inventory: how arguments lie on the meshes.
            store: keeps them there.
            executor: runs submitted passes.
            standing: what runs them at the moment it is asked.
            new_tap: for a pass of this number.
            standing_of: what ran the pass with this tap; by default what runs just now.
        """
        self.programs = tuple(programs)
        self.phases = tuple(phases)
        self.inventory = inventory
        self.executor = executor
        self.standing = standing
        self.new_tap = new_tap
        # Not by way of this object, which would keep itself until the collector runs.
        self.standing_of = standing_of or (lambda _: standing())
        self.closed = False
        self.closing: list[Callable[[], None]] = []
        self._store = store
        self._config = self.programs[0].partition.traced.config

    @property
    def direct(self) -> bool:
        """Whether a call may dispatch in its own thread."""
        return self.executor.direct

    def check_open(self, name: str) -> None:
        """Raises `SpecError` after `close`."""
        if self.closed:
            raise SpecError(f"executable {name!r} is closed; compile the plan again")

    def submit(
        self, name: str, work: Pass, schedule: Schedule, assemble: Callable[[Pass], Any]
    ) -> PassFuture:
        """Starts a pass."""
        return self.executor.submit(
            work, schedule, assemble, check_open=lambda: self.check_open(name)
        )

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
            return make(self.inventory, self._store, tree, value)

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

    def record(self) -> contextlib.AbstractContextManager[Recording]:
        """Records spans until the block ends; the passes submitted in it are waited for."""
        self.check_open(self.programs[0].phase)
        return self.executor.record()

    def close(self) -> None:
        """Waits for submitted passes and ends all threads; a second time it does nothing."""
        self.executor.check_may_close()
        self.closed = True
        self.executor.close(self._end_checks)

    def _end_checks(self) -> None:
        with contextlib.ExitStack() as all_of_them:
            for end in self.closing:
                all_of_them.callback(end)

    def _each(self, trees: Sequence[Any], expected: Sequence[Tree], role: str, verb: str) -> Any:
        self.check_open(self.programs[0].phase)
        if len(trees) != len(expected):
            names = ", ".join(tree.name for tree in expected) or "none"
            raise SpecError(
                f"{verb}() was given {len(trees)} trees, but there are {len(expected)} {role}"
                f" arguments ({names}); give one tree for each, in this order"
            )
        handles = tuple(map(self.make_handle, expected, trees))
        return handles[0] if len(handles) == 1 else handles


def deploy_here(
    programs: Sequence[Program],
    meshes: Mapping[str, jax.sharding.Mesh],
    *,
    donates: Mapping[str, bool],
    arrangement: Arrangement | None = None,
    chain: Chain | None = None,
    max_in_flight: int | None = None,
    progress: Callable[[Progress], None] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Deployment:
    """Compiles programs for live meshes of this process.

    Args:
        programs: one per phase, with the same placement.
        meshes: a live mesh of one client for each mesh name of the placement.
        donates: whether each mesh may donate.
        arrangement: how arrays lie on these meshes; whole by default.
        chain: whose segments the programs cut, for probes.
        max_in_flight: passes that `submit` takes before it waits; see `passes_let_in`.
        progress: told after each distinct stage.
        clock: stamps spans, in seconds.

    Raises:
        SpecError: a mesh mixes clients, or `max_in_flight` is not positive.
        BackendError: a stage cannot be compiled.
    """
    limit = passes_let_in(max_in_flight, programs)
    for name, mesh in meshes.items():
        check_one_client(mesh, name)
    arrangement = arrangement or Arrangement(meshes=meshes)
    inventory = take_inventory(programs, arrangement)
    stages, num_compiled = compile_stages(programs, inventory, donates, progress)
    phases = tuple(
        CompiledPhase.build(program, of_phase, arrangement)
        for program, of_phase in zip(programs, stages, strict=True)
    )
    standing = Standing(
        programs=tuple(programs),
        phases=phases,
        inventory=inventory,
        num_compiled=num_compiled,
        chain=chain,
        runner=lambda program, stages, placed: LiveStages(program, inventory, stages, placed),
    )
    return Deployment(
        programs=programs,
        phases=phases,
        inventory=inventory,
        store=LocalStore(),
        executor=LocalExecutor(
            tuple(dict.fromkeys(inventory.placement)),
            tuple(dict.fromkeys(link for program in programs for link, _ in program.links)),
            max_in_flight=limit,
            clock=clock,
        ),
        standing=lambda: standing,
    )


def passes_let_in(max_in_flight: int | None, programs: Sequence[Program]) -> int:
    """Passes that `submit` lets in before it waits; by default twice the stages and two more.

    Raises:
        SpecError: `max_in_flight` is not positive.
    """
    if max_in_flight is not None and max_in_flight < 1:
        raise SpecError(f"max_in_flight is {max_in_flight}; at least 1 pass must be let in")
    return max_in_flight or 2 * len(programs[0].placement) + 2
