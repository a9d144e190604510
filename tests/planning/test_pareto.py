"""The front of two goals is that of brute force, and each plan on it answers its own question."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gimlax as gx
from gimlax.errors import PlanError, SpecError
from gimlax.graph import chain
from gimlax.planning.fronts import front
from gimlax.planning.objective import TERMS
from gimlax.planning.search import search
from tests.planning.cases import cluster_of, kind, two_phases
from tests.planning.random_problems import problems
from tests.reference import beaten_by_none, layout_terms, layouts

CHAIN = chain(two_phases(prompt_tokens=4))


@settings(max_examples=300)
@given(
    problem=problems(most_segments=5, most_meshes=3),
    goals=st.permutations(TERMS).map(lambda order: tuple(order[:2])),
)
def test_the_front_of_two_goals_is_that_of_brute_force(problem, goals):
    tried = layouts(problem.num_segments, problem.num_meshes)
    table = [terms for layout in tried if (terms := layout_terms(problem, *layout)) is not None]
    pick = [TERMS.index(goal) for goal in goals]
    expected = beaten_by_none([tuple(round(terms[k], 9) for k in pick) for terms in table])
    found = front(goals, lambda objective: search(problem, objective), {})
    points = [tuple(round(point.terms[k], 9) for k in pick) for _, point in found]
    assert len(points) == len(expected)
    for point, wanted in zip(points, expected, strict=True):
        assert point == pytest.approx(wanted, abs=1e-8)
    for objective, point in found:
        assert objective.goal == goals[0]
        assert search(problem, objective).value == pytest.approx(point.value, rel=1e-8, abs=1e-12)


def test_a_front_of_plans_trades_seconds_for_dollars():
    two = cluster_of([kind("a"), kind("b", flops_per_s=1e11, bytes_per_s=3e10)])
    priced = [replace(m, usd_per_hour=p) for m, p in zip(two.meshes, (9.0, 1.0), strict=True)]
    plans = gx.pareto(CHAIN, replace(two, meshes=tuple(priced)))
    assert len(plans) >= 2
    assert [p.latency_s for p in plans] == sorted(p.latency_s for p in plans)
    assert [p.usd for p in plans] == sorted((p.usd for p in plans), reverse=True)
    assert plans[0].mesh_names == ("a",) and plans[-1].mesh_names == ("b",)
    assert all(p.bound <= p.value and p.method == "exact" for p in plans)
    with pytest.raises(SpecError, match="dollars are asked for"):
        gx.pareto(CHAIN, two)


def test_points_of_a_front_keep_limits():
    two = cluster_of([kind("a"), kind("b", flops_per_s=1e11, bytes_per_s=3e10)])
    priced = [replace(m, usd_per_hour=p) for m, p in zip(two.meshes, (9.0, 1.0), strict=True)]
    two = replace(two, meshes=tuple(priced))
    free = gx.pareto(CHAIN, two)
    middle = (free[0].latency_s + free[-1].latency_s) / 2
    kept = gx.pareto(CHAIN, two, limits={"max_latency_s": middle})
    assert 0 < len(kept) < len(free)
    expected = [plan.value for plan in free if plan.latency_s <= middle]
    assert [plan.value for plan in kept] == pytest.approx(expected)
    with pytest.raises(PlanError, match="max_latency_s is 1e-09, but no layout has less than"):
        gx.pareto(CHAIN, two, limits={"max_latency_s": 1e-9})
    with pytest.raises(SpecError, match="pareto: limits name 'latency'; give some of max_"):
        gx.pareto(CHAIN, two, limits={"latency": 1.0})


@pytest.mark.parametrize("goals", [("latency",), ("latency", "latency"), ("latency", "weighted")])
def test_goals_that_make_no_front(goals):
    with pytest.raises(SpecError, match=r"pareto: goals are .*; give two different ones of"):
        gx.pareto(CHAIN, cluster_of([kind("a")]), goals=goals)
