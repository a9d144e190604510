"""The slow twin of plans on pools: every way to make meshes, requests shared over all paths."""

import itertools
import math

import numpy as np
from scipy import optimize

from gimlax.planning.objective import TERMS
from gimlax.planning.solvers.pools_problem import PoolsProblem


def random_problem(rng, *, most_segments=3, most_devices=3):
    """Up to two pools with shapes of one and two devices, some runs not possible."""
    n, num_groups = int(rng.integers(1, most_segments + 1)), int(rng.integers(1, 3))
    groups, sizes = [], []
    for group in range(num_groups):
        for size in (1, 2):
            if rng.random() < 0.7 or size == 1:
                groups.append(group)
                sizes.append(size)
    stage_s = np.full((len(groups), n + 1, n + 1), np.inf)
    speed = rng.uniform(0.5, 2, num_groups)
    segment_s = rng.uniform(0.2, 2, n)
    for option, first in itertools.product(range(len(groups)), range(n)):
        for stop in range(first + 1, n + 1):
            if rng.random() < 0.85:
                work_s = segment_s[first:stop].sum() * speed[groups[option]]
                stage_s[option, first, stop] = work_s / sizes[option] ** 0.8 + rng.uniform(0, 0.3)
    option_group, devices = np.array(groups), np.array(sizes)
    hop_s = rng.uniform(0, 1.5, (num_groups, num_groups, n + 1))
    if rng.random() < 0.4:
        hop_s[:] = hop_s[:1, :1]
    each = [rng.uniform(0.5, 4, num_groups)[option_group] * devices for _ in range(2)]
    idle = rng.uniform(0, 0.3, num_groups)[option_group] * devices
    return PoolsProblem(
        stage_s=stage_s,
        hop_s=hop_s,
        option_group=option_group,
        option_devices=devices,
        num_devices=rng.integers(1, most_devices + 1, num_groups),
        devices_per_host=rng.integers(2, 4, num_groups) // 2 * 2,
        usd_per_s=each[0],
        busy_watts=each[1] + idle,
        idle_watts=idle,
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


def multisets(problem):
    """Every choice of meshes with their runs: a dict of counts by (option, first, stop)."""
    num_options = len(problem.option_group)
    holders = np.argwhere(np.isfinite(problem.stage_s))
    most = [range(problem.num_devices[g] + 1) for g in problem.option_group]
    for counts in itertools.product(*most):
        if not packs(problem, counts):
            continue
        ways = [
            itertools.combinations_with_replacement(holders[holders[:, 0] == o].tolist(), c)
            for o, c in zip(range(num_options), counts, strict=True)
        ]
        for chosen in itertools.product(*ways):
            made = {}
            for holder in itertools.chain(*chosen):
                made[tuple(holder)] = made.get(tuple(holder), 0) + 1
            yield made


def paths(problem, made):
    """Every sequence of holders from the first segment to the last."""

    def onward(at):
        if at == problem.num_segments:
            yield ()
            return
        for holder in made:
            if holder[1] == at:
                for rest in onward(holder[2]):
                    yield (holder, *rest)

    return list(onward(0))


def best_value(problem, objective):
    """The least value over all multisets of meshes, inf if nothing keeps the limits."""
    return min(
        (value_of(problem, objective, made) for made in multisets(problem)), default=math.inf
    )


def value_of(problem, objective, made):
    """The least value of requests shared over the paths through these meshes."""
    every = paths(problem, made)
    if not every:
        return math.inf
    group = problem.option_group
    stage_s = np.array([sum(problem.stage_s[h] for h in path) for path in every])
    hop_s = np.array(
        [
            sum(
                problem.hop_s[group[a[0]], group[b[0]], a[2]]
                for a, b in zip(path[:-1], path[1:], strict=True)
            )
            for path in every
        ]
    )
    drawn = problem.busy_watts - problem.idle_watts
    joules = np.array([sum(drawn[h[0]] * problem.stage_s[h] for h in path) for path in every])
    usd_per_s = sum(problem.usd_per_s[h[0]] * count for h, count in made.items())
    idle = sum(problem.idle_watts[h[0]] * count for h, count in made.items())
    # Per term: what each path takes, and what a second of the period takes.
    none = np.zeros(len(every))
    terms = dict(
        zip(
            TERMS,
            [(stage_s + hop_s, 0.0), (none, 1.0), (none, usd_per_s), (joules, idle)],
            strict=True,
        )
    )
    rows = [np.append(*terms[term]) for term in TERMS]
    busy = []
    for h, count in made.items():
        each = np.zeros((len(every), 3))  # computing, sending, receiving
        for row, path in zip(each, every, strict=True):
            if h in path:
                at = path.index(h)
                row[0] = problem.stage_s[h]
                if at + 1 < len(path):
                    row[1] = problem.hop_s[group[h[0]], group[path[at + 1][0]], h[2]]
                if at > 0:
                    row[2] = problem.hop_s[group[path[at - 1][0]], group[h[0]], h[1]]
        busy += [np.append(of, -count) for of in each.T]
    limits = [
        (row, most) for row, most in zip(rows, objective.term_limits, strict=True) if most < np.inf
    ]
    solved = optimize.linprog(
        np.dot(objective.term_weights, rows),
        A_ub=np.array(busy + [row for row, _ in limits]),
        b_ub=np.array([0.0] * len(busy) + [most for _, most in limits]),
        A_eq=np.append(np.ones(len(every)), 0.0)[None],
        b_eq=[1.0],
    )
    return float(solved.fun) if solved.status == 0 else math.inf
