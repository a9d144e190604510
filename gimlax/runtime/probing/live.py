"""Single stages of this process's own meshes, as a probe asks for them."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from gimlax import _jax
from gimlax.errors import BackendError
from gimlax.graph import Part
from gimlax.program import Program, Transfer
from gimlax.runtime.compilation import CompiledStage
from gimlax.runtime.forms import Form, form_of
from gimlax.runtime.handles import Placed, to_host
from gimlax.runtime.inventory import Inventory, take_inventory
from gimlax.runtime.passes import first_line
from gimlax.runtime.probing.reference import reference_device
from gimlax.runtime.probing.seam import StageInputs, StageResults

__all__ = ["LiveStages"]


class LiveStages:
    """Runs the stages of a program on live meshes, those that are not compiled yet when needed."""

    def __init__(
        self,
        program: Program,
        inventory: Inventory,
        stages: Sequence[CompiledStage] = (),
        placed: Sequence[Placed] = (),
    ) -> None:
        """Of a program that need not be compiled.

        Args:
            program: whose stages are run.
            inventory: how arguments lie on the meshes.
            stages: compiled ones, all or none.
            placed: handles of all resident arguments, whose arrays are used in place of those of
                the inputs; none if the inputs are to be put on the mesh.
        """
        self._program = program
        self._inventory = inventory
        self._rows = [stage.row for stage in stages] or list(range(len(program.placement)))
        self._calls: dict[int, Any] = {stage.index: stage.call for stage in stages}
        self._placed = placed

    @property
    def program(self) -> Program:
        """The program whose stages it runs."""
        return self._program

    def is_reference(self, mesh: str) -> bool:
        """Whether a mesh belongs to the very client that computes the reference."""
        live = self._inventory.arrangement.meshes[mesh]
        assert isinstance(live, jax.sharding.Mesh)
        device = live.devices.flat[0]
        return device.client is reference_device().client

    def run(self, stage: int, inputs: StageInputs) -> StageResults:
        """See `StageRunner`."""
        of = self._program.partition.stages[stage]
        row, held = self._rows[stage], self._inventory.states
        form = form_of(self._program, of, row, self._inventory)
        weights = dict(zip(of.resident, inputs.resident, strict=True))
        state = dict(zip(of.carried, inputs.carried, strict=True))
        owned = [mine[stage] for mine in held if mine[stage]]
        try:
            with _jax.using_config(self._program.partition.traced.config):
                call = self._call(stage, form)
                given = (
                    self._weights(row, weights, form),
                    _put([[state.get(part) for part in parts] for parts in owned], form.inputs[1]),
                    _put(inputs.constants, form.inputs[2]),
                    _put((*inputs.streamed, *inputs.received), form.inputs[3]),
                )
                updated, produced, _ = call(*given)
                after = {
                    part: array
                    for parts, arrays in zip(owned, updated, strict=True)
                    for part, array in zip(parts, arrays, strict=True)
                }
                return StageResults(
                    carried=tuple(to_host(after[part]) for part in of.carried),
                    produced=tuple(map(to_host, produced)),
                )
        except BackendError:
            raise
        except Exception as error:
            raise BackendError(
                f"probing {self._program.describe_stage(stage)} failed: {first_line(error)}; place"
                " it elsewhere, or cut it smaller if memory is short"
            ) from error

    def send(self, transfer: Transfer, values: Sequence[Any]) -> list[Any]:
        """See `StageRunner`."""
        lying = self._inventory.arrangement
        arrays = list(values)
        for mesh in (transfer.source, transfer.target):
            shardings = [lying.value(mesh, self._program, v) for v in transfer.values]
            arrays = jax.device_put(arrays, shardings)
        return [to_host(array) for array in arrays]

    def recut(self, program: Program) -> "LiveStages":
        """See `StageRunner`."""
        return LiveStages(program, take_inventory([program], self._inventory.arrangement))

    def _weights(self, row: int, weights: Mapping[Part, Any], form: Form) -> Any:
        rows = self._inventory.rows
        if self._placed:
            return tuple(
                handle._rows[row] for handle, of in zip(self._placed, rows, strict=True) if of[row]
            )
        return _put(
            [[weights[part] for _, part in of[row]] for of in rows if of[row]], form.inputs[0]
        )

    def _call(self, stage: int, form: Form) -> Any:
        if stage not in self._calls:
            lowered = form.jit(donates=False).lower(*form.inputs)
            self._calls[stage] = _jax.compile_lowered(lowered)
        return self._calls[stage]


def _put(tree: Any, avals: Any) -> Any:
    """Host arrays on their mesh, in the structure of `avals`; zeros where there is None."""
    wanted, treedef = jax.tree.flatten(avals)
    given = jax.tree.leaves(tree, is_leaf=lambda leaf: leaf is None)
    arrays = [
        jnp.empty(aval.shape, aval.dtype) if array is None else array
        for array, aval in zip(given, wanted, strict=True)
    ]
    # A stage may donate its state, which must not be the caller's memory.
    placed = jax.device_put(arrays, [aval.sharding for aval in wanted], may_alias=False)
    return jax.tree.unflatten(treedef, placed)
