"""What carries values between two meshes follows from where they are, and stands in the plan."""

import dataclasses

import jax.numpy as jnp
import pytest

import gimlax as gx
from gimlax.devices import Cluster, Link, MeshSpec, WorkerSpec
from gimlax.errors import PlanError, SpecError
from gimlax.graph import trace

WORKERS = (
    WorkerSpec(name="here"),
    WorkerSpec(name="beside"),
    WorkerSpec(name="away", host="10.0.0.2"),
)
MESHES = {
    "one": ("here", "cpu", 0),
    "same client": ("here", "cpu", 1),
    "other client": ("here", "plugin", 0),
    "other process": ("beside", "cpu", 0),
    "other host": ("away", "cpu", 0),
    "embedded": ("", "cpu", 0),
}


def cluster():
    meshes = tuple(
        MeshSpec(
            name=name,
            device_kind="cpu",
            backend=backend,
            first_device=first,
            worker=worker,
            memory_bytes=10**9,
        )
        for name, (worker, backend, first) in MESHES.items()
    )
    links = tuple(
        Link(source=a, target=b, latency_s=1e-5, bandwidth_bytes_per_s=1e9)
        for a in MESHES
        for b in MESHES
        if a != b
    )
    return Cluster(meshes=meshes, links=links, workers=WORKERS)


def two_stages(source, target, **wishes):
    def layers(x):
        return jnp.tanh(jnp.tanh(x @ x) @ x)

    traced = trace(layers, jnp.ones((8, 8)), resident=())
    return gx.plan(traced, cluster(), cuts=2, meshes=(source, target), **wishes)


@pytest.mark.parametrize(
    ("target", "kind", "said"),
    [
        ("same client", "client", "by their backend"),
        ("other client", "process", "inside the process"),
        ("other process", "ring", "through shared memory"),
        ("embedded", "ring", "through shared memory"),
        ("other host", "tcp", "over TCP"),
    ],
)
def test_each_pair_of_meshes_has_its_carrier(target, kind, said):
    plan = two_stages("one", target)
    (carrier,) = plan.carriers
    assert (carrier.source, carrier.target, carrier.kind) == ("one", target, kind)
    assert f"'one' -> {target!r}: values go {said}" in plan.explain()
    assert gx.Plan.from_json(plan.to_json()) == plan


@pytest.mark.parametrize("wire", ["bfloat16", "int8"])
@pytest.mark.parametrize(
    ("target", "is_narrowed"),
    [
        ("same client", False),
        ("other client", False),
        ("other process", True),
        ("other host", True),
    ],
)
def test_float32_goes_narrowed_between_processes_alone(target, is_narrowed, wire):
    plan = two_stages("one", target, wire=wire)
    narrowing = wire if is_narrowed else ""
    assert plan.carriers[0].narrowing == plan.edges[0].narrowing == narrowing
    allowed = plan.edges[0].of("float32")
    assert allowed.computed_in == ("bfloat16" if is_narrowed else "float32")
    assert (f", float32 narrowed to {wire}" in plan.explain()) == is_narrowed
    assert (f"; float32 goes as {wire})" in plan.explain()) == is_narrowed
    assert gx.Plan.from_json(plan.to_json()) == plan
    (wide,) = two_stages("one", target).phases[0].transfers
    (sent,) = plan.phases[0].transfers
    share = {"bfloat16": 1 / 2, "int8": (64 + 8 * 4) / 256}[wire]  # 8 rows of 8, a scale each
    assert sent.num_bytes == wide.num_bytes * (share if is_narrowed else 1)
    assert sent.seconds == pytest.approx(1e-5 + sent.num_bytes / 1e9)
    seconds = [stage.seconds for stage in plan.phases[0].stages]
    assert plan.latency_s == pytest.approx(sum(seconds) + sent.seconds)


def test_a_narrowing_that_there_is_not_is_refused():
    with pytest.raises(SpecError, match=r"wire is 'float8', .* as 'bfloat16' or 'int8'; give one"):
        two_stages("one", "other host", wire="float8")
    plan = two_stages("one", "other host", wire="int8")

    def carried(**wrong):
        return dataclasses.replace(plan, carriers=(dataclasses.replace(plan.carriers[0], **wrong),))

    with pytest.raises(PlanError, match="to 'other host' float32 goes as 'int4', not one of bfl"):
        carried(narrowing="int4")
    with pytest.raises(PlanError, match="'other host' float32 goes narrowed inside a process"):
        carried(kind="process")
    with pytest.raises(
        PlanError, match=r"hop 1 are of float32 that goes as 'int8', but .* 'float3"
    ):
        carried(narrowing="")


def test_a_plan_that_does_not_say_what_carries_is_refused():
    plan = two_stages("one", "other host")
    with pytest.raises(PlanError, match="what carries values from 'one' to 'other host'"):
        dataclasses.replace(plan, carriers=())
    wrong = dataclasses.replace(plan.carriers[0], kind="pigeon")
    with pytest.raises(PlanError, match="carried by 'pigeon', not one of client, process"):
        dataclasses.replace(plan, carriers=(wrong,))
