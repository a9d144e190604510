"""What a limit lets through holds every cut of every split below it; coarse graphs keep claims."""

import itertools

import numpy as np
import pytest

from gimlax.planning.solvers.blocks import contract
from gimlax.planning.solvers.coarse import joined, weightless
from gimlax.planning.solvers.dag import faults, loads_s
from gimlax.planning.solvers.orders import orders
from gimlax.planning.solvers.windows import Devices, cuttable
from tests.planning.solvers.dag_twin import best_s, random_problem, towers


def splits_below(problem, blocks, limit_s):
    """The down-sets of blocks behind each device, of every split whose loads are below a limit."""
    n, devices = len(blocks.before), problem.num_accelerators + problem.num_cpus
    ends = set()
    for homes in itertools.product(range(devices), repeat=n):
        assignment = blocks.spread(homes, {d: d for d in range(devices)}, problem.num_nodes)
        if faults(problem, assignment) or loads_s(problem, assignment).max() >= limit_s:
            continue
        for order in itertools.permutations(sorted(set(homes))):
            rank = {device: place for place, device in enumerate(order)}
            if any(
                rank[homes[first]] > rank[homes[second]]
                for second in range(n)
                for first in range(n)
                if blocks.before[second] >> first & 1
            ):
                continue
            for place in range(len(order) + 1):
                ends.add(tuple(rank[home] < place for home in homes))
    return ends


@pytest.mark.parametrize("seed", range(6))
def test_no_cut_of_a_split_below_the_limit_is_missing(seed):
    rng = np.random.default_rng([seed, 8])
    looked_at = 0
    for _ in range(40):
        problem = random_problem(rng, num_nodes=int(rng.integers(2, 6)))
        blocks, best = contract(problem), best_s(problem)
        if best == np.inf or not blocks.before or problem.num_accelerators + problem.num_cpus > 3:
            continue
        for slack in (1e-6, 0.1, 0.5):
            limit_s = best * (1 + slack) + 1e-6
            devices = Devices(
                num_accelerators=problem.num_accelerators,
                num_cpus=problem.num_cpus,
                capacity_bytes=problem.capacity_bytes,
                limit_s=limit_s,
            )
            for order in orders(blocks):
                member = cuttable(blocks, order, devices, 10**6, lambda: False)
                found = set(map(tuple, member.tolist()))
                assert len(found) == len(member), "each once"
                assert splits_below(problem, blocks, limit_s) <= found
        looked_at += 1
    assert looked_at > 10


def test_few_sets_are_let_through_where_devices_must_be_busy():
    problem = towers(8, num_towers=3, num_accelerators=2)
    blocks = contract(problem)
    tight = Devices(num_accelerators=2, num_cpus=0, capacity_bytes=1e9, limit_s=13.5)
    member = cuttable(blocks, orders(blocks)[0], tight, 10**6, lambda: False)
    half = member.sum(axis=1)
    assert 2 < len(member) < 100 < 9**3 and set(half.tolist()) == {0, 13, len(blocks.before)}
    paid = contract(towers(8, num_towers=3, num_accelerators=2, output_s=np.ones(26)))
    assert len(cuttable(paid, orders(paid)[0], tight, 10**6, lambda: False)) == 2, "none and all"


def test_too_many_sets_and_no_time_are_said():
    problem = towers(8, num_towers=3)
    blocks = contract(problem)
    loose = Devices(num_accelerators=2, num_cpus=0, capacity_bytes=1e9, limit_s=1e9)
    order = orders(blocks)[0]
    assert len(cuttable(blocks, order, loose, 10**6, lambda: False)) == 9**3 + 2
    assert cuttable(blocks, order, loose, 700, lambda: False) is None
    assert cuttable(blocks, order, loose, 10**6, lambda: True) is None


@pytest.mark.parametrize("share", [0.0, 0.05, 0.3])
def test_a_coarse_graph_has_no_better_split_and_a_weightless_one_no_worse(share):
    rng = np.random.default_rng(23)
    coarser = lighter = 0
    for _ in range(150):
        problem = random_problem(rng, num_nodes=6)
        best, above, below = (
            best_s(of) for of in (problem, joined(problem, share), weightless(problem, share))
        )
        assert below <= best * (1 + 1e-9) <= above * (1 + 1e-9) ** 2
        coarser += len(set(joined(problem, share).colour)) < len(set(problem.colour))
        lighter += below < best
    assert coarser and (lighter or not share)
