"""Segments that branch are split at least as well as the chain that the program writes them in."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from gimlax.errors import PlanError
from gimlax.graph import chain, trace
from gimlax.planning.branches import branch_problem
from gimlax.planning.cost import costs
from gimlax.planning.solvers.dag import faults, loads_s
from gimlax.planning.solvers.downsets import solve_downsets
from tests.planning.cases import cluster_of, kind


def two_towers():
    """Two towers from one input, put together at the end; the second has one layer more."""

    def tower(layers, x):
        for layer in layers:
            x = jnp.tanh(x @ layer)
        return x

    def apply(params, x):
        x = jnp.tanh(x @ params["stem"])
        both = tower(params["left"], x) + tower(params["right"], x)
        return both @ params["head"]

    square = np.ones((64, 64), np.float32)
    params = {"stem": square, "left": [square] * 2, "right": [square] * 3, "head": square}
    return chain(trace(apply, params, np.ones((512, 64), np.float32)))


def cluster(num_meshes, **changes):
    kinds = [kind(f"mesh{i}", flops_per_s=1e11, **changes) for i in range(num_meshes)]
    return cluster_of(kinds, latency_s=1e-7)


def best_interval_s(problem):
    """The best split in runs of the program's order."""
    n, values = problem.num_nodes, []
    for stages in range(1, problem.num_accelerators + 1):
        for cuts in itertools.combinations(range(1, n), stages - 1):
            assignment = tuple(int(d) for d in np.searchsorted(cuts, np.arange(n), "right"))
            if not faults(problem, assignment):
                values.append(loads_s(problem, assignment).max())
    return min(values)


@pytest.mark.parametrize("num_meshes", [2, 3])
def test_a_split_of_the_graph_is_no_worse_than_one_of_the_chain(num_meshes):
    model, meshes = two_towers(), cluster(num_meshes)
    problem = branch_problem(model, costs(model, meshes), meshes)
    degree = np.bincount(problem.edges[:, 0])
    assert degree.max() > 1, "the towers are a branch"
    found = solve_downsets(problem)
    assert found.proven and not faults(problem, found.assignment)
    assert found.value_s <= best_interval_s(problem) * (1 + 1e-9)


def test_meshes_of_different_speed_are_refused():
    model = two_towers()
    meshes = cluster_of([kind("fast", flops_per_s=1e13), kind("slow", flops_per_s=1e11)])
    with pytest.raises(PlanError, match="differ in speed"):
        branch_problem(model, costs(model, meshes), meshes)
