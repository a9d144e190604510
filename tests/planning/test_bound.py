"""The bound never lies above the best layout, and is tight where it can be."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gimlax.graph import chain
from gimlax.planning.bound import lower_bound_s
from gimlax.planning.cost import costs
from tests.planning.cases import cluster_of, kind, two_phases
from tests.reference import best_layout_value

CHAIN = chain(two_phases())
TOTAL_BYTES = costs(CHAIN, cluster_of([kind("a")])).problem.stage_bytes()[0, -1]


@st.composite
def clusters(draw, most=3):
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    num = draw(st.integers(1, most))
    shared = draw(st.booleans())  # meshes that share memory say the same capacity
    sizes = np.full(num, rng.choice([0.7, 5.0])) if shared else rng.choice([0.4, 0.7, 5.0], num)
    kinds = [
        kind(
            f"m{k}",
            flops_per_s=10 ** rng.uniform(9, 12),
            bytes_per_s=10 ** rng.uniform(8, 11),
            memory_bytes=TOTAL_BYTES * sizes[k],
        )
        for k in range(num)
    ]
    hosts = [f"h{rng.integers(2)}" for _ in kinds] if shared else None
    shares = draw(st.sampled_from([("compute", "memory"), ("compute",), ("memory",)]))
    return cluster_of(
        kinds,
        hosts=hosts,
        shares=shares,
        latency_s=10 ** rng.uniform(-6, -2),
        bytes_per_s=10 ** rng.uniform(6, 11),
    )


@settings(max_examples=60)
@given(cluster=clusters(), goal=st.sampled_from(["latency", "throughput"]))
def test_no_layout_lies_below_the_bound(cluster, goal):
    figures = costs(CHAIN, cluster)
    best = best_layout_value(figures.problem, goal)
    if best is not None:
        assert 0 < lower_bound_s(figures, goal) <= best * (1 + 1e-9)


@pytest.mark.parametrize("goal", ["latency", "throughput"])
def test_one_mesh_leaves_no_gap(goal):
    figures = costs(CHAIN, cluster_of([kind("a")]))
    value_s = figures.problem.stage_s[0, 0, -1]
    assert lower_bound_s(figures, goal) == pytest.approx(value_s, rel=1e-9)


def test_a_shared_host_is_no_faster_than_one_of_its_meshes():
    kinds = [kind("a"), kind("b")]
    figures = costs(CHAIN, cluster_of(kinds, hosts=["h", "h"], shares=("compute", "memory")))
    value_s = figures.problem.stage_s[0, 0, -1]
    assert lower_bound_s(figures, "throughput") == pytest.approx(value_s, rel=1e-9)
    apart = costs(CHAIN, cluster_of(kinds))
    assert lower_bound_s(apart, "throughput") < 0.6 * value_s


def test_memory_that_forces_a_slow_mesh_raises_the_bound():
    def bound_s(fast_bytes):
        fast = kind("fast", flops_per_s=1e14, memory_bytes=fast_bytes)
        slow = kind("slow", flops_per_s=1e9, memory_bytes=TOTAL_BYTES * 2)
        return lower_bound_s(costs(CHAIN, cluster_of([fast, slow])), "latency")

    assert bound_s(TOTAL_BYTES / 3) > 10 * bound_s(TOTAL_BYTES * 2)
