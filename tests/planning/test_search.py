"""The search finds what brute force finds, keeps every limit, and skips what cannot differ."""

from dataclasses import replace
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gimlax.planning import orders
from gimlax.planning.deadline import OutOfTime
from gimlax.planning.objective import Objective
from gimlax.planning.orders import MAX_STATES, free_orders, twins
from gimlax.planning.paths import _MOST_ENTRIES, Cost, cheapest_path, shortest_period
from gimlax.planning.periods import PeriodSearch
from gimlax.planning.problem import Problem
from gimlax.planning.search import search
from tests.planning.random_problems import problems
from tests.reference import best_layout_value, layout_value, swapped_is_equal

GOALS = ("latency", "throughput")


def check(problem, goal, **fixed):
    found = search(problem, Objective(goal=goal), **fixed)
    best = best_layout_value(problem, goal, **fixed)
    if best is None:
        assert found is None
        return
    assert found is not None
    assert found.value == pytest.approx(best, rel=1e-8, abs=1e-12)
    again = layout_value(problem, goal, found.cuts, found.meshes)
    assert again == pytest.approx(found.value, rel=1e-12)


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


def uniform(num_segments, num_meshes, seconds_of_mesh):
    """Equal segments without memory limits, and meshes that all reach each other."""
    length = np.maximum(np.arange(num_segments + 1)[None] - np.arange(num_segments + 1)[:, None], 0)
    stage_s = (
        np.where(length > 0, length * 1.0, np.inf)[None] * np.array(seconds_of_mesh)[:, None, None]
    )
    hop_s = np.where(np.eye(num_meshes, dtype=bool), 0.0, 0.25)
    return Problem(
        stage_s=stage_s,
        transfer_s=np.repeat(hop_s[:, :, None], num_segments + 1, axis=2),
        shared_s=np.zeros((0, *stage_s.shape)),
        added_bytes=np.where(np.isfinite(stage_s), length * 1.0, 0.0),
        largest_bytes=np.zeros((0, *stage_s.shape)),
        parked_bytes=np.zeros_like(stage_s),
        capacity_bytes=np.full(num_meshes, np.inf),
        pool=np.arange(num_meshes),
        usd_per_s=np.ones(num_meshes),
        busy_watts=np.ones(num_meshes),
        idle_watts=np.zeros(num_meshes),
    )


def test_equal_meshes_are_searched_in_one_order():
    assert len(free_orders(uniform(30, 12, [1.0] * 12), None)) == 12
    # Two kinds of three: a state per number used of each kind and kind of the last one.
    assert len(free_orders(uniform(30, 6, [1.0, 2.0] * 3), None)) == 2 * 3 * 4


def test_equal_meshes_share_equal_work_evenly():
    found = search(uniform(160, 16, [1.0] * 16), Objective(goal="throughput"))
    assert found is not None
    assert found.cuts == tuple(range(10, 160, 10))
    assert found.value == 10


def test_too_many_kinds_of_meshes_for_all_orders_are_tried_by_local_search():
    problem = uniform(30, 20, [1.0 + k for k in range(20)])
    assert free_orders(problem, None) is None
    found = search(problem, Objective())
    assert found is not None
    assert (found.meshes, found.value, found.method) == ((0,), 30.0, "local")
    spread = search(problem, Objective(goal="throughput"))
    assert spread is not None and spread.method == "local"
    # In 11 seconds they get through 11 + 5 + 3 + 2 + 2 + 6 * 1 = 29 segments, in 12 through 35.
    assert spread.value == 12.0
    two = search(problem, Objective(), cuts=2)
    assert two is not None and len(two.meshes) == 2


def test_meshes_that_nothing_joins_are_never_combined():
    problem = uniform(8, 3, [1.0, 2.0, 3.0])
    apart = replace(problem, transfer_s=np.where(problem.transfer_s > 0, np.inf, 0.0))
    assert len(free_orders(apart, None)) == 3
    found = search(apart, Objective(goal="throughput"))
    assert found is not None and found.meshes == (0,)


@pytest.mark.parametrize("goal", GOALS)
def test_a_model_of_162_segments_on_four_meshes_keeps_its_limits(goal):
    problem = uniform(162, 4, [1.0, 1.3, 1.7, 2.9])
    tight = replace(problem, capacity_bytes=np.full(4, 60.0))
    found = search(tight, Objective(goal=goal))
    assert found is not None
    assert layout_value(tight, goal, found.cuts, found.meshes) == pytest.approx(found.value)
    speeds = (1.0, 1.3, 1.7, 2.9)
    if goal == "latency":  # the fastest two are full, the third takes the rest
        assert found.value == pytest.approx(60 * 1.0 + 60 * 1.3 + 42 * 1.7 + 2 * 0.25)
    else:  # the least time in which all of them together get through
        times = sorted({k * s for s in speeds for k in range(1, 162)})
        enough = (
            t for t in times if sum(min(60, t // s + (t % s > s - 1e-9)) for s in speeds) >= 162
        )
        assert found.value == pytest.approx(next(enough))


@given(hops=st.lists(st.floats(0.1, 9), min_size=7, max_size=7))
def test_what_crosses_one_link_twice_adds_up(hops):
    problem = uniform(6, 2, [1e-3, 1e-3])
    transfer_s = problem.transfer_s.copy()
    transfer_s[0, 1] = hops
    check(replace(problem, transfer_s=transfer_s), "throughput", meshes=(0, 1, 0, 1))


def test_equal_meshes_in_different_memories_are_not_the_same():
    problem = replace(
        uniform(4, 3, [2.0, 2.0, 1.0]),
        capacity_bytes=np.full(3, 3.0),
        pool=np.array([0, 1, 0]),  # the first and the fast one share three bytes
    )
    check(problem, "latency")
    found = search(problem, Objective(goal="latency"))
    assert found is not None and sorted(found.meshes) == [1, 2]


def test_a_search_that_is_late_returns_its_best_and_says_so():
    problem = uniform(40, 4, [1.0, 1.3, 1.7, 2.9])
    goal = Objective(goal="throughput")
    best = search(problem, goal)
    asked = []

    def is_late():
        asked.append(None)
        return len(asked) > 3

    found = search(problem, goal, is_late=is_late)
    assert found is not None and best is not None
    assert found.method == "stopped" and best.method == "exact"
    assert found.value >= best.value
    again = layout_value(problem, "throughput", found.cuts, found.meshes)
    assert again == pytest.approx(found.value)
    with pytest.raises(OutOfTime):  # nothing on one mesh would be an answer
        search(problem, goal, cuts=2, is_late=lambda: True)


@given(problem=problems(), goal=st.sampled_from(GOALS))
def test_what_is_late_from_the_start_is_the_best_single_mesh(problem, goal):
    singles = [
        value
        for mesh in range(problem.num_meshes)
        if (value := layout_value(problem, goal, (), (mesh,))) is not None
    ]
    if not singles:
        return
    found = search(problem, Objective(goal=goal), is_late=lambda: True)
    assert found is not None and (found.cuts, found.method) == ((), "stopped")
    assert found.value == pytest.approx(min(singles), rel=1e-12)


@pytest.mark.parametrize("limit", [{"max_usd_per_request": 3.0}, {"max_joules_per_request": 5.0}])
def test_the_single_mesh_that_is_tried_first_keeps_limits(limit):
    problem = replace(
        uniform(4, 2, [1.0, 1.2]), usd_per_s=np.array([9.0, 0.1]), busy_watts=np.array([9.0, 1.0])
    )
    found = search(problem, Objective(**limit), is_late=lambda: True)
    assert found is not None and (found.meshes, found.value) == ((1,), pytest.approx(4.8))


class Patience:
    """Is late after so many questions."""

    def __init__(self, most):
        self.most, self.asked = most, 0

    def __call__(self):
        self.asked += 1
        return self.asked > self.most


@pytest.mark.parametrize("goal", GOALS)
def test_a_local_search_that_is_late_anywhere_returns_its_best(goal):
    objective = Objective(goal=goal)
    problem = uniform(12, 6, [1.0 + k / 7 for k in range(6)])
    with (
        mock.patch("gimlax.planning.orders.MAX_STATES", 20),
        mock.patch("gimlax.planning.search._TRIES", 40),
    ):
        endless = Patience(10**9)
        best = search(problem, objective, is_late=endless)
        single = search(problem, objective, is_late=Patience(0))
        assert best is not None and single is not None and best.method == "local"
        value = single.value
        # Where a question is the last one, some neighbour's search is under way.
        for most in np.linspace(0, endless.asked - 1, 60).astype(int).tolist():
            found = search(problem, objective, is_late=Patience(most))
            assert found is not None and found.method == "stopped", most
            assert best.value <= found.value <= value  # more time is never worse
            value = found.value


def joined_in_a_row(num_meshes, num_segments, seconds_of_mesh):
    problem = uniform(num_segments, num_meshes, seconds_of_mesh)
    near = np.abs(np.arange(num_meshes)[:, None] - np.arange(num_meshes)) <= 1
    return replace(problem, transfer_s=np.where(near[:, :, None], problem.transfer_s, np.inf))


@settings(max_examples=200)
@given(problem=problems(most_meshes=6))
def test_twins_are_those_that_nothing_tells_apart(problem):
    expected = [
        next((a for a in range(b - 1, -1, -1) if swapped_is_equal(problem, a, b)), None)
        for b in range(problem.num_meshes)
    ]
    assert twins(problem) == expected


def test_many_equal_meshes_are_compared_once_each_and_in_time():
    count = mock.patch("gimlax.planning.orders._swappable", wraps=orders._swappable)
    with count as asked:
        assert sum(of is not None for of in twins(uniform(3, 300, [1.0] * 300))) == 299
    assert asked.call_count == 299
    with count as asked:  # in a row no two are equal, and one boundary tells that
        assert sum(of is not None for of in twins(joined_in_a_row(100, 3, [1.0] * 100))) == 0
    assert asked.call_count < 1000
    with pytest.raises(OutOfTime):
        twins(joined_in_a_row(100, 3, [1.0] * 100), Patience(50))
    with pytest.raises(OutOfTime):
        free_orders(joined_in_a_row(100, 3, [1.0] * 100), 3, is_late=Patience(250))


def test_orders_follow_links_only_and_end_early_if_there_are_too_many():
    problem = uniform(25, 24, [1.0 + k for k in range(24)])
    patience = Patience(10**9)
    assert free_orders(problem, None, is_late=patience) is None
    assert patience.asked < MAX_STATES / 2  # most states were only counted
    assert len(free_orders(joined_in_a_row(40, 25, [1.0] * 40), None)) == sum(
        2 * (40 - size + 1) if size > 1 else 40 for size in range(1, 26)
    )


def test_meshes_that_no_order_uses_are_not_in_the_tables_of_a_search():
    problem = uniform(6, 30, [1.0 + k for k in range(30)])
    alone = np.full_like(problem.transfer_s, np.inf)
    alone[np.arange(30), np.arange(30)] = 0.0
    alone[7, 9] = alone[9, 7] = 0.25
    with mock.patch("gimlax.planning.search.PeriodSearch", wraps=PeriodSearch) as made:
        found = search(replace(problem, transfer_s=alone), Objective(goal="throughput"))
    assert found is not None and found.meshes == (0,)
    assert [call.args[0].num_meshes for call in made.call_args_list] == [2]


@given(problem=problems(), num_stages=st.integers(1, 3))
def test_the_shortest_period_is_that_of_brute_force_where_nothing_is_shared(problem, num_stages):
    num_stages = min(num_stages, problem.num_segments, problem.num_meshes)
    apart = replace(
        problem,
        shared_s=problem.shared_s[:0],
        capacity_bytes=np.full(problem.num_meshes, np.inf),
    )
    best = best_layout_value(apart, "throughput", cuts=num_stages)
    cost = Cost(stage=apart.stage_s, hop=apart.transfer_s)
    found = shortest_period(free_orders(apart, num_stages), cost)
    assert found == (np.inf if best is None else pytest.approx(best, rel=1e-12))


def test_a_period_that_some_layout_has_takes_three_passes():
    problem = uniform(30, 5, [1.0 + k / 3 for k in range(5)])
    passes = mock.Mock(wraps=cheapest_path)
    with mock.patch("gimlax.planning.periods.cheapest_path", passes):
        found = search(problem, Objective(goal="throughput"))
    assert found is not None and found.method == "exact"
    assert passes.call_count <= 3


def test_a_pass_over_states_asks_for_the_time():
    problem = uniform(30, 8, [1.0 + k for k in range(8)])
    states = free_orders(problem, None)
    cost = Cost(stage=problem.stage_s, hop=problem.transfer_s)
    patience = Patience(10**9)
    assert cheapest_path(states, cost, patience) == cheapest_path(states, cost)
    assert patience.asked >= len(states) * 31**2 / _MOST_ENTRIES
    with pytest.raises(OutOfTime):
        cheapest_path(states, cost, Patience(5))


@settings(max_examples=150)
@given(problem=problems(most_segments=5, most_meshes=4), goal=st.sampled_from(GOALS))
def test_near_layouts_are_possible_and_never_better_than_the_best(problem, goal):
    objective = Objective(goal=goal)
    with mock.patch("gimlax.planning.orders.MAX_STATES", 0):
        near = search(problem, objective)
    best = search(problem, objective)
    assert (near is None) == (best is None)
    if near is not None and best is not None:
        assert near.value >= best.value * (1 - 1e-8)
        again = layout_value(problem, goal, near.cuts, near.meshes)
        assert again == pytest.approx(near.value)
