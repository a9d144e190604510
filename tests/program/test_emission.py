"""Every value reaches the meshes that need it, once, along the stages, and is dropped at last."""

import jax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gimlax.errors import InternalError, PlanError
from gimlax.graph import chain, trace
from gimlax.partition import Edge, Partition, Stage, cut
from gimlax.program import Free, Program, Run, Transfer, lay_out, sequence, track_of_link
from tests import zoo

NOTHING = jax.make_jaxpr(lambda: ())()


def partition_of(received, outputs):
    """Stage i produces value i and receives `received[i]`, all of them made by earlier stages."""
    stages = tuple(
        Stage(
            index=i,
            first_segment=i,
            num_segments=1,
            jaxpr=NOTHING,
            resident=(),
            carried=(),
            constants=(),
            streamed=(),
            received=tuple(values),
            produced=(i,),
        )
        for i, values in enumerate(received)
    )
    edges = tuple(Edge(source=i, target=i + 1, values=()) for i in range(len(stages) - 1))
    return Partition(traced=None, stages=stages, edges=edges, avals={}, outputs=tuple(outputs))


@st.composite
def cases(draw):
    number = draw(st.integers(1, 6))
    received = [sorted(draw(st.sets(st.integers(0, i - 1)))) if i else [] for i in range(number)]
    outputs = draw(st.lists(st.sampled_from([None, *range(number)]), max_size=3))
    placement = draw(st.lists(st.sampled_from("abc"), min_size=number, max_size=number))
    return partition_of(received, outputs), tuple(placement)


def program_of(partition, placement):
    names = [(f"segment {i}",) for i in range(len(placement))]
    return lay_out(partition, placement, phase="p", segments=names)


@given(cases())
def test_each_send_serves_a_stage_and_follows_the_stages(case):
    """Slow twin: what a mesh receives it reads, or another mesh gets it from there."""
    partition, placement = case
    program = program_of(partition, placement)
    neighbours = {(a, b) for a, b in zip(placement, placement[1:]) if a != b}
    assert {link for link, _ in program.links} <= neighbours
    sends = {(v, t.source, t.target) for _, todo in program.links for t in todo for v in t.values}
    readers = {(placement[s.index], v) for s in partition.stages for v in s.received}
    sources = {(source, v) for v, source, _ in sends}
    for value, _, target in sends:
        assert (target, value) in readers | sources
    holds = {(target, v) for v, _, target in sends}
    holds |= {(placement[s.index], v) for s in partition.stages for v in s.produced}
    assert readers | sources <= holds


@given(cases())
def test_nothing_is_sent_twice_or_to_where_it_was_made(case):
    partition, placement = case
    program = program_of(partition, placement)
    arrivals = [(t.target, v) for _, todo in program.links for t in todo for v in t.values]
    arrivals += [(placement[s.index], v) for s in partition.stages for v in s.produced]
    assert len(arrivals) == len(set(arrivals))


@given(cases())
def test_a_single_thread_can_follow_it_and_only_outputs_remain(case):
    partition, placement = case
    program = program_of(partition, placement)
    present = set()
    ran = []
    for step in sequence(program):
        match step.instruction:
            case Run() as run:
                assert step.track == placement[run.stage]
                assert {(step.track, v) for v in run.inputs} <= present
                present |= {(step.track, v) for v in run.outputs}
                ran.append(run.stage)
            case Transfer() as transfer:
                assert step.track == track_of_link(transfer.source, transfer.target)
                assert {(transfer.source, v) for v in transfer.values} <= present
                present |= {(transfer.target, v) for v in transfer.values}
            case Free() as free:
                freed = {(step.track, v) for v in free.values}
                assert freed <= present
                present -= freed
    assert sorted(ran) == list(range(len(placement)))
    assert present == {(placement[v], v) for v in partition.outputs if v is not None}
    assert program.outputs == tuple(
        v if v is None else (placement[v], v) for v in partition.outputs
    )


def test_a_value_that_passes_through_a_mesh_is_forwarded():
    program = program_of(partition_of([[], [], [0]], [2]), ("a", "b", "c"))
    assert dict(program.links) == {
        ("a", "b"): (Transfer(values=(0,), source="a", target="b"),),
        ("b", "c"): (Transfer(values=(0,), source="b", target="c"),),
    }


def test_stages_on_one_mesh_send_nothing():
    assert program_of(partition_of([[], [0], [0, 1]], [2]), "aaa").links == ()


def test_a_traced_model_becomes_a_list_for_each_mesh_and_link():
    specimen = zoo.plain()
    found = chain(trace(specimen.fn, *specimen.args, carried=specimen.carried))
    program = lay_out(
        cut(found.phases[0], (2,)), ("a", "b"), phase="p", segments=[("x",), ("y", "z")]
    )
    assert [(name, [type(i) for i in todo]) for name, todo in program.meshes] == [
        ("a", [Run, Free]),
        ("b", [Run, Free]),
    ]
    assert [link for link, _ in program.links] == [("a", "b")]
    assert program.describe_stage(0) == "stage 0 (segment 'x') of 'p' on mesh 'a'"
    assert program.describe_stage(1) == "stage 1 (segments 'y' to 'z') of 'p' on mesh 'b'"


def test_one_mesh_per_stage_is_asked_for():
    with pytest.raises(PlanError, match=r"'p' has 2 stages and 1 meshes were named: 'a'"):
        lay_out(partition_of([[], [0]], []), ("a",), phase="p", segments=[])


def test_a_program_that_waits_for_itself_is_refused():
    run = Run(stage=0, streamed=(), inputs=(7,), outputs=(8,))
    program = Program(
        phase="p",
        meshes=(("a", (run,)),),
        links=(),
        outputs=(),
        placement=("a",),
        segments=(("x",),),
        partition=partition_of([[]], []),
    )
    with pytest.raises(InternalError, match=r"phase 'p' is stuck: 'a' waits at Run"):
        sequence(program)
