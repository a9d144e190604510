"""Where float32 goes narrowed, search, prediction and bound all charge what is sent then."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gimlax as gx
from gimlax.fabric import NARROWINGS, narrow, narrowing_bound
from gimlax.graph import chain, trace
from gimlax.planning.bound import lower_bound
from gimlax.planning.cost import costs
from gimlax.planning.objective import Objective
from gimlax.planning.tolerances import BETWEEN_CLIENTS, tolerance
from gimlax.planning.wires import Wire
from tests.planning.cases import cluster_of, kind
from tests.planning.test_bound import CHAIN, clusters
from tests.reference import best_layout_value

THROUGHPUT = Objective(goal="throughput")


def slow_bytes(aval, wire):
    """As many as the arrays have that `narrow` makes, or the array where that are no more."""
    full = aval.size * aval.dtype.itemsize
    if aval.dtype != np.float32:
        return full
    sent = jax.eval_shape(lambda x: narrow(x, wire), aval)
    return min(full, sum(x.size * x.dtype.itemsize for x in sent))


@pytest.mark.parametrize("wire", NARROWINGS)
def test_bytes_are_those_of_what_is_sent(wire):
    cluster = cluster_of([kind("a"), kind("b")])
    figures = costs(CHAIN, cluster)
    sent = Wire.of(CHAIN, cluster, wire).sent_bytes(figures, "a", "b")
    for row, phase in zip(sent, CHAIN.phases, strict=True):
        crossing = [segment.boundary for segment in phase.segments[:-1]]
        expected = [sum(slow_bytes(aval, wire) for aval in avals) for avals in crossing]
        assert list(row) == [0, *expected, 0]
    assert (sent < figures.boundary_bytes)[:, 1:-1].all()


@settings(max_examples=60)
@given(
    cluster=clusters(),
    goal=st.sampled_from(["latency", "throughput"]),
    wire=st.sampled_from(NARROWINGS),
)
def test_the_plan_is_the_best_of_what_is_sent_and_none_lies_below_its_bound(cluster, goal, wire):
    figures = Wire.of(CHAIN, cluster, wire).priced(costs(CHAIN, cluster), cluster)
    best = best_layout_value(figures.problem, goal)
    if best is None:
        return
    assert lower_bound(figures, Objective(goal=goal)) <= best * (1 + 1e-9)
    found = gx.plan(CHAIN, cluster, objective=Objective(goal=goal), wire=wire)
    assert found.value == pytest.approx(best)
    assert found.bound <= best * (1 + 1e-9)


def layers(width):
    def apply(params, x):
        for w in params:
            x = jax.nn.silu(x @ w)
        return x

    shape = jax.ShapeDtypeStruct((32, width), np.float32)
    return chain(trace(apply, [jax.ShapeDtypeStruct((width, width), np.float32)] * 2, shape))


@pytest.mark.parametrize(("wire", "num_stages"), [(None, 1), ("bfloat16", 2), ("int8", 2)])
def test_a_link_that_is_too_slow_for_float32_may_do_for_less(wire, num_stages):
    """4096 bytes take longer than both layers on one mesh, and half of them do not."""
    kinds = [kind("a", flops_per_s=1e9), kind("b", flops_per_s=1e9)]
    cluster = cluster_of(kinds, bytes_per_s=2e7)
    found = gx.plan(layers(32), cluster, objective=THROUGHPUT, wire=wire)
    assert len(found.layout.holdings) == num_stages
    for front in gx.pareto(layers(32), cluster, goals=("throughput", "latency"), wire=wire)[:1]:
        assert front.value == pytest.approx(found.value)


@pytest.mark.parametrize(("width", "share"), [(64, 1), (96, 1), (128, (1 + 4 / 64) / 4)])
def test_integers_are_charged_where_no_shard_cuts_a_block(width, share):
    cluster = cluster_of([kind("a"), kind("b")])
    two = replace(cluster.meshes[1], num_devices=2, axes=())
    cluster = replace(cluster, meshes=(cluster.meshes[0], two))
    found = gx.plan(layers(width), cluster, cuts=2, meshes=("a", "b"), wire="int8")
    assert found.phases[0].transfers[0].num_bytes == 32 * width * 4 * share


@pytest.mark.parametrize("wire", NARROWINGS)
@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1.0, 1e30])
def test_a_plan_allows_what_the_wire_makes_of_values(wire, scale):
    rng = np.random.default_rng(0)
    array = (rng.standard_normal((16, 200)) * scale * 10.0 ** rng.uniform(-6, 0, (16, 200))).astype(
        np.float32
    )
    allowed = tolerance(np.dtype("float32"), BETWEEN_CLIENTS, "bfloat16").bound(np.abs(array).max())
    assert narrowing_bound(array, wire).max() < allowed
