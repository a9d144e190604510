"""Plans on pools against brute force: every way to make meshes, rated by its smallest cut."""

import itertools

import numpy as np
import pytest

from gimlax.planning.solvers.pools import solve
from gimlax.planning.solvers.pools_bound import most_requests_per_s, price_of
from gimlax.planning.solvers.pools_columns import pipeline
from gimlax.planning.solvers.pools_problem import PoolsProblem, cheapest


def random_problem(rng):
    n, num_groups = int(rng.integers(1, 4)), int(rng.integers(1, 3))
    groups, sizes = [], []
    for group in range(num_groups):
        for size in (1, 2):
            if rng.random() < 0.7 or size == 1:
                groups.append(group)
                sizes.append(size)
    busy_s = np.full((len(groups), n + 1, n + 1), np.inf)
    speed = rng.uniform(0.5, 2, num_groups)
    segment_s = rng.uniform(0.2, 2, n)
    for option, first in itertools.product(range(len(groups)), range(n)):
        for stop in range(first + 1, n + 1):
            if rng.random() < 0.85:
                work_s = segment_s[first:stop].sum() * speed[groups[option]]
                busy_s[option, first, stop] = work_s / sizes[option] ** 0.8 + rng.uniform(0, 0.3)
    return PoolsProblem(
        busy_s=busy_s,
        option_group=np.array(groups),
        option_devices=np.array(sizes),
        num_devices=rng.integers(1, 4, num_groups),
        devices_per_host=rng.integers(2, 4, num_groups) // 2 * 2,
    )


def packs(problem, counts):
    """Whether so many meshes of each shape can be made, host by host, the largest first."""
    for group, (total, per_host) in enumerate(
        zip(problem.num_devices, problem.devices_per_host, strict=True)
    ):
        free = [per_host] * (total // per_host) + [total % per_host]
        sizes = [
            size
            for g, size, count in zip(
                problem.option_group, problem.option_devices, counts, strict=True
            )
            for _ in range(count)
            if g == group
        ]
        for size in sorted(sizes, reverse=True):
            host = next((k for k, left in enumerate(free) if left >= size), None)
            if host is None:
                return False
            free[host] -= size
    return True


def brute_force_rate(problem):
    """The largest of the smallest cuts over all multisets of holders."""
    n = problem.num_segments
    num_options = len(problem.option_group)
    holders = np.argwhere(np.isfinite(problem.busy_s))
    allowed = [
        counts
        for counts in itertools.product(
            *(range(problem.num_devices[g] + 1) for g in problem.option_group)
        )
        if packs(problem, counts)
    ]
    cuts = [
        np.array([True, *inner, False]) for inner in itertools.product((False, True), repeat=n - 1)
    ]
    best = 0.0
    for counts in allowed:
        # For each shape every way to give its meshes their runs.
        ways = [
            list(itertools.combinations_with_replacement(holders[holders[:, 0] == o].tolist(), c))
            for o, c in zip(range(num_options), counts, strict=True)
        ]
        for chosen in itertools.product(*ways):
            made = [holder for part in chosen for holder in part]
            rate = min(
                sum(1 / problem.busy_s[o, i, j] for o, i, j in made if cut[i] and not cut[j])
                for cut in cuts
            )
            best = max(best, rate)
    return best


@pytest.mark.parametrize("seed", range(120))
def test_small_plans_are_the_best_and_within_the_bound(seed):
    problem = random_problem(np.random.default_rng(seed))
    best = brute_force_rate(problem)
    bound = most_requests_per_s(problem).requests_per_s
    assert bound >= best * (1 - 1e-9)
    found = solve(problem)
    if found is None:
        assert best == 0
        return
    assert found.method == "exact"
    assert found.requests_per_s == pytest.approx(best, rel=1e-6)
    check(problem, found)


def check(problem, found):
    """The plan fits into the devices, no mesh has more than it can do, and requests flow."""
    counts = np.zeros(len(problem.option_group), int)
    balance = np.zeros(problem.num_segments + 1)
    for held in found.held:
        counts[held.option] += held.count
        most = held.count / problem.busy_s[held.option, held.first, held.stop]
        assert held.requests_per_s <= most * (1 + 1e-6)
        balance[held.first] -= held.requests_per_s
        balance[held.stop] += held.requests_per_s
    assert packs(problem, counts)
    assert balance[-1] == pytest.approx(found.requests_per_s)
    assert balance[1:-1] == pytest.approx(0, abs=1e-6 * found.requests_per_s)


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
        busy_s=busy_s,
        option_group=group,
        option_devices=size,
        num_devices=np.array([num_devices, num_devices]),
        devices_per_host=np.array([8, 8]),
    )


@pytest.mark.parametrize("num_devices", [16, 128])
def test_large_plans_are_valid_and_near_the_bound(num_devices):
    problem = layered(24, num_devices)
    found = solve(problem, time_limit_s=4.0)
    assert found is not None
    check(problem, found)
    assert 0 <= found.gap < 0.1


def test_any_prices_bound_the_rate():
    rng = np.random.default_rng(7)
    for seed in range(40):
        problem = random_problem(np.random.default_rng(1000 + seed))
        prices = rng.uniform(0, 1, problem.num_groups)
        cost, _, _ = price_of(problem.device_s(), prices)
        if np.isfinite(cost) and cost > 0:
            assert prices @ problem.num_devices / cost >= brute_force_rate(problem) * (1 - 1e-9)


def test_a_pipeline_is_the_cheapest_in_whole_meshes():
    problem = layered(6, 16, seed=3)
    prices, rate = np.array([1.0, 2.0]), 0.7

    def cost(holder):
        o, i, j = holder
        meshes = np.ceil(problem.busy_s[o, i, j] * rate)
        return meshes * problem.option_devices[o] * prices[problem.option_group[o]]

    def least(at):
        if at == 6:
            return 0.0
        return min(
            cost((o, at, stop)) + least(stop)
            for o in range(6)
            for stop in range(at + 1, 7)
            if np.isfinite(problem.busy_s[o, at, stop])
        )

    assert sum(map(cost, pipeline(problem, prices, rate))) == pytest.approx(least(0))


def test_nothing_possible_is_no_plan():
    problem = layered(4, 8)
    assert (
        solve(
            PoolsProblem(
                busy_s=np.full_like(problem.busy_s, np.inf),
                option_group=problem.option_group,
                option_devices=problem.option_devices,
                num_devices=problem.num_devices,
                devices_per_host=problem.devices_per_host,
            )
        )
        is None
    )


def test_no_way_through_costs_infinity():
    assert cheapest(np.full((4, 4), np.inf)) == (np.inf, [])
