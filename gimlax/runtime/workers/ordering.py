"""What each worker is told of a plan: its stages, its steps, and what crosses to others."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from gimlax import _jax, fabric
from gimlax.partition import Spec, normal
from gimlax.program import Program, Transfer, track_of_link
from gimlax.runtime.exporting import ExportedStage
from gimlax.runtime.inventory import Inventory
from gimlax.runtime.workers.orders import (
    CrossingOrder,
    Orders,
    PhaseOrder,
    StageOrder,
    ValueOrder,
    phase_order,
)

__all__ = ["write_orders"]


def write_orders(
    mine: Sequence[str],
    owners: Mapping[str, Sequence[int]],
    programs: Sequence[Program],
    exported: Sequence[Sequence[ExportedStage]],
    inventory: Inventory,
    narrowings: Mapping[tuple[str, str], str],
) -> tuple[Orders, list[Any]]:
    """The orders of a worker.

    Args:
        mine: its meshes.
        owners: of each mesh, which process of its worker has each device.
        programs: of all phases.
        exported: the stages of each.
        inventory: how arguments lie on the meshes.
        narrowings: what float32 goes as between two meshes, where that is not as it is.

    Returns:
        The orders, and the arrays that they number: artefacts and constants.
    """
    arrays: list[Any] = []
    places: dict[Any, int] = {}
    phases: list[PhaseOrder] = []
    row = 0
    for program, of_phase in zip(programs, exported, strict=True):
        stages: list[StageOrder] = []
        for stage, travelling in zip(program.partition.stages, of_phase, strict=True):
            if program.placement[stage.index] in mine:
                stages.append(_order(program, stage, row, travelling, inventory, arrays, places))
            row += 1
        lying = _lying(program, mine, inventory)
        crossings = _crossings(program, mine, inventory, narrowings)
        phases.append(phase_order(program, mine, stages, lying, crossings))
    orders = Orders(
        phases=tuple(phases),
        axes=tuple(
            (name, tuple(zip(mesh.axis_names, mesh.axis_sizes, strict=True)))
            for name, mesh in inventory.arrangement.meshes.items()
        ),
        owners=tuple((name, tuple(of)) for name, of in owners.items()),
    )
    return orders, arrays


def _order(
    program: Program,
    stage: Any,
    row: int,
    travelling: ExportedStage,
    inventory: Inventory,
    arrays: list[Any],
    places: dict[Any, int],
) -> StageOrder:
    def place(key: Any, array: Any) -> int:
        if key not in places:
            places[key] = len(arrays)
            arrays.append(array)
        return places[key]

    values = program.partition.traced.jaxpr.consts
    return StageOrder(
        index=stage.index,
        row=row,
        mesh=program.placement[stage.index],
        description=travelling.description,
        artifact=place(travelling.artifact, np.frombuffer(travelling.artifact, np.uint8)),
        inputs=travelling.inputs,
        results=travelling.results,
        platform=travelling.platform,
        donates=travelling.donates,
        resident=tuple(t.index for t in inventory.resident if inventory.rows[t.index][row]),
        carried=tuple(i for i, of in enumerate(inventory.states) if of[stage.index]),
        constants=tuple(place(id(values[i]), values[i]) for i in stage.constants),
        streamed=stage.streamed,
        received=stage.received,
        produced=stage.produced,
    )


def _lying(program: Program, mine: Sequence[str], inventory: Inventory) -> list[Any]:
    return [
        (todo.target, value, _spec(program, todo.target, value, inventory))
        for (source, target), transfers in program.links
        for todo in transfers
        for value in todo.values
        if source in mine and target in mine
    ]


def _crossings(
    program: Program,
    mine: Sequence[str],
    inventory: Inventory,
    narrowings: Mapping[tuple[str, str], str],
) -> list[CrossingOrder]:
    return [
        CrossingOrder(
            track=track_of_link(source, target),
            place=place,
            source=source,
            target=target,
            values=tuple(
                _value(program, todo, value, inventory, narrowings[source, target])
                for value in todo.values
            ),
        )
        for (source, target), transfers in program.links
        for place, todo in enumerate(transfers)
        if (source in mine) != (target in mine)
    ]


def _value(
    program: Program, todo: Transfer, value: int, inventory: Inventory, narrowing: str
) -> ValueOrder:
    aval = program.partition.avals[value]
    specs = [_spec(program, mesh, value, inventory) for mesh in (todo.source, todo.target)]
    key = ""
    if jax.numpy.issubdtype(aval.dtype, jax.dtypes.prng_key):
        key = _jax.generator_of(aval.dtype)
        aval = jax.eval_shape(jax.random.key_data, aval)
        specs = [(*spec, ()) for spec in specs]
    sizes = (inventory.arrangement.meshes[mesh].size for mesh in (todo.source, todo.target))
    is_narrowed = fabric.narrows(aval.shape, aval.dtype.name, narrowing, *sizes)
    return ValueOrder(
        shape=aval.shape,
        dtype=aval.dtype.name,
        source_spec=specs[0],
        target_spec=specs[1],
        key=key,
        narrowing=narrowing if is_narrowed else "",
    )


def _spec(program: Program, mesh: str, value: int, inventory: Inventory) -> Spec:
    sharding = inventory.arrangement.value(mesh, program, value)
    return normal(sharding.spec, program.partition.avals[value].ndim)
