"""A stage evaluated segment by segment with the sharding of every group of equations said.

A compiler propagates shardings from the ends of a stage inwards, and at times another way than was
planned. Here each group's inputs and results are constrained to what was planned, so that what is
emitted is what was priced. Where this cannot be done (a scan cut by rows, outputs that are
arguments handed through) `None` says so, and the compiler is left alone: results are the same.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from gimlax.graph import Role
from gimlax.graph.routing import is_expert_layer
from gimlax.partition.groups import Group, Split
from gimlax.partition.runs import Run, Source
from gimlax.partition.specs import partition_spec
from gimlax.partition.stages import Partition, Stage
from gimlax.partition.ways import Mesh, bind_step, run_in_parts

__all__ = ["GroupSplits", "evaluate_inside"]

GroupSplits = Mapping[str, Split]  # by axis


def evaluate_inside(
    partition: Partition,
    stage: Stage,
    runs: Sequence[Run],
    groups: Sequence[Sequence[Group]],
    splits: Sequence[Sequence[GroupSplits]],
    mesh: Mesh,
    *,
    grouped: bool = False,
) -> Callable[..., list[Any]] | None:
    """What evaluates a stage on its inputs in the order of `stage.jaxpr`; None if it cannot.

    Args:
        partition: that the stage belongs to.
        stage: a stage.
        runs, groups, splits: of all segments of the phase.
        mesh: that it runs on.
        grouped: whether its backend has a kernel for products in groups.
    """
    segments = range(stage.first_segment, stage.first_segment + stage.num_segments)
    mine = [(runs[s], groups[s], splits[s]) for s in segments]
    inputs = _sources(partition, stage)
    if not _possible(partition, stage, [run for run, _, _ in mine], inputs):
        return None

    def evaluate(*given: Any) -> list[Any]:
        known = dict(zip(inputs, given, strict=True))
        updates: dict[Source, Any] = {}
        results: dict[int, Any] = {}
        for run, of, how in mine:
            env = {value: known[source] for value, source in run.sources.items()}
            env.update(run.flat.consts)
            for group, by_axis in zip(of, how, strict=True):
                _apply(run, group, by_axis, mesh, env, grouped)
            known.update((Source("received", v), env[own]) for v, own in run.leaving.items())
            updates.update((source, env[value]) for source, value in run.updates)
            results.update((output, env[value]) for output, value in run.results.items())
        state = [Source(Role.CARRIED.value, part.leaf) for part in stage.carried]
        return [
            *(updates[source] if source in updates else known[source] for source in state),
            *(_produced(partition, value, known, results) for value in stage.produced),
        ]

    return evaluate


def _sources(partition: Partition, stage: Stage) -> list[Source]:
    streamed = partition.traced.leaves(Role.STREAMED)
    return [
        *(Source(Role.RESIDENT.value, part.leaf, not part.whole) for part in stage.resident),
        *(Source(Role.CARRIED.value, part.leaf, not part.whole) for part in stage.carried),
        *(Source("constant", index) for index in stage.constants),
        *(Source(Role.STREAMED.value, streamed.index(leaf)) for leaf in stage.streamed),
        *(Source("received", value) for value in stage.received),
    ]


def _possible(
    partition: Partition, stage: Stage, runs: Sequence[Run], inputs: Sequence[Source]
) -> bool:
    made = {value for run in runs for value in run.leaving}
    outputs = {partition.outputs[output] for run in runs for output in run.results}
    there = {*inputs, *(Source("received", value) for value in made)}
    wanted = {source for run in runs for source in run.sources.values()}
    return (
        not any(source.row for source in inputs)
        and not any(run.whole for run in runs)
        and wanted <= there
        and all(value in made or value in outputs for value in stage.produced)
    )


def _produced(
    partition: Partition, value: int, known: Mapping[Source, Any], results: Mapping[int, Any]
) -> Any:
    source = Source("received", value)
    return known[source] if source in known else results[partition.outputs.index(value)]


def _apply(
    run: Run,
    group: Group,
    splits: GroupSplits,
    mesh: Mesh,
    env: dict[int, Any],
    grouped: bool,
) -> None:
    def constrained(value: int, dim_of: Callable[[Split, int], int | None]) -> Any:
        rank = len(run.flat.avals[value].shape)
        if not rank or group.small:
            return env[value]
        dims = {axis: dim_of(split, value) for axis, split in splits.items()}
        spec = tuple(
            tuple(axis for axis in mesh.axis_names if dims.get(axis) == dim) for dim in range(rank)
        )
        sharding = jax.sharding.NamedSharding(mesh, partition_spec(spec))
        return jax.lax.with_sharding_constraint(env[value], sharding)

    local = {value: constrained(value, group.before) for value in group.reads}
    for index in group.steps:
        step = run.flat.steps[index]
        inputs = [
            getattr(atom, "val", None) if value is None else local[value]
            for value, atom in zip(step.inputs, step.eqn.invars, strict=True)
        ]
        if step.eqn.primitive.name == "sharding_constraint":  # said by this group's split
            outputs = inputs
        elif is_expert_layer(step.eqn) and any(s.label is not None for s in splits.values()):
            outputs = [run_in_parts(step, inputs, group, splits, mesh)]
        else:
            outputs = bind_step(step.eqn, inputs, grouped=grouped)
        local.update(zip(step.outputs, outputs, strict=True))
    for value in group.writes:
        env[value] = local[value]
        env[value] = constrained(value, group.after)
