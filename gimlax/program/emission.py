"""Turns a plan into instruction lists: where each value goes, once, and when it can be dropped.

A value travels along the stages from its producer to each consumer; where a mesh on that way has it
already it is not sent again, and a mesh that only passes it on sends the copy that it received.
"""

from collections.abc import Sequence

from gimlax.errors import PlanError
from gimlax.graph import Chain
from gimlax.partition import Partition, cut
from gimlax.planning import Plan
from gimlax.program.instructions import Free, Program, Run, Transfer


def emit(plan: Plan, chain: Chain) -> tuple[Program, ...]:
    """The programs of a plan, one per phase of the workload.

    Raises:
        PlanError: the plan has more than one route, or a cut does not fit the chain.
    """
    cuts, meshes = plan.layout.route()
    bounds = (0, *cuts, chain.num_segments)
    segments = tuple(tuple(chain.names[a:b]) for a, b in zip(bounds, bounds[1:], strict=False))
    return tuple(
        lay_out(cut(phase, cuts), meshes, phase=phase.name, segments=segments)
        for phase in chain.phases
    )


def lay_out(
    partition: Partition,
    placement: Sequence[str],
    *,
    phase: str,
    segments: Sequence[tuple[str, ...]],
) -> Program:
    """The program of one partition on the given meshes.

    Args:
        partition: the stages and what crosses between them.
        placement: a mesh name per stage; a mesh may come more than once.
        phase: the name of the phase.
        segments: the names of the segments of each stage.

    Raises:
        PlanError: there is not exactly one mesh per stage.
    """
    stages = partition.stages
    if len(placement) != len(stages):
        raise PlanError(
            f"phase {phase!r} has {len(stages)} stages and {len(placement)} meshes were named:"
            f" {', '.join(map(repr, placement))}; name one mesh per stage"
        )
    arrived: dict[tuple[str, int], int] = {}  # (mesh, value) -> stage at which it is there
    last_use: dict[tuple[str, int], int] = {}  # (mesh, value) -> stage after which it is not needed
    sent: list[list[int]] = [[] for _ in stages]  # values that enter stage i from stage i - 1
    for stage in stages:
        here = placement[stage.index]
        for value in stage.received:
            if (here, value) not in arrived:
                for i in _way(arrived, placement, value, stage.index):
                    sent[i].append(value)
                    arrived[placement[i], value] = i
                    last_use[placement[i - 1], value] = i - 1
            last_use[here, value] = stage.index
        for value in stage.produced:
            arrived[here, value] = stage.index
            last_use[here, value] = stage.index
    producer = {v: placement[s.index] for s in stages for v in s.produced}
    outputs = tuple(None if v is None else (producer[v], v) for v in partition.outputs)
    kept = {output for output in outputs if output is not None}

    meshes: dict[str, list[Run | Free]] = {}
    links: dict[tuple[str, str], list[Transfer]] = {}
    for stage in stages:
        here = placement[stage.index]
        if sent[stage.index]:
            source = placement[stage.index - 1]
            values = tuple(sent[stage.index])
            transfer = Transfer(values=values, source=source, target=here)
            links.setdefault((source, here), []).append(transfer)
        todo = meshes.setdefault(here, [])
        todo.append(
            Run(
                stage=stage.index,
                streamed=stage.streamed,
                inputs=stage.received,
                outputs=stage.produced,
            )
        )
        done = [
            value
            for (mesh, value), index in last_use.items()
            if mesh == here and index == stage.index and (mesh, value) not in kept
        ]
        if done:
            todo.append(Free(values=tuple(done)))
    return Program(
        phase=phase,
        meshes=tuple((name, tuple(todo)) for name, todo in meshes.items()),
        links=tuple((link, tuple(todo)) for link, todo in links.items()),
        outputs=outputs,
        placement=tuple(placement),
        segments=tuple(segments),
        partition=partition,
    )


def _way(
    arrived: dict[tuple[str, int], int], placement: Sequence[str], value: int, stage: int
) -> range:
    """The stages that a value has to enter, from where it is last seen up to `stage`."""
    seen = max(i for i in range(stage) if (placement[i], value) in arrived)
    return range(seen + 1, stage + 1)
