"""A pass that was run already, in the place of stages that are run for a probe.

What the stages of the pass were given and made lies in its tap. Nothing is run again, so that what
is judged is what the pass's results came from, and devices only have to keep copies. Parts of a
stage are compiled and run to find the segment that diverges.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from gimlax.graph import Part
from gimlax.program import Program, Transfer
from gimlax.runtime.handles import to_host
from gimlax.runtime.inventory import Inventory
from gimlax.runtime.passes import CompiledPhase
from gimlax.runtime.probing.seam import StageInputs, StageResults, StageRunner
from gimlax.runtime.tapping import Tap

__all__ = ["TappedStages"]


class TappedStages:
    """The stages of one pass: a `StageRunner` for what it was given, and an `Observed`."""

    def __init__(
        self, runner: StageRunner, phase: CompiledPhase, inventory: Inventory, tap: Tap
    ) -> None:
        """Of a pass that has ended.

        Args:
            runner: of the program that the pass ran, for parts of stages.
            phase: compiled for it.
            inventory: what its cells hold.
            tap: of the pass.
        """
        self._runner = runner
        self._phase = phase
        self._inventory = inventory
        self._tap = tap
        self._values: dict[tuple[str, int], Any] = {}

    @property
    def program(self) -> Program:
        """The program that the pass ran."""
        return self._runner.program

    @property
    def state(self) -> list[list[Sequence[Any]]]:
        """The carried arrays that the pass was given: [tree][stage][part that it owns]."""
        found: list[list[Sequence[Any]]] = [[() for _ in of] for of in self._inventory.states]
        for stage in self._phase.stages:
            for tree, arrays in zip(stage.carried, self._tap.given(stage.index), strict=True):
                found[tree][stage.index] = arrays
        return found

    def is_reference(self, mesh: str) -> bool:
        """See `StageRunner`."""
        return self._runner.is_reference(mesh)

    def run(self, stage: int, inputs: StageInputs) -> StageResults:
        """What the stage made in the pass; `inputs` have to be what it was given there."""
        of, compiled = self.program.partition.stages[stage], self._phase.stages[stage]
        updated: dict[Part, Any] = {}
        for tree, arrays in zip(compiled.carried, self._tap.updated(stage), strict=True):
            updated.update(zip(self._inventory.states[tree][stage], arrays, strict=True))
        return StageResults(
            carried=tuple(to_host(updated[part]) for part in of.carried),
            produced=tuple(self._value(compiled.mesh, value) for value in of.produced),
        )

    def received(self, stage: int) -> Mapping[int, Any]:
        """See `Observed`."""
        mesh = self.program.placement[stage]
        of = self.program.partition.stages[stage]
        return {value: self._value(mesh, value) for value in of.received}

    def sent(self, transfer: Transfer) -> list[Any]:
        """See `Observed`."""
        return [self._value(transfer.source, value) for value in transfer.values]

    def send(self, transfer: Transfer, values: Sequence[Any]) -> list[Any]:
        """What came of a transfer in the pass; `values` have to be what was sent there."""
        return [self._value(transfer.target, value) for value in transfer.values]

    def recut(self, program: Program) -> StageRunner:
        """See `StageRunner`."""
        return self._runner.recut(program)

    def _value(self, mesh: str, value: int) -> Any:
        """A value as it was on a mesh; asked for by who made it, who read it, and its link."""
        key = (mesh, value)
        if key not in self._values:
            self._values[key] = to_host(self._tap.value(mesh, value))
        return self._values[key]
