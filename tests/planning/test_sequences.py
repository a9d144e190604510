"""A model that branches is cut in the order of its segments in which cuts are best."""

import dataclasses
import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from gimlax.errors import PlanError
from gimlax.graph import arrows, chain, reordered, trace
from gimlax.planning import Objective, Plan, check_plan, in_order, plan
from gimlax.planning.cost import costs
from gimlax.planning.problem import terms_of, used_bytes
from gimlax.planning.sequences import rows, split_problem
from gimlax.planning.solvers.dag import faults
from gimlax.planning.solvers.downsets import solve_downsets
from tests.planning.cases import cluster_of, kind
from tests.towers import orders_of, two_towers

UNEVEN = ((400, 400), (100, 100, 100))


def meshes_of(num_meshes, **changes):
    kinds = [kind(f"mesh{i}", flops_per_s=1e9, **changes) for i in range(num_meshes)]
    return cluster_of(kinds, latency_s=1e-7)


def best_value(model, cluster, goal):
    """Of every cut of every order, on meshes that are all equal: each split of the graph once."""
    best = np.inf
    for order in orders_of(model):
        problem = costs(reordered(model, order), cluster).problem
        for stages in range(1, problem.num_meshes + 1):
            for cuts in itertools.combinations(range(1, problem.num_segments), stages - 1):
                meshes = tuple(range(stages))
                if (used_bytes(problem, cuts, meshes) <= problem.capacity_bytes).all():
                    terms = terms_of(problem, cuts, meshes)
                    best = min(best, terms.period_s if goal == "throughput" else terms.latency_s)
    return best


@pytest.mark.parametrize("goal", ["throughput", "latency"])
@pytest.mark.parametrize("memory_bytes", [10**9, 40_000])
@pytest.mark.parametrize("widths", [UNEVEN, ((64, 256), (256, 64)), ((300,), (100, 200))])
def test_no_split_of_the_graph_is_better(widths, memory_bytes, goal):
    _, _, _, model = two_towers(widths, rows=16)
    cluster = meshes_of(2, memory_bytes=memory_bytes)
    best = best_value(model, cluster, goal)
    if best == np.inf:
        with pytest.raises(PlanError):
            plan(model, cluster, objective=Objective(goal=goal))
        return
    found = plan(model, cluster, objective=Objective(goal=goal))
    assert found.value == pytest.approx(best, rel=1e-9)
    assert found.bound <= best * (1 + 1e-9)


def test_an_order_that_is_no_better_is_not_taken():
    _, _, _, model = two_towers(((100, 100), (100, 100)), rows=16)
    found = plan(model, meshes_of(1), objective=Objective(goal="throughput"))
    assert found.order == () and found.method == "exact" and found.segments == model.names


def test_all_orders_are_tried_where_there_are_few_and_good_ones_where_there_are_many():
    for widths, are_all in ((((8,), (8, 8)), True), (UNEVEN, False)):
        _, _, _, model = two_towers(widths, rows=16)
        cluster = meshes_of(3)
        found = rows(model, costs(model, cluster), cluster)
        every = set(orders_of(model))
        assert set(found.others) < every and found.are_all == are_all
        assert len(found.others) == len(every) - 1 or not are_all
        assert tuple(range(model.num_segments)) not in found.others
    assert rows(reordered(model, orders_of(model)[-1]), costs(model, cluster), cluster).others == ()


def test_a_good_split_of_the_graph_is_a_row_that_is_tried():
    _, _, _, model = two_towers(UNEVEN, rows=16)
    cluster = meshes_of(2)
    figures = costs(model, cluster)
    problem = split_problem(model, figures, cluster)
    split = solve_downsets(problem)
    assert split.proven and not faults(problem, split.assignment)
    first = {k for k, device in enumerate(split.assignment) if device == split.assignment[0]}
    tried = rows(model, figures, cluster).others
    assert any(set(order[: len(first)]) == first for order in tried)


def test_meshes_of_two_speeds_and_unequal_links_are_a_problem_of_two_kinds():
    _, _, _, model = two_towers(UNEVEN, rows=16)
    kinds = [kind(name, flops_per_s=rate) for name, rate in (("a", 1e9), ("b", 1e8), ("c", 1e9))]
    cluster = cluster_of(kinds, links=[("a", "b"), ("b", "c")], latency_s=1e-7)
    problem = split_problem(model, costs(model, cluster), cluster)
    assert (problem.num_accelerators, problem.num_cpus) == (2, 1)
    assert (problem.cpu_s > problem.accelerator_s).all() and (problem.output_s[:-1] > 0).all()
    assert {tuple(edge) for edge in problem.edges.tolist()} == arrows(model)


def test_cuts_that_are_given_lie_in_the_order_of_the_program():
    _, _, _, model = two_towers(UNEVEN, rows=16)
    objective = Objective(goal="throughput")
    free = plan(model, meshes_of(2), objective=objective, cuts=2)
    given = plan(model, meshes_of(2), objective=objective, cuts=(5,))
    assert free.order and not given.order and free.value < given.value
    assert given.segments == model.names != free.segments


def test_a_plan_keeps_its_order_and_knows_its_model():
    apply, params, x, model = two_towers(UNEVEN, rows=16)
    found = plan(model, meshes_of(2), objective=Objective(goal="throughput"))
    assert found.order and found.segments == tuple(model.names[k] for k in found.order)
    assert "are in another order than in the program" in str(found)
    assert "another order" not in str(plan(model, meshes_of(1)))
    again = Plan.from_json(found.to_json())
    assert again == found
    check_plan(again, chain(trace(apply, params, x)))
    arranged = in_order(again, model)
    assert arranged.names == found.segments and in_order(again, arranged) is arranged
    check_plan(again, arranged)
    with pytest.raises(PlanError, match="it is for another model"):
        check_plan(again, two_towers(((400, 400), (100, 100)), rows=16)[3])
    with pytest.raises(PlanError, match="it is for another model"):
        in_order(again, two_towers(((400, 400), (100, 100)), rows=16)[3])
    with pytest.raises(PlanError, match=r"its order is \(0, 0, "):
        dataclasses.replace(found, order=(0,) * len(found.order))


def test_state_that_two_segments_share_keeps_its_stage():
    def apply(params, state, x):
        x = jnp.tanh(x @ params["stem"])
        a = jnp.tanh(x @ params["a"]) @ params["b"] + state
        b = jnp.tanh(x @ params["b"]) @ params["a"]
        b = jnp.tanh(b @ params["a"]) @ params["b"] * state
        return (a + b) @ params["stem"], state + a.sum(axis=0) + b.sum(axis=0)

    square = np.eye(64, dtype=np.float32)
    params = dict.fromkeys(("stem", "a", "b"), square)
    traced = trace(apply, params, square[0], np.ones((256, 64), np.float32), carried={1: 1})
    found = plan(traced, meshes_of(2), objective=Objective(goal="throughput"))
    arranged = in_order(found, chain(traced))
    assert all(not arranged.splits(cut) for cut in found.cuts)
