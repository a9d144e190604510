"""Turns a plan into instruction lists: where each value goes, once, and when it can be dropped.

A value travels along the stages from its producer to each consumer; where a mesh on that way has it
already it is not sent again, and a mesh that only passes it on sends the copy that it received.
"""

from collections.abc import Container, Sequence

from gimlax.errors import PlanError
from gimlax.graph import Chain
from gimlax.partition import Partition, cut
from gimlax.planning import Plan, in_order
from gimlax.program.instructions import Free, Program, Run, Transfer


def emit(plan: Plan, chain: Chain) -> tuple[Program, ...]:
    """The programs of a plan, one per phase of the workload.

    Args:
        plan: of one route.
        chain: what it was made for, in the order of the program or in that of the plan.

    Raises:
        PlanError: the plan has more than one route, or a cut or its order does not fit the chain.
    """
    chain = in_order(plan, chain)
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
    producer = {v: s.index for s in stages for v in s.produced}
    last_use: dict[tuple[str, int], int] = {}  # (mesh, value) -> stage after which it is not needed
    sent: list[list[int]] = [[] for _ in stages]  # values that enter stage i from stage i - 1
    for stage in stages:
        here = placement[stage.index]
        for value in stage.received:
            for i in _way(last_use, placement, producer[value], value, stage.index):
                sent[i].append(value)
                last_use[placement[i], value] = i
                source = placement[i - 1], value
                last_use[source] = max(last_use[source], i - 1)
            last_use[here, value] = stage.index
        last_use.update({(here, value): stage.index for value in stage.produced})
    outputs = tuple(None if v is None else (placement[producer[v]], v) for v in partition.outputs)
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
    there: Container[tuple[str, int]],
    placement: Sequence[str],
    producer: int,
    value: int,
    stage: int,
) -> list[int]:
    """The stages at which a value has to enter another mesh, so that the mesh of `stage` has it.

    Walks back to where it is already: at each mesh from its first stage after the producer, so that
    a mesh which the stages leave and come back to gets it once.
    """
    hops: list[int] = []
    while (placement[stage], value) not in there:
        stage = placement.index(placement[stage], producer + 1)
        hops.append(stage)
        stage -= 1
    return hops[::-1]
