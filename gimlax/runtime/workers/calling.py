"""The calling side of a compilation over workers: what callers see, wherever stages run.

Arguments, results and handles are those of the uncut model on one imagined mesh. So nothing that a
caller holds names a stage or a worker, and it stays good when stages move.
"""

from dataclasses import dataclass
from typing import Any

from jax.sharding import AbstractMesh

from gimlax.errors import InternalError
from gimlax.graph import Chain
from gimlax.partition import cut
from gimlax.program import Program, lay_out
from gimlax.runtime.arrangement import Arrangement
from gimlax.runtime.compilation import CompiledStage
from gimlax.runtime.inventory import Inventory, take_inventory
from gimlax.runtime.passes import CompiledPhase

__all__ = ["WORKERS", "CallingSide", "calling_side", "runs_elsewhere"]

WORKERS = "the workers"  # name of the imagined mesh


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class CallingSide:
    """Programs, phases and inventory of the uncut model."""

    programs: tuple[Program, ...]
    phases: tuple[CompiledPhase, ...]
    inventory: Inventory


def calling_side(chain: Chain) -> CallingSide:
    """What callers of a chain see."""
    programs = tuple(
        lay_out(cut(phase, ()), (WORKERS,), phase=phase.name, segments=(chain.names,))
        for phase in chain.phases
    )
    arrangement = Arrangement(meshes={WORKERS: AbstractMesh((1, 1), ("data", "model"))})
    inventory = take_inventory(programs, arrangement)
    phases = tuple(
        CompiledPhase.build(program, [_stage(program, row, inventory)], arrangement)
        for row, program in enumerate(programs)
    )
    return CallingSide(programs=programs, phases=phases, inventory=inventory)


def _stage(program: Program, row: int, inventory: Inventory) -> CompiledStage:
    (stage,) = program.partition.stages
    return CompiledStage(
        index=0,
        mesh=WORKERS,
        description=program.describe_stage(0),
        call=runs_elsewhere,
        compiled=None,
        row=row,
        resident=tuple(t.index for t in inventory.resident if inventory.rows[t.index][row]),
        carried=tuple(i for i, of in enumerate(inventory.states) if of[0]),
        constants=(),
        streamed=tuple((WORKERS, leaf) for leaf in stage.streamed),
        received=(),
        produced=tuple((WORKERS, value) for value in stage.produced),
    )


def runs_elsewhere(*_: Any) -> Any:
    """Stands for a compiled stage of a worker."""
    raise InternalError("a stage of a worker was called here; please report it")
