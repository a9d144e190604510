"""Plans made from groups beside one mesh, one group, one vendor and other links."""

from dataclasses import replace

import pytest

import gimlax as gx
from gimlax.planning import Plan
from tests.planning.cases import two_phases
from tests.planning.groups.test_groups import THROUGHPUT, cluster, priced


@pytest.fixture(scope="module")
def workload():
    return two_phases()


def of_two_vendors(counts, **changes):
    made = cluster(counts, **changes)
    kinds = (made.kinds[0], replace(made.kinds[1], vendor="other"))
    return replace(made, kinds=kinds)


def without(made, name):
    return replace(
        made,
        groups=tuple(g for g in made.groups if g.name != name),
        links=tuple(link for link in made.links if name not in (link.source, link.target)),
    )


def test_rivals_are_plans_of_fewer_devices(workload):
    made = of_two_vendors([4, 8])
    plan = gx.plan(workload, made, objective=THROUGHPUT, time_limit_s=8.0)
    beside = plan.comparison
    assert beside is not None
    alone = {
        name: gx.plan(workload, without(made, other), objective=THROUGHPUT, time_limit_s=4.0).value
        for name, other in (("fast", "slow"), ("slow", "fast"))
    }
    assert beside.single_group is not None and beside.single_vendor is not None
    assert beside.single_group.value == pytest.approx(min(alone.values()), rel=5e-3)
    assert beside.single_vendor.value == pytest.approx(min(alone.values()), rel=5e-3)
    assert beside.num_vendors == 2
    assert plan.value < beside.single_group.value < beside.single_mesh.value
    said = str(plan)
    for words in ("best single mesh: ", "best single group: ", "best single vendor: ", "% less"):
        assert words in said
    assert Plan.from_json(plan.to_json()) == plan


def test_one_group_that_wins_is_said_to(workload):
    plan = gx.plan(workload, cluster([8]), objective=THROUGHPUT, time_limit_s=4.0)
    assert "one group wins" in str(plan)
    assert "single vendor: all meshes are of test" in str(plan)


def test_what_comes_next_and_what_cheaper_devices_do(workload):
    made = priced(cluster([2, 4]), 9.0, 1.0)
    objective = gx.Objective(goal="usd")
    plan = gx.plan(workload, made, objective=objective, time_limit_s=8.0)
    beside = plan.comparison
    assert beside is not None and beside.next_best is not None
    assert beside.next_best.value >= plan.value * (1 - 1e-6)
    cheaper = {change.what: change for change in beside.changes}
    for name in ("fast", "slow"):
        groups = tuple(
            replace(g, usd_per_hour=g.usd_per_hour * (0.8 if g.name == name else 1.0))
            for g in made.groups
        )
        then = gx.plan(workload, replace(made, groups=groups), objective=objective, time_limit_s=4)
        change = cheaper[f"{name} 20 % cheaper"]
        assert change.best.value == pytest.approx(then.value, rel=5e-3)
    assert "20 % cheaper: " in plan.explain() and "next best plan: " in plan.explain()


def test_links_at_which_the_gain_is_gone(workload):
    """Where no mesh but one has room for the whole model, the rest gains by links alone."""
    whole = gx.plan(workload, cluster([4]), objective=THROUGHPUT, time_limit_s=2.0)
    needed = max(mesh.needed_bytes for mesh in whole.meshes)
    made = of_two_vendors([1, 2], memory_bytes=needed)
    small = replace(made.kinds[1], memory_bytes=needed * 2 // 3)
    made = replace(made, kinds=(made.kinds[0], small))
    plan = gx.plan(workload, made, objective=THROUGHPUT, time_limit_s=8.0)
    beside = plan.comparison
    assert beside is not None and beside.single_mesh is not None
    assert beside.break_even is not None and beside.break_even > 1
    for factor, gains in ((0.9, True), (1.1, False)):
        slower = beside.break_even * factor
        links = tuple(
            replace(
                link,
                latency_s=link.latency_s * slower,
                bandwidth_bytes_per_s=link.bandwidth_bytes_per_s / slower,
            )
            for link in made.links
        )
        then = gx.plan(workload, replace(made, links=links), objective=THROUGHPUT, time_limit_s=4.0)
        assert (then.value < beside.single_mesh.value * (1 - 2e-3)) == gains
    assert "the gain over one mesh is zero" in str(plan)
