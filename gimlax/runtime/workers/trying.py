"""Single stages on workers, as a probe asks for them: exported, compiled there for the asking."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gimlax import fabric
from gimlax.program import Program, Transfer
from gimlax.runtime.exporting import ExportedStage, export_stage, portable
from gimlax.runtime.forms import form_of
from gimlax.runtime.inventory import Inventory, take_inventory
from gimlax.runtime.probing.seam import StageInputs, StageResults
from gimlax.runtime.workers.peers import Peer

__all__ = ["RemoteStages"]


class RemoteStages:
    """Runs the stages of a program on the workers that have their meshes."""

    def __init__(
        self,
        program: Program,
        inventory: Inventory,
        peers: Mapping[str, Peer],
        platforms: Mapping[str, str],
        rows: Sequence[int] = (),
        narrowings: Mapping[tuple[str, str], str] | None = None,
    ) -> None:
        """Of a program that need not be compiled.

        Args:
            program: whose stages are run.
            rows: the number of each stage among those of all phases, where there are others.
            inventory: how arguments lie on the meshes.
            peers: the worker of each mesh.
            platforms: of each mesh, what a stage is lowered for.
            narrowings: what float32 goes as between two meshes, where that is not as it is.
        """
        self._program = program
        self._inventory = inventory
        self._peers = peers
        self._platforms = platforms
        self._rows = tuple(rows) or range(len(program.placement))
        self._narrowings = dict(narrowings or {})
        self._exported: dict[int, ExportedStage] = {}

    @property
    def program(self) -> Program:
        """The program whose stages it runs."""
        return self._program

    def is_reference(self, mesh: str) -> bool:
        """Never: the reference is a client of this process."""
        return False

    def run(self, stage: int, inputs: StageInputs) -> StageResults:
        """See `StageRunner`."""
        of = self._program.partition.stages[stage]
        row = self._rows[stage]
        form = form_of(self._program, of, row, self._inventory)
        weights = dict(zip(of.resident, inputs.resident, strict=True))
        state = dict(zip(of.carried, inputs.carried, strict=True))
        owned = [mine[stage] for mine in self._inventory.states if mine[stage]]
        flat = [
            *(weights[part] for rows in self._inventory.rows for _, part in rows[row]),
            *(state.get(part) for parts in owned for part in parts),
            *inputs.constants,
            *inputs.streamed,
            *inputs.received,
        ]
        arrays = [
            np.zeros(aval.shape, aval.dtype) if array is None else array
            for array, aval in zip(flat, jax.tree.leaves(form.inputs), strict=True)
        ]
        exported = self._export(stage)
        mesh = self._program.placement[stage]
        _, results = self._peers[mesh].ask(
            "try",
            {
                "mesh": mesh,
                "description": exported.description,
                "platform": exported.platform,
                "inputs": exported.inputs,
                "results": exported.results,
                "config": exported.config,
            },
            [np.frombuffer(exported.artifact, np.uint8), *arrays],
        )
        parts = [part for parts in owned for part in parts]
        after = dict(zip(parts, results[: len(parts)], strict=True))
        return StageResults(
            carried=tuple(after[part] for part in of.carried),
            produced=tuple(results[len(parts) :]),
        )

    def send(self, transfer: Transfer, values: Sequence[Any]) -> list[Any]:
        """See `StageRunner`: these values travel to the worker and back, narrowed if they are."""
        source, mesh = transfer.source, transfer.target
        to = self._narrowings.get((source, mesh), "")
        sizes = [self._inventory.arrangement.meshes[name].size for name in (source, mesh)]
        sent = [
            fabric.narrow(jnp.asarray(value), to)
            if fabric.narrows(value.shape, str(value.dtype), to, *sizes)
            else (value,)
            for value in values
        ]
        arrays = [array for of in sent for array in of]
        config = portable(self._program.partition.traced.config)
        came = iter(self._peers[mesh].ask("echo", {"mesh": mesh, "config": config}, arrays)[1])
        back = [[next(came) for _ in of] for of in sent]
        return [
            of[0] if of[0].dtype == value.dtype else np.asarray(fabric.widen(of, to))
            for of, value in zip(back, values, strict=True)
        ]

    def recut(self, program: Program) -> "RemoteStages":
        """See `StageRunner`."""
        inventory = take_inventory([program], self._inventory.arrangement)
        return RemoteStages(
            program, inventory, self._peers, self._platforms, narrowings=self._narrowings
        )

    def _export(self, stage: int) -> ExportedStage:
        if stage not in self._exported:
            platform = self._platforms[self._program.placement[stage]]
            self._exported[stage] = export_stage(
                self._program, stage, self._rows[stage], self._inventory, platform, donates=False
            )
        return self._exported[stage]
