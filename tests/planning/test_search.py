"""The search finds what brute force finds, keeps every limit, and skips what cannot differ."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gimlax.planning.search import search
from tests.planning.random_problems import problems
from tests.reference import best_layout_value, layout_value

GOALS = ("latency", "throughput")


def check(problem, goal, **fixed):
    found = search(problem, goal, **fixed)
    best = best_layout_value(problem, goal, **fixed)
    if best is None:
        assert found is None
        return
    assert found is not None
    assert found.value_s == pytest.approx(best, rel=1e-8, abs=1e-12)
    again = layout_value(problem, goal, found.cuts, found.meshes)
    assert again == pytest.approx(found.value_s, rel=1e-12)


@settings(max_examples=400)
@given(problem=problems(), goal=st.sampled_from(GOALS))
def test_a_free_choice_is_as_good_as_brute_force(problem, goal):
    check(problem, goal)


@settings(max_examples=200)
@given(problem=problems(), goal=st.sampled_from(GOALS), num_stages=st.integers(1, 4))
def test_a_number_of_stages_is_kept(problem, goal, num_stages):
    check(problem, goal, cuts=num_stages)


@settings(max_examples=200)
@given(problem=problems(), goal=st.sampled_from(GOALS), data=st.data())
def test_given_cuts_are_kept(problem, goal, data):
    inner = data.draw(st.lists(st.booleans(), min_size=5, max_size=5))
    check(problem, goal, cuts=tuple(b for b in range(1, problem.num_segments) if inner[b]))


@settings(max_examples=600)
@given(
    problem=problems(most_segments=6, most_meshes=3), goal=st.sampled_from(GOALS), data=st.data()
)
def test_a_sequence_of_meshes_that_repeat_is_as_good_as_brute_force(problem, goal, data):
    mesh = st.integers(0, problem.num_meshes - 1)
    meshes = tuple(data.draw(st.lists(mesh, min_size=1, max_size=min(5, problem.num_segments))))
    check(problem, goal, meshes=meshes)
