"""A plan beside its rivals: each figure against a search by hand or by brute force."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import gimlax as gx
from gimlax.devices.kinds import ANY_VENDOR
from gimlax.planning import Plan, plan
from gimlax.planning.deadline import OutOfTime
from gimlax.planning.explanation import compare
from gimlax.planning.explanation.variants import cheaper, forbidding, with_links
from gimlax.planning.limits import that_fit
from gimlax.planning.objective import Objective
from gimlax.planning.problem import on_meshes, spans
from gimlax.planning.search import search
from tests.planning.cases import cluster_of, kind, two_phases
from tests.planning.random_problems import problems
from tests.reference import layout_value, layouts, swapped_is_equal

FAST_COMPUTE = kind("compute", flops_per_s=1e13, bytes_per_s=1e9)
FAST_MEMORY = kind("memory", flops_per_s=1e9, bytes_per_s=1e12)


def split_plan(**links):
    """A plan over two meshes: neither holds the model."""
    small = [kind("a", memory_bytes=880_000), kind("b", memory_bytes=880_000)]
    return plan(two_phases(), cluster_of(small, **links))


def test_one_mesh_that_wins_is_the_plan_and_the_text_says_so():
    chosen = plan(two_phases(), cluster_of([kind("slow", flops_per_s=1e9), kind("fast")]))
    assert chosen.mesh_names == ("fast",)
    assert chosen.comparison.single_mesh.value == chosen.value
    assert chosen.comparison.break_even is None
    assert "one mesh wins" in str(chosen) and "'fast'" in str(chosen)


def test_a_plan_that_gains_over_one_mesh_says_by_how_much_and_until_which_link_speed():
    halves = [kind("a"), kind("b")]
    chosen = plan(two_phases(), cluster_of(halves), objective=Objective(goal="throughput"))
    single = chosen.comparison.single_mesh
    assert len(chosen.mesh_names) == 2 and single.value > chosen.value
    assert f"{1 - chosen.value / single.value:.1%} less" in str(chosen)
    assert "one mesh wins" not in str(chosen)
    slower = chosen.comparison.break_even
    for factor, gains in ((slower * 0.99, True), (slower * 1.01, False)):
        cluster = cluster_of(halves, latency_s=1e-6 * factor, bytes_per_s=1e10 / factor)
        again = plan(two_phases(), cluster, objective=Objective(goal="throughput"))
        assert (len(again.mesh_names) == 2) == gains


@pytest.mark.parametrize("room", [1.05, 1.5, 3.0])
def test_links_so_slow_that_a_limit_breaks_leave_no_gain_over_one_mesh(room):
    halves = [kind("a"), kind("b")]
    free = plan(two_phases(), cluster_of(halves), objective=Objective(goal="throughput"))
    objective = Objective(goal="throughput", max_latency_s=free.latency_s * room)
    slower = plan(two_phases(), cluster_of(halves), objective=objective).comparison.break_even
    assert slower < free.comparison.break_even or room > 2
    for factor, gains in ((slower * 0.99, True), (slower * 1.01, False)):
        cluster = cluster_of(halves, latency_s=1e-6 * factor, bytes_per_s=1e10 / factor)
        again = plan(two_phases(), cluster, objective=objective)
        assert (len(again.mesh_names) == 2) == gains


def test_where_no_mesh_can_do_it_alone_the_text_says_so():
    chosen = split_plan()
    assert chosen.comparison.single_mesh is None
    assert "no mesh can do it alone" in str(chosen)


def test_a_kind_that_stands_for_any_vendor_is_said_to():
    chosen = plan(
        two_phases(), cluster_of([replace(kind(name), vendor=ANY_VENDOR) for name in "ab"])
    )
    said = "single vendor: not known; the cluster has a kind that stands for any vendor's"
    assert said in str(chosen).splitlines()
    assert "of any" not in str(chosen)


def test_the_best_vendor_is_found_among_all():
    kinds = [
        replace(kind("a", flops_per_s=1e12), vendor="one"),
        replace(kind("b", flops_per_s=1e12), vendor="one"),
        replace(kind("c", flops_per_s=3e12), vendor="two"),
    ]
    goal = Objective(goal="throughput")
    chosen = plan(two_phases(), cluster_of(kinds), objective=goal)
    alone = {
        "one": plan(two_phases(), cluster_of(kinds[:2]), objective=goal),
        "two": plan(two_phases(), cluster_of(kinds[2:]), objective=goal),
    }
    best = min(alone, key=lambda vendor: alone[vendor].value)
    assert chosen.comparison.vendor == best
    assert chosen.comparison.single_vendor.value == pytest.approx(alone[best].value, rel=1e-9)
    assert f"best single vendor: {best}" in str(chosen)


@given(problem=problems(), goal=st.sampled_from(["latency", "throughput"]))
def test_every_rival_is_what_brute_force_finds(problem, goal):
    objective = Objective(goal=goal)
    values = {
        (cuts, meshes): layout_value(problem, goal, cuts, meshes)
        for cuts, meshes in layouts(problem.num_segments, problem.num_meshes)
    }
    values = {which: value for which, value in values.items() if value is not None}
    found = search(problem, objective)
    assert (found is None) == (not values)
    if found is None:
        return
    same = {(found.cuts, meshes) for meshes in mirrors(problem, found.meshes)}
    others = [value for which, value in values.items() if which not in same]
    singles = [value for (_, meshes), value in values.items() if len(set(meshes)) == 1]
    compared = compared_with(problem, objective, found)
    for rival, beaten in ((compared.next_best, others), (compared.single_mesh, singles)):
        assert (rival is None) == (not beaten)
        if rival:
            assert rival.value == pytest.approx(min(beaten), rel=1e-8)


def mirrors(problem, meshes):
    """The same stages with meshes that nothing tells apart in each other's place."""
    fits = that_fit(problem)
    return [
        other
        for other in itertools.permutations(range(problem.num_meshes), len(meshes))
        if all(a == b or swapped_is_equal(fits, a, b) for a, b in zip(other, meshes, strict=True))
    ]


def test_the_next_best_plan_is_not_the_same_on_an_equal_mesh():
    chosen = plan(two_phases(), cluster_of([kind("a"), kind("b"), kind("c", flops_per_s=5e11)]))
    assert chosen.mesh_names == ("a",)
    assert chosen.comparison.next_best.meshes != ("b",)
    assert chosen.comparison.next_best.value > chosen.value * 1.000001


def compared_with(problem, objective, found):
    names = [f"m{index}" for index in range(problem.num_meshes)]
    return compare(
        (problem,),
        objective,
        cluster_of([kind(name) for name in names]),
        found,
        free=lambda variants: search(variants[0], objective),
        given=lambda variants: search(variants[0], objective),
        is_free=True,
    )


@given(problem=problems(most_meshes=3))
def test_variants_change_one_thing(problem):
    last = problem.num_meshes - 1
    few = on_meshes(problem, [last])
    assert few.num_meshes == 1 and np.array_equal(few.stage_s[0], problem.stage_s[last])
    assert np.array_equal(few.parked_bytes[0], problem.parked_bytes[last])
    ends = np.arange(problem.num_meshes) == last
    forbidden = forbidding(problem, ends, 0, 1).stage_s
    assert np.isinf(forbidden[last, 0, 1])
    assert np.array_equal(forbidden[~ends], problem.stage_s[~ends])
    slow = with_links(problem, 2.0, (0, last)).transfer_s
    assert np.array_equal(slow[last, 0], 2 * problem.transfer_s[last, 0])
    paid = cheaper(problem, [0], 0.5).usd_per_s
    assert np.array_equal(paid, problem.usd_per_s * ([0.5] + [1.0] * last), equal_nan=True)


def test_a_faster_link_and_a_cheaper_device_are_planned_again():
    cluster = cluster_of([kind("a"), kind("b", flops_per_s=8e11)], bytes_per_s=1e7)
    cluster = replace(
        cluster,
        meshes=tuple(
            replace(mesh, usd_per_hour=price)
            for mesh, price in zip(cluster.meshes, (1.1, 0.9), strict=True)
        ),
    )
    objective = Objective(goal="usd")
    chosen = plan(two_phases(), cluster, objective=objective)
    found = {change.what: change for change in chosen.comparison.changes}
    for name in "ab":
        mine = replace(
            cluster,
            meshes=tuple(
                replace(m, usd_per_hour=m.usd_per_hour * (0.8 if m.name == name else 1))
                for m in cluster.meshes
            ),
        )
        again = plan(two_phases(), mine, objective=objective)
        change = found[f"{name} 20 % cheaper"]
        assert change.best.value == pytest.approx(again.value, rel=1e-9)
        assert change.moves == (again.mesh_names != chosen.mesh_names)
    assert {c.moves for c in found.values()} == {True, False}  # tested both ways
    faster = plan(
        two_phases(),
        replace(
            cluster,
            links=tuple(
                replace(
                    link,
                    latency_s=link.latency_s / 2,
                    bandwidth_bytes_per_s=link.bandwidth_bytes_per_s * 2,
                )
                for link in cluster.links
            ),
        ),
        objective=objective,
    )
    changed = found["the link between 'a' and 'b' twice as fast"]
    assert changed.best.value == pytest.approx(faster.value, rel=1e-9)


def test_a_plan_with_given_cuts_says_what_freedom_would_gain():
    cluster = cluster_of([kind("slow", flops_per_s=1e9), kind("fast")])
    chosen = plan(two_phases(), cluster, meshes=("slow", "fast"))
    assert chosen.comparison.next_best is None
    assert chosen.comparison.free.meshes == ("fast",)
    assert "with cuts and meshes free: all on 'fast'" in chosen.explain()
    assert "more, as cuts or meshes were given" in str(chosen)


def test_an_explanation_names_what_binds_what_is_full_and_where_figures_are_from():
    chosen = split_plan(bytes_per_s=1e5)
    text = chosen.explain()
    assert chosen.comparison.transfer_share > 0.5 and "transfers take" in text
    assert "link" in str(chosen).splitlines()[2]
    assert chosen.comparison.crowded and "no room for a segment" in text
    assert "seconds of 'a', 'b': card" in text and "declared" in text
    assert "next best plan" in text or chosen.comparison.next_best is None


def test_a_comparison_goes_through_json():
    chosen = split_plan()
    again = Plan.from_json(chosen.to_json())
    assert again == chosen and again.explain() == chosen.explain()
    assert again.to_json() == chosen.to_json()


def test_diff_names_segments_that_moved_and_figures_that_changed():
    cluster = cluster_of([kind("a"), kind("b", flops_per_s=5e11)])
    first = gx.plan(two_phases(), cluster, meshes=("a", "b"), cuts=[3])
    second = gx.plan(two_phases(), cluster, meshes=("a", "b"), cuts=[5])
    text = first.diff(second)
    assert f"{first.segments[3]} .. {first.segments[4]}: b -> a" in text
    assert "latency: " in text and "memory of 'a'" in text
    assert first.diff(first) == "no difference"
    limited = Objective(goal="throughput", max_latency_s=1.0)
    third = gx.plan(two_phases(), cluster, objective=limited)
    assert "objective: latency -> throughput, max_latency_s 1" in first.diff(third)
    assert spans(first.cuts, len(first.segments)) != spans(second.cuts, len(first.segments))


def test_a_comparison_that_takes_too_long_is_left_out_and_the_text_says_so(monkeypatch):
    def too_long(*_, **__):
        raise OutOfTime

    monkeypatch.setattr("gimlax.planning.meshes.compare", too_long)
    chosen = plan(two_phases(), cluster_of([kind("a"), kind("b")]), time_limit_s=60)
    assert chosen.comparison is None
    assert "not compared with other plans" in str(chosen)
    assert Plan.from_json(chosen.to_json()) == chosen
