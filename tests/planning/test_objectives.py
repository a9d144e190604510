"""Every goal, under limits, is met as well as brute force meets it: over 10,000 cases.

All layouts of a problem are tried once, by plain loops, and many objectives are then compared with
that table.
"""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gimlax.errors import SpecError
from gimlax.planning.objective import TERMS, Objective
from gimlax.planning.search import search
from tests.planning.random_problems import problems
from tests.reference import layout_terms, layouts

LIMITS = ("max_latency_s", "min_requests_per_s", "max_usd_per_request", "max_joules_per_request")


def terms_of_all(problem, **fixed):
    tried = layouts(problem.num_segments, problem.num_meshes, **fixed)
    return [terms for layout in tried if (terms := layout_terms(problem, *layout)) is not None]


@st.composite
def objectives(draw, table):
    """A goal or a weighted sum, and limits that some layout meets exactly, nearly, or not."""
    goal = draw(st.sampled_from([*TERMS, "weighted"]))
    weights = {}
    if goal == "weighted":
        weights = draw(
            st.dictionaries(st.sampled_from(TERMS), st.sampled_from([0.1, 1.0, 3.0]), min_size=1)
        )
    limits = {}
    for k in draw(st.sets(st.integers(0, 3), max_size=2)):
        value = draw(st.sampled_from([terms[k] for terms in table] or [1.0]))
        value *= draw(st.sampled_from([1.0, 0.9, 1.1]))
        if value > 0:
            limits[LIMITS[k]] = 1 / value if k == 1 else value
    return Objective(goal=goal, weights=weights, **limits)


def least(objective, table):
    """The least value among layouts that keep the limits (with the slack that a search has)."""
    weights, limits = objective.term_weights, objective.term_limits
    values = [
        sum(w * t for w, t in zip(weights, terms, strict=True))
        for terms in table
        if all(t <= most * (1 + 1e-9) for t, most in zip(terms, limits, strict=True))
    ]
    return min(values, default=None)


def check(problem, objective, table, **fixed):
    found = search(problem, objective, **fixed)
    best = least(objective, table)
    assert (found is None) == (best is None)
    if found is None:
        return
    assert found.value == pytest.approx(best, rel=1e-8, abs=1e-12)
    assert found.terms == pytest.approx(layout_terms(problem, found.cuts, found.meshes))
    assert found.method == "exact"


@settings(max_examples=900)
@given(problem=problems(most_segments=6, most_meshes=3), data=st.data())
def test_every_goal_within_limits_is_met_as_well_as_by_brute_force(problem, data):
    table = terms_of_all(problem)
    for _ in range(10 if table else 1):
        check(problem, data.draw(objectives(table)), table)


@settings(max_examples=100)
@given(problem=problems(fewest_segments=7, most_segments=9, most_meshes=3), data=st.data())
def test_chains_of_nine_segments(problem, data):
    table = terms_of_all(problem)
    for _ in range(10 if table else 1):
        check(problem, data.draw(objectives(table)), table)


@settings(max_examples=120)
@given(problem=problems(most_segments=6, most_meshes=3), data=st.data())
def test_meshes_that_come_back_are_paid_once(problem, data):
    mesh = st.integers(0, problem.num_meshes - 1)
    meshes = tuple(data.draw(st.lists(mesh, min_size=1, max_size=min(4, problem.num_segments))))
    table = terms_of_all(problem, meshes=meshes)
    for _ in range(5):
        check(problem, data.draw(objectives(table)), table, meshes=meshes)


@pytest.mark.parametrize(
    ("wishes", "message"),
    [
        ({"goal": "weighted"}, "goal is 'weighted', but weights is empty"),
        ({"weights": {"usd": 1.0}}, "weights are given, but goal is 'latency'"),
        ({"goal": "weighted", "weights": {"speed": 1.0}}, "weights name 'speed'; give 'latency'"),
        ({"goal": "weighted", "weights": {"usd": -1.0}}, "the weight of 'usd' is -1.0"),
        ({"goal": "weighted", "weights": (("usd", 1), ("usd", 2))}, "name a term twice"),
        ({"max_latency_s": -1.0}, "max_latency_s is -1.0; give a positive number"),
        ({"max_latency_s": math.nan}, "max_latency_s is nan"),
        ({"min_requests_per_s": 0}, "min_requests_per_s is 0"),
        ({"max_usd_per_request": "1"}, "max_usd_per_request is '1'"),
        ({"max_joules_per_request": True}, "max_joules_per_request is True"),
    ],
)
def test_an_objective_that_nothing_could_meet(wishes, message):
    with pytest.raises(SpecError, match=message):
        Objective(**wishes)


def test_all_mistakes_of_an_objective_are_told_at_once():
    with pytest.raises(SpecError, match=r"goal is 'speed'.*; max_latency_s is -1"):
        Objective(goal="speed", max_latency_s=-1)
