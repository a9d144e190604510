"""Compiles what a worker was ordered to run, from StableHLO that another process traced."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import jax
import numpy as np

from gimlax import _jax
from gimlax.partition import Spec, partition_spec
from gimlax.runtime.compilation import CompiledStage, Order, Progress, compile_orders
from gimlax.runtime.exporting import ExportedStage, load_stage
from gimlax.runtime.passes import CompiledPhase
from gimlax.runtime.workers.laying import lay
from gimlax.runtime.workers.orders import Orders, PhaseOrder, StageOrder

__all__ = ["analyses", "build", "run_once"]

Config = tuple[tuple[str, Any], ...]


def build(
    orders: Orders,
    arrays: Sequence[Any],
    meshes: Mapping[str, jax.sharding.Mesh],
    config: Config,
    progress: Callable[[Progress], None],
    known: dict[Any, Any],
) -> tuple[tuple[CompiledPhase, ...], int]:
    """Compiles all stages of a worker.

    Args:
        orders: what to run.
        arrays: artefacts and constants that the orders number.
        meshes: live meshes of this process by name.
        config: JAX's configuration that everything was traced under.
        progress: told after each distinct stage.
        known: stages that were compiled before, by key; takes in what is new.

    Returns:
        The phases, and how many distinct stages had to be compiled.

    Raises:
        BackendError: a stage cannot be compiled.
    """
    stages = [(phase, stage) for phase in orders.phases for stage in phase.stages]
    wanted = [_order(stage, arrays, meshes[stage.mesh], config) for _, stage in stages]
    compiled, num_compiled = compile_orders(wanted, progress, known)
    constants: dict[tuple[str, int], jax.Array] = {}
    with _jax.using_config(config):
        for _, stage in stages:
            whole = jax.sharding.NamedSharding(meshes[stage.mesh], jax.sharding.PartitionSpec())
            for n in stage.constants:
                if (stage.mesh, n) not in constants:
                    constants[stage.mesh, n] = lay([arrays[n]], [whole])[0]
    made = {
        (phase.name, stage.index): CompiledStage(
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
        for (phase, stage), call in zip(stages, compiled, strict=True)
    }
    return tuple(_phase(phase, made, meshes) for phase in orders.phases), num_compiled


def analyses(phases: Sequence[CompiledPhase]) -> list[list[Any]]:
    """Of each stage (phase, index): XLA's cost and memory analysis, None where it has none."""
    return [
        [phase.name, stage.index, *_analyse(stage.compiled)]
        for phase in phases
        for stage in phase.stages
        if stage is not None
    ]


def run_once(
    said: Mapping[str, Any], artifact: Any, given: Sequence[Any], mesh: jax.sharding.Mesh
) -> list[jax.Array]:
    """Compiles a stage that is in no orders, and runs it.

    Args:
        said: its description, platform, inputs, results and config, as they came in a message.
        artifact: its StableHLO.
        given: all its arguments, one after another.
        mesh: where it runs.

    Returns:
        The state that it leaves and the values that it makes, one after another.
    """
    config = tuple((name, value) for name, value in said["config"])
    stage = ExportedStage(
        description=said["description"],
        platform=said["platform"],
        axes=tuple(zip(mesh.axis_names, mesh.axis_sizes, strict=True)),
        artifact=bytes(artifact),
        inputs=_as_specs(said["inputs"]),
        results=_as_specs(said["results"]),
        donates=False,
        config=config,
    )
    with _jax.using_config(config):
        lowered = load_stage(stage, mesh)
        treedef = jax.tree.structure(lowered.args_info)
        lying = [jax.sharding.NamedSharding(mesh, partition_spec(spec)) for spec in stage.inputs]
        args, _ = jax.tree.unflatten(treedef, lay(given, lying))
        updated, produced, _ = _jax.compile_lowered(lowered)(*args)
    return jax.tree.leaves((updated, produced))


def _as_specs(given: Sequence[Any]) -> tuple[Spec, ...]:
    """Specs as they come in a message."""
    return tuple(tuple(tuple(axes) for axes in spec) for spec in given)


def _order(
    stage: StageOrder, arrays: Sequence[Any], mesh: jax.sharding.Mesh, config: Config
) -> Order:
    lowered = load_stage(
        ExportedStage(
            description=stage.description,
            platform=stage.platform,
            axes=tuple(zip(mesh.axis_names, mesh.axis_sizes, strict=True)),
            artifact=bytes(arrays[stage.artifact]),
            inputs=stage.inputs,
            results=stage.results,
            donates=stage.donates,
            config=config,
        ),
        mesh,
    )
    key = (
        lowered.as_text(),
        tuple((a.shape, str(a.dtype)) for a in jax.tree.leaves(lowered.args_info)),
        tuple(str(aval) for aval in jax.tree.leaves(lowered.out_info)),
        (lowered.in_tree, lowered.out_tree),
        (stage.mesh, stage.inputs, stage.results, stage.donates),
    )
    return Order(lowered=lowered, key=key, config=config, description=stage.description)


def _phase(
    phase: PhaseOrder,
    made: Mapping[tuple[str, int], CompiledStage],
    meshes: Mapping[str, jax.sharding.Mesh],
) -> CompiledPhase:
    # None stands for a stage of another worker, which no step here names.
    stages = tuple(made.get((phase.name, i)) for i in range(phase.num_stages))
    return CompiledPhase(
        name=phase.name,
        stages=cast(Any, stages),
        steps=tuple(step.step() for step in phase.steps),
        outputs=phase.outputs,
        lying={
            (mesh, value): jax.sharding.NamedSharding(meshes[mesh], partition_spec(spec))
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
