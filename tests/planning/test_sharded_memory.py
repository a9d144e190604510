"""A mesh of several devices needs on each of them no more than its part of what it splits."""

import itertools

import numpy as np
import pytest

from gimlax.devices import Cluster, Link, MeshSpec
from gimlax.errors import PlanError
from gimlax.graph import Workload, chain
from gimlax.planning import Objective, plan
from gimlax.planning.bound import lower_bound
from gimlax.planning.cost import costs
from tests.planning.sharding.models import kind, llama_config, trace_llama
from tests.reference import best_layout_value

CONFIG = llama_config(width=256, head_size=32, mlp_width=1024)
CHAIN = chain(
    Workload(
        {"prefill": trace_llama(CONFIG, length=8), "decode": trace_llama(CONFIG)},
        calls={"prefill": 1, "decode": 8},
    )
)
EVERYTHING = [(0, CHAIN.num_segments)]


def cluster(memory_bytes=10**12, devices=(4, 1)):
    """A mesh of each number of devices, all joined."""
    names = [f"of{number}_{index}" for index, number in enumerate(devices)]
    return Cluster(
        meshes=tuple(
            MeshSpec(
                name=name,
                device_kind="test",
                num_devices=number,
                axes=(("data", 1), ("model", number)),
                host=name,
                memory_bytes=int(memory_bytes),
                usd_per_hour=1.0,
            )
            for name, number in zip(names, devices, strict=True)
        ),
        links=tuple(
            Link(source=a, target=b, latency_s=1e-6, bandwidth_bytes_per_s=1e10)
            for a, b in itertools.permutations(names, 2)
        ),
        kinds=(kind(),),
    )


def test_a_device_holds_what_the_sharding_says():
    figures = costs(CHAIN, cluster())
    sharded = figures.sharded["of4_0"]
    held = figures.resident_bytes(0, EVERYTHING), figures.carried_bytes(0, EVERYTHING)
    assert held == (sharded.resident_bytes, sharded.carried_bytes)
    whole = figures.resident_bytes(1, EVERYTHING) + figures.carried_bytes(1, EVERYTHING)
    assert sum(held) < 0.3 * whole
    needs = figures.problem.stage_bytes()
    assert (needs[0] <= needs[1]).all()
    passing = sum(figures.passing_bytes(0, CHAIN.num_segments))
    np.testing.assert_allclose(needs[:, 0, -1], [sum(held) + passing, whole + passing])


def test_a_model_that_fits_only_split_runs_on_the_mesh_that_splits_it():
    needs = costs(CHAIN, cluster()).problem.stage_bytes()
    room = (needs[0, 0, -1] + needs[1, 0, -1]) / 2
    found = plan(CHAIN, cluster(room))
    assert found.mesh_names == ("of4_0",)
    (mesh,) = found.meshes
    assert mesh.needed_bytes == needs[0, 0, -1] <= mesh.capacity_bytes
    with pytest.raises(PlanError, match=r"fits nowhere: it needs .* in all, .* missing"):
        plan(CHAIN, cluster(room, devices=(1,)))
    with pytest.raises(PlanError, match=r"fits nowhere: it needs .* on each of 4 devices, .* miss"):
        plan(CHAIN, cluster(needs[0, 0, -1] * 0.9, devices=(4,)))


@pytest.mark.parametrize("goal", ["latency", "throughput", "usd"])
@pytest.mark.parametrize("devices", [(4, 1), (2, 4), (2, 2, 1)])
@pytest.mark.parametrize("share", [0.15, 0.4, 0.7])
def test_plans_are_those_of_brute_force_and_above_their_bound(goal, devices, share):
    whole = costs(CHAIN, cluster(devices=(1,))).problem.stage_bytes()[0, 0, -1]
    made = cluster(whole * share, devices)
    figures = costs(CHAIN, made)
    objective = Objective(goal=goal)
    best = best_layout_value(figures.problem, goal)
    if best is None:
        with pytest.raises(PlanError, match="fits nowhere"):
            plan(CHAIN, made, objective=objective)
        return
    assert plan(CHAIN, made, objective=objective).value == pytest.approx(best, rel=1e-8)
    assert 0 < lower_bound(figures, objective) <= best * (1 + 1e-9)
