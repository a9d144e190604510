"""Parking: priced by hand, chosen where nothing better is left, refused where it cannot be."""

from dataclasses import replace

import numpy as np
import pytest

from gimlax.errors import PlanError, SpecError
from gimlax.graph import chain
from gimlax.planning import Objective, Plan, plan
from gimlax.planning.bound import lower_bound
from gimlax.planning.cost import costs
from gimlax.planning.parking import on_tiers
from gimlax.planning.rates import rates_for
from gimlax.planning.request import checked
from tests.planning.calibrations import calibration_of
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


def chips(*on_chip_bytes_per_s, on_chip=0.5, hosts=None, shares=()):
    """Meshes with slow memory for two models, and a share of the model's bytes on the chip."""
    kinds = [
        replace(
            kind(f"m{k}", memory_bytes=2 * TOTAL_BYTES, bytes_per_s=1e9 / (k + 1)),
            on_chip_bytes=int(TOTAL_BYTES * on_chip),
            on_chip_bytes_per_s=rate,
        )
        for k, rate in enumerate(on_chip_bytes_per_s)
    ]
    return cluster_of(kinds, hosts=hosts, shares=shares)


def held(made, *names):
    """The figures where these meshes hold their stages on the chip."""
    request = checked(CHAIN, made, None, None)
    figures = costs(CHAIN, made, held_on_chip=names)
    return on_tiers(figures, made, request, dict.fromkeys(names, "on_chip"))


def test_what_is_held_on_the_chip_is_read_as_fast_as_the_chip_says():
    made = chips(4e9, 4e9)
    slow, fast = held(made), held(made, "m0")
    np.testing.assert_allclose(fast.memory_s[:, 0], slow.memory_s[:, 0] / 4)
    assert np.all(fast.seconds[:, 0] < slow.seconds[:, 0])
    np.testing.assert_array_equal(fast.seconds[:, 1], slow.seconds[:, 1])
    assert fast.on_chip == (True, False) and slow.on_chip == (False, False)


def test_without_a_figure_the_chip_is_as_fast_as_the_memory():
    made = chips(None, on_chip=1.5)
    figures = held(made, "m0")
    assert figures.on_chip == (False,)
    np.testing.assert_array_equal(figures.seconds, held(made).seconds)
    found = plan(CHAIN, made, tiers={"m0": "on_chip"})
    assert found.meshes[0].memory == "device" and "on_chip" not in found.explain()


def test_a_device_without_other_memory_holds_everything_on_the_chip():
    bare = replace(
        kind("m0", memory_bytes=2 * TOTAL_BYTES, bytes_per_s=1e9),
        on_chip_bytes=2 * TOTAL_BYTES,
        on_chip_bytes_per_s=8e9,
        sources=(("on_chip_bytes_per_s", "data sheet, 2026-11"),),
    )
    found = plan(CHAIN, cluster_of([bare]))
    assert found.meshes[0].memory == "on_chip"
    assert found.value < plan(CHAIN, cluster_of([replace(bare, on_chip_bytes=1)])).value
    said = found.explain()
    assert "bytes of 'm0': as fast as on_chip_bytes_per_s of the card" in said
    assert "on_chip_bytes_per_s: data sheet, 2026-11" in said
    assert Plan.from_json(found.to_json()) == found
    with pytest.raises(PlanError, match="mesh 'm0' reads 'disk'"):
        Plan.from_json(found.to_json().replace('"memory": "on_chip"', '"memory": "disk"'))


@pytest.mark.parametrize("goal", ["latency", "throughput"])
@pytest.mark.parametrize("on_chip", [0.3, 0.6, 1.5])
@pytest.mark.parametrize("tiers", [("m0",), ("m1",), ("m0", "m1")])
@pytest.mark.parametrize("shares", [(), ("memory",), ("compute", "memory")])
def test_plans_on_the_chip_are_as_good_as_brute_force_and_above_their_bound(
    goal, on_chip, tiers, shares
):
    made = chips(1e11, 5e10, on_chip=on_chip, hosts=["h", "h"] if shares else None, shares=shares)
    lowest, objective = dict.fromkeys(tiers, "on_chip"), Objective(goal=goal)
    figures = held(made, *tiers)
    best = best_layout_value(figures.problem, goal)
    if best is None:
        with pytest.raises(PlanError, match="fits nowhere"):
            plan(CHAIN, made, objective=objective, tiers=lowest)
        return
    found = plan(CHAIN, made, objective=objective, tiers=lowest)
    assert found.value == pytest.approx(best, rel=1e-8)
    assert 0 < lower_bound(figures, objective) <= best * (1 + 1e-9)
    for mesh in found.meshes:
        on = mesh.mesh in tiers
        assert mesh.memory == ("on_chip" if on else "device")
        assert mesh.needed_bytes <= (on_chip if on else 2) * TOTAL_BYTES


def test_the_chip_wins_where_it_is_fast_enough():
    made = chips(4e9, 1e12)  # by its memory alone the second mesh is half as fast
    assert plan(CHAIN, made, tiers={"m0": "device"}).mesh_names == ("m0",)
    found = plan(CHAIN, chips(4e9, 1e12, on_chip=1.5), tiers={"m1": "on_chip"})
    assert found.mesh_names == ("m1",) and found.meshes[0].memory == "on_chip"
    assert found.value < plan(CHAIN, made).value / 2


def test_what_is_on_chips_of_one_host_takes_none_of_the_memory_that_they_share():
    made = chips(1e10, 1e10, hosts=["h", "h"], shares=("memory",))
    assert held(made).problem.pool.tolist() == [0, 0]
    for on_chip in (("m0",), ("m1",), ("m0", "m1")):
        assert held(made, *on_chip).problem.pool.tolist() == [0, 1]
    one = chips(1e10, 1e10, hosts=["h", "h"], shares=("compute", "memory"))
    assert held(one, "m0", "m1").problem.pool.tolist() == [0, 0]
    assert held(one, "m1").problem.pool.tolist() == [0, 1]


def test_a_calibration_knows_how_fast_so_few_bytes_are_read():
    made = chips(1e15, on_chip=0.01)
    measured = calibration_of(made)
    slow = [
        replace(s, seconds=s.seconds * (8 if s.dims[0] > 2**24 else 1)) if s.kind == "sweep" else s
        for s in measured.meshes[0].samples
    ]
    measured = replace(measured, meshes=(replace(measured.meshes[0], samples=tuple(slow)),))
    product = next(op for op in CHAIN.phases[1].segments[1].operations if op.resident_bytes)
    beyond_s, within_s = (
        rates_for(made, "m0", measured, resident_bytes=2**28, held_on_chip=on).seconds(product)
        for on in (False, True)
    )
    assert beyond_s > within_s > 0
    figures = costs(CHAIN, made, measured, held_on_chip=["m0"])
    assert figures.on_chip == (False,)  # seconds rest on what was measured, not on the card


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
    objective = Objective(goal="throughput")
    assert plan(CHAIN, fits, objective=objective, time_limit_s=1e-9).method == "stopped"
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
