"""The bound never lies above the best layout, and is tight where it can be."""

import functools
from dataclasses import replace

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gimlax.errors import InternalError
from gimlax.graph import chain, trace
from gimlax.planning.bound import lower_bound
from gimlax.planning.cost import costs
from gimlax.planning.objective import Objective, certified
from tests.planning.cases import cluster_of, kind, two_phases
from tests.planning.test_objectives import least, objectives
from tests.reference import best_layout_value, layout_terms, layouts

CHAIN = chain(two_phases(prompt_tokens=4))  # little memory beside weights and state
TOTAL_BYTES = costs(CHAIN, cluster_of([kind("a")])).problem.stage_bytes()[0, 0, -1]


@st.composite
def clusters(draw, most=3):
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    num = draw(st.integers(1, most))
    shared = draw(st.booleans())  # meshes that share memory say the same capacity
    sizes = np.full(num, rng.choice([1.1, 5.0])) if shared else rng.choice([0.45, 0.8, 5.0], num)
    kinds = [
        kind(
            f"m{k}",
            flops_per_s=10 ** rng.uniform(6, 10),
            bytes_per_s=10 ** rng.uniform(5, 9),
            memory_bytes=TOTAL_BYTES * sizes[k],
        )
        for k in range(num)
    ]
    hosts = [f"h{rng.integers(2)}" for _ in kinds] if shared else None
    shares = draw(st.sampled_from([("compute", "memory"), ("compute",), ("memory",)]))
    cluster = cluster_of(kinds, hosts=hosts, shares=shares)
    slow = draw(st.sampled_from([0.0, 3.0]))  # links that are free, or that decide
    links = tuple(
        replace(
            link,
            latency_s=10 ** rng.uniform(-8, -3 + slow),
            bandwidth_bytes_per_s=10 ** rng.uniform(8 - slow, 11),
        )
        for link in cluster.links
    )
    return replace(cluster, links=links)


@settings(max_examples=150)
@given(cluster=clusters(), goal=st.sampled_from(["latency", "throughput"]))
def test_no_layout_lies_below_the_bound(cluster, goal):
    figures = costs(CHAIN, cluster)
    best = best_layout_value(figures.problem, goal)
    if best is not None:
        assert 0 < lower_bound(figures, Objective(goal=goal)) <= best * (1 + 1e-9)


def priced(cluster, rng):
    kinds = tuple(
        replace(k, tdp_watts=float(rng.integers(100, 900)), idle_watts=float(rng.integers(1, 90)))
        for k in cluster.kinds
    )
    meshes = tuple(replace(m, usd_per_hour=float(rng.integers(1, 9))) for m in cluster.meshes)
    return replace(cluster, kinds=kinds, meshes=meshes)


@settings(max_examples=150)
@given(cluster=clusters(), seed=st.integers(0, 2**32 - 1), data=st.data())
def test_no_layout_lies_below_the_bound_of_any_goal_under_limits(cluster, seed, data):
    rng = np.random.default_rng(seed)
    problem = (figures := costs(CHAIN, priced(cluster, rng))).problem
    tried = layouts(problem.num_segments, problem.num_meshes)
    table = [terms for layout in tried if (terms := layout_terms(problem, *layout)) is not None]
    for _ in range(4):
        objective = data.draw(objectives(table))
        best = least(objective, table)
        if best is not None:
            assert 0 < lower_bound(figures, objective) <= best * (1 + 1e-8)


@pytest.mark.parametrize("goal", ["usd", "joules"])
def test_a_mesh_without_waiting_leaves_no_gap_in_dollars_and_joules(goal):
    cluster = priced(cluster_of([kind("a"), kind("b")]), np.random.default_rng(0))
    figures = costs(CHAIN, cluster)
    best = best_layout_value(figures.problem, goal)
    assert lower_bound(figures, Objective(goal=goal)) == pytest.approx(best, rel=1e-9)


@pytest.mark.parametrize("goal", ["latency", "throughput"])
def test_one_mesh_leaves_no_gap(goal):
    figures = costs(CHAIN, cluster_of([kind("a")]))
    value_s = figures.problem.stage_s[0, 0, -1]
    assert lower_bound(figures, Objective(goal=goal)) == pytest.approx(value_s, rel=1e-9)


def test_a_shared_host_is_no_faster_than_one_of_its_meshes():
    kinds = [kind("a"), kind("b")]
    figures = costs(CHAIN, cluster_of(kinds, hosts=["h", "h"], shares=("compute", "memory")))
    value_s = figures.problem.stage_s[0, 0, -1]
    assert lower_bound(figures, Objective(goal="throughput")) == pytest.approx(value_s, rel=1e-9)
    apart = costs(CHAIN, cluster_of(kinds))
    assert lower_bound(apart, Objective(goal="throughput")) < 0.6 * value_s


def test_memory_that_forces_work_on_a_slow_mesh_is_in_the_bound():
    layers = chain(
        trace(
            lambda params, x: functools.reduce(lambda x, w: jax.nn.silu(x @ w), params, x),
            [jax.ShapeDtypeStruct((256, 256), np.float32)] * 6,
            jax.ShapeDtypeStruct((1, 256), np.float32),
            name="layers",
        )
    )
    fast = kind("fast", flops_per_s=1e13, bytes_per_s=1e13, memory_bytes=2.2 * 4 * 256**2)
    slow = kind("slow", flops_per_s=1e7, bytes_per_s=1e7)
    figures = costs(layers, cluster_of([fast, slow]))
    for goal in ("latency", "throughput"):
        best = best_layout_value(figures.problem, goal)
        assert 0.9 * best < lower_bound(figures, Objective(goal=goal)) <= best


def test_memory_that_forces_a_hop_takes_the_cheapest_one():
    halves = [kind(name, memory_bytes=TOTAL_BYTES * 0.7) for name in "ab"]
    cluster = cluster_of(halves, latency_s=0.5)
    cheap = replace(cluster, links=(replace(cluster.links[0], latency_s=0.01), cluster.links[1]))
    figures = costs(CHAIN, cheap)
    best = best_layout_value(figures.problem, "latency")
    assert 11 * 0.01 < lower_bound(figures, Objective(goal="latency")) <= best


def unlike_halves():
    """Layers that compute, then layers that read."""

    def apply(params, x):
        for w in params["many"]:
            x = jax.nn.silu(x @ w)
        x = x[:1]
        for w in params["one"]:
            x = jax.nn.silu(x @ w)
        return x

    def shape(*dims):
        return jax.ShapeDtypeStruct(dims, np.float32)

    params = {"many": [shape(256, 256)] * 3, "one": [shape(256, 4096), shape(4096, 256)]}
    return chain(trace(apply, params, jax.ShapeDtypeStruct((2048, 256), np.float32)))


@pytest.mark.parametrize("goal", ["latency", "throughput"])
@pytest.mark.parametrize("latency_s", [1e-9, 1e-5, 1e-4])
def test_hops_are_charged_by_the_links_that_they_take(latency_s, goal):
    kinds = [
        kind("computes", flops_per_s=1e14, bytes_per_s=1e10),
        kind("reads", flops_per_s=1e11, bytes_per_s=1e12),
    ]
    figures = costs(unlike_halves(), cluster_of(kinds, latency_s=latency_s))
    best = best_layout_value(figures.problem, goal)
    bound = lower_bound(figures, Objective(goal=goal))
    alone = figures.problem.stage_s[:, 0, -1].min()
    assert best < 0.9 * alone  # it takes both of them
    assert (0.999 if goal == "latency" else 0.7) * best < bound <= best * (1 + 1e-9)


def test_many_meshes_are_bounded_without_keeping_the_order():
    names = [f"m{k}" for k in range(26)]
    figures = costs(CHAIN, cluster_of([kind(name) for name in names]))
    assert lower_bound(figures, Objective(goal="latency")) > 0


def test_a_bound_above_a_plan_is_an_internal_error():
    assert certified(1.0 + 1e-9, 1.0) == 1.0
    with pytest.raises(InternalError, match=r"value 1\.0 .* none lies below 1\.1"):
        certified(1.1, 1.0)
