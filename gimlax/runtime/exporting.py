"""Stages as StableHLO, so that they can be compiled where this process has no devices.

`jax.export` needs an `AbstractMesh` only. What comes out is data: the artefact as bytes and, beside
it, how each argument and result lies, by axis names. Whoever holds it builds an ordinary callable
on a mesh of its own (`load_stage`), which takes and returns what `gimlax.runtime.forms` says.
Nothing is pickled: the artefact is a flatbuffer.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.export
import numpy as np
from jax.sharding import AbstractMesh, AxisType, NamedSharding

from gimlax import _jax
from gimlax.devices import MeshSpec
from gimlax.errors import BackendError
from gimlax.graph import Role
from gimlax.partition import Spec, normal, partition_spec
from gimlax.program import Program
from gimlax.runtime.forms import Form, form_of
from gimlax.runtime.inventory import Inventory

__all__ = [
    "ExportedStage",
    "abstract_mesh",
    "export_stage",
    "export_stages",
    "load_stage",
    "module_text",
    "portable",
]

# Names that the source gave things, in MLIR's text: they differ between layers that do the same.
_LOCATION = re.compile(
    r'^#loc.*\n| loc\((?:#\w+|unknown|"(?:[^"\\]|\\.)*"(?:\(#\w+\))?)\)', re.MULTILINE
)
_LOCAL_CONFIG = ("jax_default_device",)  # names a device of this process


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportedStage:
    """A stage for a mesh of a platform.

    Attributes:
        description: how messages call it.
        platform: what it was lowered for, as PJRT calls it ('cpu', 'cuda', 'tpu').
        axes: names and sizes of the axes of its mesh.
        artifact: serialized by `jax.export`.
        inputs: how each leaf of the arguments lies, in the order of the tree.
        results: the same for each leaf of the results.
        donates: whether it takes over the memory of its carried state.
        config: JAX's configuration that it was traced under.
    """

    description: str
    platform: str
    axes: tuple[tuple[str, int], ...]
    artifact: bytes
    inputs: tuple[Spec, ...]
    results: tuple[Spec, ...]
    donates: bool
    config: tuple[tuple[str, Any], ...]


def abstract_mesh(spec: MeshSpec) -> AbstractMesh:
    """A mesh of the axes of a spec, without devices; its axes are of the sort that live meshes have
    on both lines of JAX."""
    names = tuple(axis for axis, _ in spec.axes)
    return AbstractMesh(spec.shape, names, axis_types=(AxisType.Auto,) * len(names))


def export_stages(
    programs: Sequence[Program],
    inventory: Inventory,
    platforms: dict[str, str],
    donates: dict[str, bool],
) -> tuple[tuple[ExportedStage, ...], ...]:
    """The stages of each program, exported for the platform of their mesh; see `export_stage`."""
    row = 0
    found = []
    for program in programs:
        of_phase = []
        for index, mesh in enumerate(program.placement):
            of_phase.append(
                export_stage(program, index, row, inventory, platforms[mesh], donates[mesh])
            )
            row += 1
        found.append(tuple(of_phase))
    return tuple(found)


def export_stage(
    program: Program, index: int, row: int, inventory: Inventory, platform: str, donates: bool
) -> ExportedStage:
    """Lowers one stage for a platform that need not be here.

    Args:
        program: that it belongs to.
        index: of the stage in its program.
        row: its number among the stages of all phases.
        inventory: how arguments lie on the meshes, which may be abstract.
        platform: to lower for, as PJRT calls it.
        donates: whether it takes over the memory of its carried state.

    Raises:
        BackendError: an operation has no lowering for the platform, or an array a dtype that cannot
            be exported; names stage and segments.
    """
    description = program.describe_stage(index)
    form = form_of(program, program.partition.stages[index], row, inventory)
    config = program.partition.traced.config
    with _jax.using_config(config):
        try:
            plain = _without_sharded_keys(form, program, index)
            exported = jax.export.export(plain.jit(donates=donates), platforms=[platform])(
                *plain.inputs
            )
        except (NotImplementedError, RuntimeError, ValueError) as error:
            raise BackendError(
                f"{description} cannot be lowered for platform {platform!r}: {error}; place it"
                " elsewhere"
            ) from error
    mesh = inventory.arrangement.meshes[program.placement[index]]
    return ExportedStage(
        description=description,
        platform=platform,
        axes=tuple(zip(mesh.axis_names, mesh.axis_sizes, strict=True)),
        artifact=_serialized(exported, program, index),
        inputs=tuple(
            normal(leaf.sharding.spec, leaf.ndim) for leaf in jax.tree.leaves(form.inputs)
        ),
        results=tuple(
            normal(sharding.spec, aval.ndim)
            for sharding, aval in zip(
                jax.tree.leaves(form.results), exported.out_avals, strict=True
            )
        ),
        donates=donates,
        config=portable(config),
    )


def portable(config: Sequence[tuple[str, Any]]) -> tuple[tuple[str, Any], ...]:
    """Of JAX's configuration of a trace what means the same in another process."""
    return tuple((name, value) for name, value in config if name not in _LOCAL_CONFIG)


def _serialized(exported: Any, program: Program, index: int) -> bytes:
    """The artefact of a stage.

    Raises:
        BackendError: it has a dtype that JAX's format has no number for; names an array of it.
    """
    try:
        return bytes(exported.serialize())
    except KeyError as error:
        (dtype,) = error.args
        if not isinstance(dtype, np.dtype):
            raise
        raise BackendError(
            f"{program.describe_stage(index)} has {_array_of(program, index, dtype)} of dtype"
            f" {dtype}, which this JAX cannot export; keep it as int8 outside of the stage and"
            " convert it inside, or compile for meshes of this process"
        ) from error


def _array_of(program: Program, index: int, dtype: np.dtype) -> str:
    """What an array of this dtype that enters or leaves a stage is called."""
    partition, stage = program.partition, program.partition.stages[index]
    parts = [(Role.RESIDENT, part) for part in stage.resident]
    parts += [(Role.CARRIED, part) for part in stage.carried]
    leaves = [partition.leaf(role, part) for role, part in parts]
    arguments = [partition.traced.arguments[leaf] for leaf in (*leaves, *stage.streamed)]
    for argument in arguments:
        if argument.aval.dtype == dtype:
            return f"argument {argument.path!r}"
    shapes = [partition.avals[v] for v in (*stage.received, *stage.produced)]
    return next((f"a value {aval.shape}" for aval in shapes if aval.dtype == dtype), "something")


def module_text(stage: ExportedStage) -> str:
    """The StableHLO of a stage without the names of the source: equal where the same is done."""
    exported = jax.export.deserialize(bytearray(stage.artifact))
    return _LOCATION.sub("", exported.mlir_module())


def _without_sharded_keys(form: Form, program: Program, index: int) -> Form:
    """The form with the shardings of typed PRNG keys left open, which JAX 0.10.0 cannot export."""
    produced = [program.partition.avals[v] for v in program.partition.stages[index].produced]
    leaves = [*jax.tree.leaves(form.inputs), *produced]
    if not any(map(_is_key, leaves)):
        return form
    inputs = jax.tree.map(
        lambda aval: jax.ShapeDtypeStruct(aval.shape, aval.dtype) if _is_key(aval) else aval,
        form.inputs,
    )
    _, of_produced, of_token = form.results
    results = (
        jax.tree.map(lambda aval: None if _is_key(aval) else aval.sharding, form.inputs[1]),
        tuple(
            None if _is_key(aval) else sharding
            for aval, sharding in zip(produced, of_produced, strict=True)
        ),
        of_token,
    )
    return Form(function=form.function, inputs=inputs, results=results)


def _is_key(aval: Any) -> bool:
    return jax.numpy.issubdtype(aval.dtype, jax.dtypes.prng_key)


def load_stage(stage: ExportedStage, mesh: jax.sharding.Mesh) -> Any:
    """Lowers an exported stage on a live mesh, or one of a topology; `.compile()` makes it run.

    Args:
        stage: what `export_stage` made.
        mesh: of the axes of the stage.

    Raises:
        BackendError: the bytes are no stage, or this JAX cannot read them.
    """
    try:
        exported = jax.export.deserialize(bytearray(stage.artifact))
    except Exception as error:
        raise BackendError(
            f"{stage.description}: its {len(stage.artifact)} bytes of StableHLO cannot be read:"
            f" {error}; use the same JAX on both sides"
        ) from error
    args, _ = jax.tree.unflatten(
        exported.in_tree,
        [
            jax.ShapeDtypeStruct(
                aval.shape, aval.dtype, sharding=NamedSharding(mesh, partition_spec(spec))
            )
            for aval, spec in zip(exported.in_avals, stage.inputs, strict=True)
        ],
    )
    results = jax.tree.unflatten(
        exported.out_tree, [NamedSharding(mesh, partition_spec(spec)) for spec in stage.results]
    )
    with _jax.using_config(stage.config):
        return jax.jit(
            exported.call,
            keep_unused=True,
            donate_argnums=1 if stage.donates else (),
            out_shardings=results,
        ).lower(*args)
