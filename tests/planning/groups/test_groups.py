"""Plans for groups of devices: replicas, shares, memory, words, JSON, and what is refused."""

import re
from dataclasses import replace

import numpy as np
import pytest

import gimlax as gx
from gimlax.devices import Cluster, DeviceKind, Group, Interconnect, Link
from gimlax.errors import PlanError, SpecError
from gimlax.planning.groups import price_groups
from gimlax.planning.layout import OUTSIDE, Holding, Layout
from gimlax.planning.replicas import alike
from tests.planning.cases import two_phases


def kind(name, flops_per_s, *, memory_bytes=10**9):
    return DeviceKind(
        name=name,
        vendor="test",
        memory_bytes=memory_bytes,
        memory_bytes_per_s=flops_per_s / 10,
        peak_flops_per_s=(("float32", flops_per_s),),
        interconnect=Interconnect(name="test", bytes_per_s=1e10, num_devices=4),
    )


def cluster(counts, *, memory_bytes=10**9, links=None, bytes_per_s=1e10):
    """One group per count; the second has devices of half the speed."""
    names = ["fast", "slow"][: len(counts)]
    kinds = [kind(name, 1e12 / (k + 1), memory_bytes=memory_bytes) for k, name in enumerate(names)]
    pairs = [(a, b) for a in names for b in names] if links is None else links
    return Cluster(
        meshes=(),
        groups=tuple(
            Group(name=name, device_kind=name, num_devices=count, devices_per_host=4)
            for name, count in zip(names, counts, strict=True)
        ),
        links=tuple(
            Link(source=a, target=b, latency_s=1e-6, bandwidth_bytes_per_s=bytes_per_s)
            for a, b in pairs
        ),
        kinds=tuple(kinds),
    )


THROUGHPUT = gx.Objective(goal="throughput")


@pytest.fixture(scope="module")
def workload():
    return two_phases()


def test_as_many_devices_serve_as_many_requests(workload):
    rates = [
        1 / gx.plan(workload, cluster([count]), objective=THROUGHPUT, time_limit_s=2.0).value
        for count in (1, 2, 8)
    ]
    assert rates[1] >= 1.99 * rates[0]
    assert rates[2] >= 7.9 * rates[0]


def test_a_plan_is_a_flow_over_meshes_of_the_groups_within_its_bound(workload):
    there = cluster([4, 8])
    plan = gx.plan(workload, there, objective=THROUGHPUT, time_limit_s=2.0)
    used = {
        name: sum(s.num_devices for s in plan.specs if s.name.startswith(name))
        for name in ("fast", "slow")
    }
    assert used["fast"] <= 4
    assert used["slow"] <= 8
    assert 0 <= plan.gap < 0.15
    shares = plan.layout.shares()
    assert all(
        mesh.load_s <= plan.period_s * (1 + 1e-6) and mesh.needed_bytes <= mesh.capacity_bytes
        for mesh in plan.meshes
    )
    for same in alike(plan):
        assert np.ptp([shares[k] for k in same]) < 1e-9
    assert sum(h.share for h in plan.layout.hops if h.source == OUTSIDE) == pytest.approx(1)
    assert gx.Plan.from_json(plan.to_json()) == plan


def test_without_an_objective_it_is_throughput(workload):
    assert gx.plan(workload, cluster([2]), time_limit_s=1.0).objective == THROUGHPUT


def priced(made, *usd_per_hour):
    groups = zip(made.groups, usd_per_hour, strict=True)
    kinds = tuple(replace(k, tdp_watts=100.0 * (n + 1)) for n, k in enumerate(made.kinds))
    return replace(
        made, groups=tuple(replace(g, usd_per_hour=usd) for g, usd in groups), kinds=kinds
    )


def test_latency_is_that_of_the_best_meshes_that_can_be_made(workload):
    made = cluster([1, 2], memory_bytes=10**9)
    plan = gx.plan(workload, made, objective=gx.Objective(goal="latency"))
    ways = [{"fast": [(1, 1)], "slow": slow} for slow in ([(1, 1), (1, 1)], [(1, 2)], [(2, 1)])]
    best = min(
        gx.plan(workload, replace(made.carve(way), groups=made.groups)).value for way in ways
    )
    assert plan.value == pytest.approx(best, rel=1e-6)
    assert plan.method == "exact" and not plan.layout.branches
    assert plan.latency_s == pytest.approx(sum(p.calls * p.seconds for p in plan.phases))


def test_a_fast_link_within_a_group_is_not_charged_like_a_slow_one_out_of_it(workload):
    """Two meshes of one group, because none has room; the other group is far away."""
    whole = gx.plan(workload, cluster([1]), objective=gx.Objective(goal="latency"))
    needed = max(mesh.needed_bytes for mesh in whole.meshes)
    made = cluster([2, 2], memory_bytes=needed * 7 // 8)
    slow = tuple(
        link if link.source == link.target else replace(link, latency_s=1.0) for link in made.links
    )
    plan = gx.plan(
        workload, plain(replace(made, links=slow)), objective=gx.Objective(goal="latency")
    )
    assert {name.partition("/")[0] for name in plan.mesh_names} == {"fast"}
    assert len(plan.mesh_names) == 2
    assert plan.latency_s < 1.0


@pytest.mark.parametrize("goal", ["latency", "throughput"])
@pytest.mark.parametrize("bytes_per_s", [1e10, 1e6])
def test_groups_of_one_device_are_no_worse_than_these_meshes(workload, goal, bytes_per_s):
    """Whatever links between other groups are like: nobody has to take the slowest one."""
    made = cluster([1, 1])
    links = tuple(
        link if link.source == link.target else replace(link, bandwidth_bytes_per_s=bytes_per_s)
        for link in made.links
    )
    made = replace(made, links=links)
    objective = gx.Objective(goal=goal)
    plan = gx.plan(workload, made, objective=objective)
    meshes = gx.plan(
        workload, made.carve({"fast": [(1, 1)], "slow": [(1, 1)]}), objective=objective
    )
    assert plan.value <= meshes.value * (1 + 1e-6)
    assert plan.bound <= meshes.value * (1 + 1e-9)
    assert plan.period_s == pytest.approx(
        max(
            *(mesh.load_s for mesh in plan.meshes),
            *(
                sum(p.calls * t.seconds * plan.layout.hops[t.hop].share for t in p.transfers)
                for p in plan.phases
            ),
        ),
        rel=1e-5,
    )


@pytest.mark.parametrize("goal", ["usd", "joules", "weighted"])
def test_other_goals_beat_the_fastest_plan(workload, goal):
    made = priced(cluster([2, 4]), 9.0, 1.0)
    weights = {"latency": 1.0, "usd": 1e3} if goal == "weighted" else ()
    objective = gx.Objective(goal=goal, weights=weights)
    plan = gx.plan(workload, made, objective=objective, time_limit_s=4.0)
    fastest = gx.plan(workload, made, objective=THROUGHPUT, time_limit_s=4.0)
    terms = (plan.latency_s, plan.period_s, plan.usd, plan.joules)
    assert plan.value == pytest.approx(objective.value(terms))
    others = (fastest.latency_s, fastest.period_s, fastest.usd, fastest.joules)
    assert plan.bound <= plan.value < objective.value(others)
    assert plan.gap < 0.1
    assert gx.Plan.from_json(plan.to_json()) == plan


def test_limits_hold_beside_a_goal(workload):
    made = priced(cluster([2, 4]), 9.0, 1.0)
    cheapest = gx.plan(workload, made, objective=gx.Objective(goal="usd"), time_limit_s=4.0)
    rate = 1.5 / cheapest.period_s
    more = gx.plan(
        workload,
        made,
        objective=gx.Objective(goal="usd", min_requests_per_s=rate),
        time_limit_s=4.0,
    )
    assert 1 / more.period_s >= rate * (1 - 1e-6)
    assert more.usd > cheapest.usd * (1 - 1e-6)
    with pytest.raises(SpecError, match=r"group 'fast' has no price: .* in its \[\[group\]\]"):
        gx.plan(workload, cluster([1]), objective=gx.Objective(goal="usd"))


def test_points_between_seconds_and_dollars(workload):
    made = priced(cluster([2, 4]), 9.0, 1.0)
    plans = gx.pareto(workload, made, time_limit_s=2.0)
    assert len(plans) >= 2
    seconds, usd = [p.latency_s for p in plans], [p.usd for p in plans]
    assert seconds == sorted(seconds) and usd == sorted(usd, reverse=True)
    assert all(p.bound <= p.value for p in plans)


def test_replicas_are_one_line(workload):
    plan = gx.plan(workload, cluster([16]), objective=THROUGHPUT, time_limit_s=2.0)
    most = max(map(len, alike(plan)))
    assert most > 1
    assert f"{most} x fast" in str(plan)
    assert f"{most} x fast" in plan.explain()
    assert "16 devices" in str(plan)


def test_several_routes_are_not_compiled(workload):
    plan = gx.plan(workload, cluster([8]), objective=THROUGHPUT, time_limit_s=1.0)
    assert plan.layout.branches
    with pytest.raises(PlanError, match="several routes"):
        _ = plan.cuts


def test_what_a_mesh_of_several_devices_holds_is_split(workload):
    figures = price_groups(gx.graph.chain(workload), cluster([4]))
    assert [shape.num_devices for shape in figures.shapes] == [1, 2, 4]
    everything = [(0, figures.figures.problem.num_segments)]
    whole = [figures.figures.resident_bytes(option, everything) for option in range(3)]
    assert (np.diff(whole) <= 0).all()


def test_memory_is_kept_and_its_lack_told(workload):
    figures = price_groups(gx.graph.chain(workload), cluster([8]))
    need = int(figures.figures.problem.stage_bytes()[0, 0, -1])
    plan = gx.plan(
        workload, cluster([8], memory_bytes=need * 3 // 4), objective=THROUGHPUT, time_limit_s=2.0
    )
    assert all(mesh.needed_bytes <= mesh.capacity_bytes for mesh in plan.meshes)
    with pytest.raises(PlanError, match=r"fits nowhere: .* no number of these devices would do"):
        gx.plan(workload, cluster([2], memory_bytes=1000), objective=THROUGHPUT)


def plain(made):
    """Devices that nothing joins, so that meshes have one."""
    return replace(made, kinds=tuple(replace(k, interconnect=None) for k in made.kinds))


@pytest.mark.parametrize("share", [0.6, 0.75, 0.9])
def test_so_many_devices_would_do_as_are_told(workload, share):
    whole = price_groups(gx.graph.chain(workload), plain(cluster([1]))).figures.problem
    memory = int(whole.stage_bytes()[0, 0, -1] * share)
    with pytest.raises(PlanError, match="fits nowhere") as error:
        gx.plan(workload, plain(cluster([1], memory_bytes=memory)), objective=THROUGHPUT)
    said = re.search(r"would do is (\d+) of group 'fast' \(it has 1\)", str(error.value))
    needed = int(said.group(1))
    for count, fits in ((needed, True), (needed - 1, False)):
        made = plain(cluster([count], memory_bytes=memory))
        if fits:
            assert gx.plan(workload, made, objective=THROUGHPUT).value > 0
        else:
            with pytest.raises(PlanError, match="fits nowhere"):
                gx.plan(workload, made, objective=THROUGHPUT)
    lacks = re.search(r"'fast' alone, ([\d.]+) (\w+) are missing", str(error.value))
    lacks = float(lacks.group(1)) * {"KiB": 2**10, "MiB": 2**20}[lacks.group(2)]
    for more, fits in ((1.02, True), (0.98, False)):
        made = plain(cluster([1], memory_bytes=int(memory + more * lacks)))
        if fits:
            assert gx.plan(workload, made, objective=THROUGHPUT).value > 0
        else:
            with pytest.raises(PlanError, match="fits nowhere"):
                gx.plan(workload, made, objective=THROUGHPUT)


def test_a_slow_link_costs_no_more_than_not_using_it(workload):
    alone = gx.plan(workload, cluster([4]), objective=THROUGHPUT, time_limit_s=2.0)
    slow = gx.plan(workload, cluster([4], bytes_per_s=1.0), objective=THROUGHPUT, time_limit_s=2.0)
    assert slow.value >= alone.value * (1 - 1e-6)
    assert all(h.num_segments == len(slow.segments) for h in slow.layout.holdings)


@pytest.mark.parametrize(
    ("wishes", "message"),
    [
        (
            {"objective": gx.Objective(goal="throughput", min_requests_per_s=1e12)},
            r"min_requests_per_s is 1e\+12, but no layout has more than [\d.]+: it is",
        ),
        (
            {"objective": gx.Objective(goal="throughput", max_latency_s=1e-9)},
            r"max_latency_s is 1e-09, but no layout has less than [\d.e-]+: it is",
        ),
        ({"tiers": {"fast": "on_chip"}}, "tiers cannot be given for groups"),
        ({"cuts": 2}, "cuts cannot be given for groups"),
        ({"wire": "int8"}, "wire cannot be given for groups"),
        ({"meshes": ("fast/0",)}, "meshes cannot be given for groups"),
    ],
)
def test_what_groups_cannot_do_is_refused(workload, wishes, message):
    with pytest.raises(PlanError, match=message):
        gx.plan(workload, cluster([2]), time_limit_s=1.0, **wishes)


def test_groups_that_no_link_joins_are_named(workload):
    links = [("fast", "fast"), ("slow", "slow"), ("fast", "slow")]
    with pytest.raises(PlanError, match="no link 'slow' -> 'fast'; add it"):
        gx.plan(workload, cluster([2, 2], links=links), objective=THROUGHPUT)


@pytest.mark.parametrize("seed", range(50))
def test_shares_become_hops_that_balance(seed):
    rng = np.random.default_rng(seed)
    holdings, shares = [], []
    for first, stop in ((0, 2), (2, 3), (3, 7)):
        part = rng.dirichlet(np.ones(int(rng.integers(1, 9))))
        holdings += [
            Holding(mesh=f"g/{len(holdings) + k}", first_segment=first, num_segments=stop - first)
            for k in range(len(part))
        ]
        shares += part.tolist()
    pools = rng.integers(0, 2, len(holdings)).tolist()

    def moved_to(boundary, other_side):  # in proportion to what is there in each pool
        at = [getattr(held, other_side) == boundary for held in holdings]
        parts = list(zip(shares, pools, at, strict=True))
        return [sum(s for s, p, there in parts if there and p == pool) for pool in range(2)]

    onward = [
        [s * part for part in moved_to(held.stop, "first_segment")]
        for held, s in zip(holdings, shares, strict=True)
    ]
    inward = [
        [s * part for part in moved_to(held.first_segment, "stop")]
        for held, s in zip(holdings, shares, strict=True)
    ]
    layout = Layout.shared(holdings, shares, pools=pools, inward=inward, onward=onward)
    assert layout.shares() == pytest.approx(shares, abs=1e-9)
    assert len(layout.hops) <= 3 * len(holdings) + 2
    for k, held in enumerate(holdings):
        for pool in range(2 if held.stop < 7 else 0):
            moved = [
                hop.share for hop in layout.hops if hop.source == k and pools[hop.target] == pool
            ]
            assert sum(moved) == pytest.approx(onward[k][pool], abs=1e-9)


def test_groups_beside_meshes_are_not_left_out_silently(workload):
    made = cluster([2, 2])
    with pytest.raises(PlanError, match="group 'slow' besides, of which no mesh is made"):
        gx.plan(workload, made.carve({"fast": [(1, 1)]}))
    assert gx.plan(workload, made.carve({"fast": [(1, 1)], "slow": [(1, 2)]})).value > 0
