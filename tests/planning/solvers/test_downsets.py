"""Splits over down-sets are as good as the best of all assignments, or say how far they may be."""

import itertools

import numpy as np
import pytest

from gimlax.errors import PlanError, SpecError
from gimlax.planning.solvers import questions
from gimlax.planning.solvers.blocks import contract
from gimlax.planning.solvers.dag import faults, loads_s
from gimlax.planning.solvers.dag_bound import lower_bound_s
from gimlax.planning.solvers.downsets import solve_downsets
from gimlax.planning.solvers.ideals import grow, members, tabulate
from gimlax.planning.solvers.pair_loads import PairLoads
from tests.planning.solvers.dag_twin import best_s, problem_of, random_problem, towers

CLOSE = 1e-9


@pytest.mark.parametrize("seed", range(10))
def test_no_assignment_is_better(seed):
    compare_with_brute_force(seed, num_cases=1000)


@pytest.mark.parametrize("seed", range(10))
def test_no_assignment_is_better_where_each_question_looks_for_its_down_sets(seed, monkeypatch):
    monkeypatch.setattr(questions, "FEW", 0)
    compare_with_brute_force(100 + seed, num_cases=150)


def compare_with_brute_force(seed, num_cases):
    rng = np.random.default_rng(seed)
    for case in range(num_cases):
        problem = random_problem(rng)
        best = best_s(problem)
        if best == np.inf:
            with pytest.raises(PlanError):
                solve_downsets(problem)
            continue
        found = solve_downsets(problem)
        assert found.value_s == pytest.approx(best, rel=CLOSE, abs=CLOSE), f"case {case}"
        assert found.proven and found.bound_s == found.value_s and found.gap == 0
        assert found.independent_bound_s <= best * (1 + CLOSE) + CLOSE, f"case {case}"
        assert not faults(problem, found.assignment), f"case {case}"
        assert loads_s(problem, found.assignment).max() == found.value_s


def test_tiles_say_what_whole_tables_say(monkeypatch):
    problem = towers(6, num_towers=3, output_s=np.linspace(0.1, 2, 20), num_accelerators=3)
    whole = solve_downsets(problem)
    monkeypatch.setattr(questions, "SMALL", 10)
    monkeypatch.setattr("gimlax.planning.solvers.pair_loads.SMALL", 10)
    monkeypatch.setattr("gimlax.planning.solvers.sweep.ROWS", 7)
    monkeypatch.setattr("gimlax.planning.solvers.sweep.COLUMNS", 11)
    tiled = solve_downsets(problem)
    assert tiled.proven and tiled.value_s == pytest.approx(whole.value_s, rel=CLOSE)
    assert tiled.num_ideals == 7**3 + 2


def test_growing_limits_find_what_one_question_finds(monkeypatch):
    monkeypatch.setattr(questions, "SMALL", 3)
    rng = np.random.default_rng(77)
    for _ in range(150):
        problem = random_problem(rng)
        best = best_s(problem)
        if best < np.inf:
            found = solve_downsets(problem)
            assert found.proven and found.value_s == pytest.approx(best, rel=CLOSE, abs=CLOSE)


def test_a_sample_of_down_sets_gives_a_split_with_an_honest_gap(monkeypatch):
    monkeypatch.setattr(questions, "FEW", 0)
    monkeypatch.setattr(questions, "MOST", 3)
    rng = np.random.default_rng(5)
    for _ in range(60):
        problem = random_problem(rng, num_nodes=7)
        best = best_s(problem)
        if best == np.inf:
            continue
        try:
            found = solve_downsets(problem)
        except PlanError:
            continue  # memory lets no order of the sample through
        assert not faults(problem, found.assignment)
        assert found.value_s == pytest.approx(best, rel=CLOSE) or not found.proven
        assert found.bound_s <= best * (1 + CLOSE) + CLOSE
        assert found.value_s >= best * (1 - CLOSE)


def test_time_that_is_over_leaves_the_best_split_and_its_gap():
    ticks = itertools.count()
    problem = towers(9, num_towers=3, output_s=np.linspace(0.1, 2, 29), num_accelerators=4)
    exact = solve_downsets(problem)
    hurried = solve_downsets(problem, time_limit_s=44, clock=lambda: float(next(ticks)))
    assert exact.proven and not hurried.proven
    assert hurried.bound_s <= exact.value_s <= hurried.value_s
    assert not faults(problem, hurried.assignment)


def test_branches_far_too_many_end_in_time():
    problem = towers(4, num_towers=60, num_accelerators=5, output_s=np.full(242, 0.01))
    found = solve_downsets(problem, time_limit_s=3)
    assert not faults(problem, found.assignment)
    assert found.gap < 0.05


def test_pairs_of_down_sets_carry_the_loads_of_their_difference():
    rng = np.random.default_rng(3)
    for _ in range(40):
        problem = random_problem(rng, num_nodes=6)
        blocks = contract(problem)
        masks = grow(blocks, [0], 10**6, lambda: False)
        ideals = tabulate(blocks, members(blocks, masks))
        assert {ideals.mask(i) for i in range(len(ideals))} == masks
        pairs = PairLoads(ideals, problem.capacity_bytes)
        everything = np.arange(len(ideals)), slice(0, len(ideals))
        loads = pairs.accelerator(*everything)
        for i, inner in enumerate(map(ideals.mask, range(len(ideals)))):
            for j, outer in enumerate(map(ideals.mask, range(len(ideals)))):
                if inner & ~outer:
                    assert loads[i, j] == np.inf
                elif loads[i, j] < np.inf:
                    held = outer & ~inner
                    paid = sum(w for net, w in blocks.nets if net & held and net & ~held)
                    own = sum(blocks.accelerator_s[b] for b in range(6) if held >> b & 1)
                    assert loads[i, j] == pytest.approx(own + paid, abs=CLOSE)


def test_constants_do_not_multiply_down_sets():
    n = 40
    constants = problem_of(
        [1.0] * n + [0.0] * n,
        [(i, i + 1) for i in range(n - 1)] + [(n + i, i) for i in range(n)],
        output_s=np.full(2 * n, 0.5),
    )
    found = solve_downsets(constants)
    assert found.num_ideals == n + 1
    assert found.value_s == pytest.approx(n / 2 + 0.5)


def test_bound_knows_work_size_and_crowding():
    assert lower_bound_s(problem_of([3.0, 1.0, 2.0])) == 3.0
    assert lower_bound_s(problem_of([2.0, 2.0, 2.0])) == 4.0
    assert lower_bound_s(problem_of([1.0] * 9)) == pytest.approx(4.5)


def test_backward_nodes_stay_with_their_colour_and_do_not_order_devices():
    times, edges = [1.0, 1.0, 1.0, 1.0], [(0, 1), (1, 2), (2, 3)]
    found = solve_downsets(
        problem_of(
            times,
            edges,
            backward=np.array([False, False, True, True]),
            colour=np.array([0, 1, 1, 0]),
        )
    )
    assert found.value_s == 2.0
    assert found.assignment[0] == found.assignment[3] != found.assignment[1]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"accelerator_s": np.array([1.0, -2.0])}, "accelerator_s of node 1 is -2"),
        ({"output_s": np.array([np.nan, 0.0])}, "output_s of node 0 is nan"),
        ({"cpu_s": np.zeros(3)}, "cpu_s has 3 entries for 2 nodes"),
        ({"supported": np.ones(1, bool)}, "supported has 1 entries for 2 nodes"),
        ({"edges": np.array([[0, 7]])}, "names node 7, and nodes are 0 to 1"),
        ({"edges": np.array([[0, 1], [1, 0]])}, r"cycle through nodes \[0, 1\]"),
        ({"edges": np.array([[1, 1]])}, r"cycle through nodes \[1\]"),
        ({"num_accelerators": 0}, "no device"),
        ({"num_cpus": -1}, "-1 CPUs"),
        ({"capacity_bytes": -1.0}, "capacity_bytes is -1"),
        (
            {"edges": np.array([[0, 1]]), "backward": np.array([True, False])},
            "backward node 0 feeds forward node 1",
        ),
    ],
)
def test_graphs_that_cannot_be_are_refused(changes, says):
    with pytest.raises(SpecError, match=says):
        problem_of([1.0, 1.0], **changes)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"num_bytes": np.array([5.0, 1.0]), "capacity_bytes": 3.0}, "2 are missing"),
        ({"supported": np.array([True, False])}, "node 1 runs on no accelerator"),
        ({"num_bytes": np.array([3.0, 3.0]), "capacity_bytes": 3.0, "num_accelerators": 1}, "6"),
    ],
)
def test_what_holds_nowhere_is_said_with_how_much_is_missing(changes, says):
    with pytest.raises(PlanError, match=says):
        solve_downsets(problem_of([1.0, 1.0], **changes))


def test_no_nodes_and_no_time_are_nothing_to_do():
    assert solve_downsets(problem_of([])).assignment == ()
    assert solve_downsets(problem_of([0.0, 0.0], [(0, 1)])).value_s == 0.0


def test_more_devices_than_nodes_cost_nothing():
    found = solve_downsets(problem_of([1.0, 2.0], [(0, 1)], num_accelerators=10**6))
    assert found.value_s == 2.0 and found.proven


@pytest.mark.parametrize("slow", ["cpu_s", "accelerator_s"])
def test_a_huge_time_stands_for_a_device_that_cannot(slow):
    usual = {"accelerator_s": np.array([1.0, 2.0, 3.0]), "cpu_s": np.array([2.0, 2.0, 9.0])}
    huge = usual[slow].copy()
    huge[0] = 1e30
    found = solve_downsets(
        problem_of([0.0] * 3, [(0, 1), (1, 2)], num_cpus=1, **(usual | {slow: huge}))
    )
    assert found.proven and found.value_s == 3.0
