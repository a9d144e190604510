"""What carries values between two meshes follows from where they are, and stands in the plan."""

import dataclasses

import jax.numpy as jnp
import pytest

import gimlax as gx
from gimlax.devices import Cluster, Link, MeshSpec, WorkerSpec
from gimlax.errors import PlanError
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


def two_stages(source, target):
    def layers(x):
        return jnp.tanh(jnp.tanh(x @ x) @ x)

    traced = trace(layers, jnp.ones((8, 8)), resident=())
    return gx.plan(traced, cluster(), cuts=2, meshes=(source, target))


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


def test_a_plan_that_does_not_say_what_carries_is_refused():
    plan = two_stages("one", "other host")
    with pytest.raises(PlanError, match="what carries values from 'one' to 'other host'"):
        dataclasses.replace(plan, carriers=())
    wrong = dataclasses.replace(plan.carriers[0], kind="pigeon")
    with pytest.raises(PlanError, match="carried by 'pigeon', not one of client, process"):
        dataclasses.replace(plan, carriers=(wrong,))
