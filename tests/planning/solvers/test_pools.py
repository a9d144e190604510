"""Plans on pools against brute force: every way to make meshes, requests shared over all paths."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest

from gimlax.planning.objective import GOALS, TERMS, Objective
from gimlax.planning.solvers.pools import solve
from gimlax.planning.solvers.pools_bound import Ways, lower_bound
from gimlax.planning.solvers.pools_columns import Pipelines
from gimlax.planning.solvers.pools_flows import occupied, terms_of
from gimlax.planning.solvers.pools_problem import PoolsProblem, cheapest
from tests.planning.solvers.pools_twin import best_value, multisets, packs, random_problem

THROUGHPUT = Objective(goal="throughput")


def equal_links(problem):
    return replace(problem, hop_s=np.full_like(problem.hop_s, 0.3))


def rate_by_cuts(problem):
    """The largest rate over all meshes, by the smallest cut of each choice of them.

    That says what flows where it does not matter who hands over to whom.
    """
    n = problem.num_segments
    assert problem.links_are_equal
    cuts = [
        np.array([True, *inner, False]) for inner in itertools.product((False, True), repeat=n - 1)
    ]
    busy_s = problem.busy_s()
    return max(
        min(
            sum(c / busy_s[h] for h, c in made.items() if cut[h[1]] and not cut[h[2]])
            for cut in cuts
        )
        for made in multisets(problem)
    )


@pytest.mark.parametrize("seed", range(80))
def test_rates_are_the_best_and_within_the_bound(seed):
    problem = equal_links(random_problem(np.random.default_rng(seed)))
    best = rate_by_cuts(problem)
    bound = 1 / lower_bound(problem, THROUGHPUT).value
    assert bound >= best * (1 - 1e-9)
    found = solve(problem, THROUGHPUT)
    if found is None:
        assert best == 0
        return
    assert found.method == "exact"
    assert 1 / found.value == pytest.approx(best, rel=1e-6)
    check(problem, found)


def random_objective(rng, problem, goal):
    """A goal with weights, and limits around what a quick plan has."""
    weights = {term: float(rng.uniform(0.05, 2)) for term in TERMS}
    asked = {"goal": goal, "weights": weights if goal == "weighted" else ()}
    quick = solve(problem, Objective(goal="latency"))
    if quick is None or rng.random() < 0.3:
        return Objective(**asked)
    terms = quick.terms
    limits = {
        "max_latency_s": terms.latency_s * rng.uniform(0.95, 2),
        "min_requests_per_s": rng.uniform(0.5, 1.5) / terms.period_s,
        "max_usd_per_request": terms.usd * rng.uniform(0.4, 2),
        "max_joules_per_request": terms.joules * rng.uniform(0.7, 2),
    }
    return Objective(**asked, **{k: v for k, v in limits.items() if rng.random() < 0.5})


@pytest.mark.parametrize("goal", GOALS)
@pytest.mark.parametrize("seed", range(14))
def test_every_goal_is_the_best_within_limits_and_above_the_bound(seed, goal):
    rng = np.random.default_rng([seed, GOALS.index(goal)])
    problem = random_problem(rng, most_devices=2)
    objective = random_objective(rng, problem, goal)
    best = best_value(problem, objective)
    assert lower_bound(problem, objective).value <= best * (1 + 1e-9)
    found = solve(problem, objective)
    if found is None:
        assert math.isinf(best)
        return
    assert found.method == "exact"
    assert found.value == pytest.approx(best, rel=2e-6)
    check(problem, found)
    terms = zip(found.terms, objective.term_limits, strict=True)
    assert all(term <= most * (1 + 1e-6) for term, most in terms)


def test_a_request_that_runs_alone_gets_no_replicas():
    for seed in range(30):
        problem = random_problem(np.random.default_rng(200 + seed))
        found = solve(problem, Objective(goal="latency"))
        if found is not None:
            starts = [held for held in found.held if held.first == 0]
            assert [held.count for held in starts] == [1]
            assert len({held.first for held in found.held}) == len(found.held)


@pytest.mark.parametrize("goal", TERMS)
def test_no_mesh_is_held_that_could_be_left_out(goal):
    for seed in range(30):
        problem = random_problem(np.random.default_rng(300 + seed))
        found = solve(problem, Objective(goal=goal))
        for k, held in enumerate(found.held if found else ()):
            fewer = [*found.held]
            fewer[k] = replace(held, count=held.count - 1)
            if held.count > 1:
                value = Objective(goal=goal).value(terms_of(problem, fewer))
                assert value > found.value * (1 + 1e-9)


def check(problem, found):
    """The plan fits into the devices, no mesh has more than it can do, and requests flow."""
    counts = np.zeros(len(problem.option_group), int)
    balance = np.zeros((problem.num_segments + 1, problem.num_groups, problem.num_groups))
    for held in found.held:
        counts[held.option] += held.count
        assert max(occupied(problem, held)) <= held.count * (1 + 1e-6)
        group = problem.option_group[held.option]
        balance[held.first, :, group] -= held.inward
        balance[held.stop, group, :] += held.onward
        for inside, moved in (
            (held.stop < problem.num_segments, held.onward),
            (held.first > 0, held.inward),
        ):
            assert sum(moved) == pytest.approx(held.requests_per_s if inside else 0, rel=1e-6)
    assert packs(problem, counts)
    rate = 1 / found.terms.period_s
    entering = sum(held.requests_per_s for held in found.held if held.first == 0)
    assert entering == pytest.approx(rate)
    assert balance == pytest.approx(0, abs=1e-6 * rate)
    assert terms_of(problem, found.held) == pytest.approx(found.terms, nan_ok=True)


def layered(num_layers, num_devices, seed=0):
    """Equal layers on two pools, in shapes of 1, 2 and 4."""
    rng = np.random.default_rng(seed)
    n = num_layers
    run = np.arange(n + 1)[None, :] - np.arange(n + 1)[:, None]
    speeds, memory = rng.uniform(0.5, 3, 2), rng.integers(4, 12, 2)
    options = [(group, size) for group in range(2) for size in (1, 2, 4)]
    busy_s = np.stack(
        [
            np.where(
                (run > 0) & (run <= memory[g] * size),
                run / speeds[g] / size**0.85 + 0.01,
                np.inf,
            )
            for g, size in options
        ]
    )
    group, size = np.array(options).T
    return PoolsProblem(
        stage_s=busy_s,
        hop_s=np.full((2, 2, n + 1), 0.005),
        option_group=group,
        option_devices=size,
        num_devices=np.array([num_devices, num_devices]),
        devices_per_host=np.array([8, 8]),
        usd_per_s=speeds[group] ** 1.2 * size,
        busy_watts=speeds[group] * size,
        idle_watts=0.1 * size,
    )


@pytest.mark.parametrize("goal", TERMS)
@pytest.mark.parametrize("num_devices", [16, 128])
def test_large_plans_are_valid_and_near_the_bound(num_devices, goal):
    problem = layered(24, num_devices)
    found = solve(problem, Objective(goal=goal), time_limit_s=4.0)
    assert found is not None
    check(problem, found)
    assert 0 <= found.gap < 0.1


def test_any_prices_bound_the_rate():
    rng = np.random.default_rng(7)
    for seed in range(40):
        problem = equal_links(random_problem(np.random.default_rng(1000 + seed)))
        device_prices = rng.uniform(0, 1, problem.num_groups)
        prices = problem.prices((0.0, 0.0, 0.0, 0.0))
        held = device_prices[problem.option_group] * problem.option_devices
        cost, _ = Ways(problem).cheapest(prices._replace(held=held))
        if np.isfinite(cost) and cost > 0:
            most = device_prices @ problem.num_devices / cost
            assert most >= rate_by_cuts(problem) * (1 - 1e-9)


def test_a_pipeline_is_the_cheapest_in_whole_meshes():
    problem = layered(6, 16, seed=3)
    prices = problem.prices((0.3, 0.0, 1.0, 0.0))
    rate = 0.7

    def cost(holder):
        o, i, j = holder
        meshes = np.ceil(problem.stage_s[o, i, j] * rate)
        hop = 0.3 * 0.005 if j < 6 else 0.0
        return meshes * problem.usd_per_s[o] / rate + 0.3 * problem.stage_s[o, i, j] + hop

    def least(at):
        if at == 6:
            return 0.0
        return min(
            cost((o, at, stop)) + least(stop)
            for o in range(6)
            for stop in range(at + 1, 7)
            if np.isfinite(problem.stage_s[o, at, stop])
        )

    pipelines = Pipelines(problem, lower_bound(problem, THROUGHPUT), 1.0)
    found = pipelines.cheapest(prices, rate, [0, 1])
    assert sum(map(cost, found)) == pytest.approx(least(0))


def test_nothing_possible_is_no_plan():
    problem = layered(4, 8)
    nowhere = replace(problem, stage_s=np.full_like(problem.stage_s, np.inf))
    for goal in TERMS:
        assert solve(nowhere, Objective(goal=goal)) is None


def test_no_way_through_costs_infinity():
    assert cheapest(np.full((2, 4, 4), np.inf), np.zeros((2, 2, 4))) == (np.inf, [], [])


def test_the_cheapest_way_minds_the_links_between_pools():
    cost = np.full((2, 3, 3), np.inf)
    cost[0, 0, 1] = cost[1, 1, 2] = 1.0
    cost[0, 1, 2] = cost[1, 0, 1] = 2.0
    hop = np.zeros((2, 2, 3))
    assert cheapest(cost, hop) == (2.0, [(0, 1), (1, 2)], [0, 1])
    hop[0, 1] = 1.5
    assert cheapest(cost, hop) == (3.0, [(0, 1), (1, 2)], [0, 0])
