"""Parking: priced by hand, chosen where nothing better is left, refused where it cannot be."""

from dataclasses import replace

import pytest

from gimlax.errors import PlanError, SpecError
from gimlax.graph import chain
from gimlax.planning import Objective, Plan, plan
from gimlax.planning.bound import lower_bound
from gimlax.planning.cost import costs
from gimlax.planning.parking import on_tiers
from gimlax.planning.request import checked
from tests.planning.cases import cluster_of, kind, two_phases
from tests.reference import best_layout_value

CHAIN = chain(two_phases(prompt_tokens=4))
TOTAL_BYTES = int(costs(CHAIN, cluster_of([kind("a")])).problem.stage_bytes()[0, 0, -1])
LINK = 1e8


def cluster(*shares, host_bytes=10**9, slow=1.0):
    """One mesh for each share of the model's bytes that it has, all with a host behind them."""
    kinds = [
        replace(
            kind(f"m{k}", memory_bytes=TOTAL_BYTES * share, bytes_per_s=1e11 / slow**k),
            host_link_bytes_per_s=LINK,
            on_chip_bytes=TOTAL_BYTES // 3,
        )
        for k, share in enumerate(shares)
    ]
    made = cluster_of(kinds)
    return replace(
        made, meshes=tuple(replace(m, host_memory_bytes=host_bytes) for m in made.meshes)
    )


def tiered(made, lowest=None, meshes=None):
    request = checked(CHAIN, made, None, meshes)
    return on_tiers(costs(CHAIN, made), made, request, lowest or {})


def test_what_is_missing_and_a_buffer_are_streamed_at_each_call():
    figures = tiered(cluster(0.7))
    problem, n = figures.problem, CHAIN.num_segments
    largest = max(problem.added_bytes[0, s, s + 1] for s in range(n))
    missing = TOTAL_BYTES - int(TOTAL_BYTES * 0.7)
    assert problem.parked_bytes[0, 0, n] == missing + largest
    weights = figures.resident_bytes(0, [(0, n)]) - 512 * 64 * 4  # the shared table stays
    state = max(missing + largest - weights, 0)
    extra_s = 11 * (missing + largest + state) / LINK
    roomy = tiered(cluster(2.0)).problem
    assert problem.stage_s[0, 0, n] - roomy.stage_s[0, 0, n] == pytest.approx(extra_s)
    assert not roomy.parked_bytes.any()


@pytest.mark.parametrize("goal", ["latency", "throughput"])
@pytest.mark.parametrize("shares", [(0.7,), (0.5, 0.4), (0.45, 0.3, 0.4)])
@pytest.mark.parametrize("host_bytes", [10**9, TOTAL_BYTES // 4])
def test_a_plan_that_parks_is_as_good_as_brute_force_and_above_its_bound(goal, shares, host_bytes):
    made = cluster(*shares, host_bytes=host_bytes, slow=3.0)
    figures = tiered(made)
    best = best_layout_value(figures.problem, goal)
    if best is None:
        with pytest.raises(PlanError):
            plan(CHAIN, made, objective=Objective(goal=goal))
        return
    found = plan(CHAIN, made, objective=Objective(goal=goal))
    assert found.value == pytest.approx(best, rel=1e-8)
    assert 0 < lower_bound(figures, Objective(goal=goal)) <= best * (1 + 1e-9)
    for mesh in found.meshes:
        assert mesh.needed_bytes <= mesh.capacity_bytes
    if goal == "latency":
        assert found.value == pytest.approx(sum(p.calls * p.seconds for p in found.phases))
    assert Plan.from_json(found.to_json()) == found


def test_parking_is_chosen_only_where_the_device_is_too_small():
    assert plan(CHAIN, cluster(2.0)).meshes[0].parked_bytes == 0
    parked = plan(CHAIN, cluster(0.7))
    assert parked.meshes[0].parked_bytes > 0
    assert all(p.stages[0].binds == "host" and p.stages[0].parked_s > 0 for p in parked.phases)
    with pytest.raises(PlanError, match="fits nowhere"):
        plan(CHAIN, cluster(0.7), tiers={"m0": "device"})


def test_a_stage_may_have_to_fit_on_the_chip():
    made = cluster(2.0, 2.0)
    assert plan(CHAIN, made, tiers={"m0": "on_chip"}).mesh_names == ("m1",)
    with pytest.raises(PlanError, match=r"fits nowhere: .* mesh 'm0' has .* missing"):
        plan(CHAIN, cluster(2.0), tiers={"m0": "on_chip"})


def test_a_mesh_that_comes_back_parks_nothing():
    made = cluster(0.7, 0.7)
    figures = tiered(made, meshes=("m0", "m1", "m0"))
    assert not figures.problem.parked_bytes[0].any() and figures.problem.parked_bytes[1].any()


@pytest.mark.parametrize(
    ("tiers", "message"),
    [
        ({"z": "host"}, "tiers names mesh 'z', but the cluster has 'a'"),
        ({"a": "host"}, "tiers asks for 'host' on mesh 'a', which has 'device'"),
        ({"a": "on_chip"}, "tiers asks for 'on_chip' on mesh 'a'"),
        ({"a": "disk"}, "tiers asks for 'disk'"),
    ],
)
def test_tiers_that_are_not_there(tiers, message):
    with pytest.raises(PlanError, match=message):
        plan(CHAIN, cluster_of([kind("a")]), tiers=tiers)


@pytest.mark.parametrize("time_limit_s", [0, -1.0, float("nan")])
def test_a_time_limit_that_is_none(time_limit_s):
    with pytest.raises(SpecError, match="time_limit_s is"):
        plan(CHAIN, cluster_of([kind("a")]), time_limit_s=time_limit_s)


def test_no_time_at_all_is_said():
    fits = cluster_of([kind("a"), kind("b")])
    assert plan(CHAIN, fits, time_limit_s=1e-9).method == "stopped"
    with pytest.raises(PlanError, match="time_limit_s is 1e-09, and no plan was found in it"):
        plan(CHAIN, fits, cuts=2, time_limit_s=1e-9)


def test_what_has_to_be_parked_is_in_the_bound():
    """Weights and state, that is: temporaries and the buffer of parking itself are left out."""
    made = cluster(0.7, slow=3.0)
    found = plan(CHAIN, made)
    roomy = plan(CHAIN, cluster(2.0, slow=3.0))
    passing = found.meshes[0].temp_bytes + found.meshes[0].received_bytes
    missing = TOTAL_BYTES - int(TOTAL_BYTES * 0.7) - passing
    assert found.bound >= roomy.value + 11 * missing / LINK * (1 - 1e-6)
