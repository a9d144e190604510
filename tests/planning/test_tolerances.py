"""Tolerances: one figure for each dtype with its reason, and what a plan says of its edges."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from gimlax.devices import Cluster
from gimlax.errors import PlanError
from gimlax.graph import chain, trace
from gimlax.planning import Layout, Plan, plan
from gimlax.planning.tolerances import (
    BETWEEN_CLIENTS,
    SAME_CLIENT,
    edge_tolerances,
    narrowest,
    reasons,
    tolerance,
)

FLOATS = [name for name in dir(ml_dtypes) if name.startswith(("float8", "float4", "bfloat16"))] + [
    "float16",
    "float32",
    "float64",
]


@pytest.mark.parametrize("name", FLOATS)
def test_every_float_that_jax_has_a_dtype_for_is_bounded(name):
    if not hasattr(jnp, name):
        pytest.skip(f"JAX has no {name}")
    found = tolerance(jnp.dtype(name), BETWEEN_CLIENTS)
    assert 0 < found.relative < 1 and found.ulp >= 1
    # No bound is tighter than the rounding of the dtype itself.
    assert found.relative >= float(jnp.finfo(name).eps) / 2
    assert tolerance(jnp.dtype(name), SAME_CLIENT).relative <= found.relative
    assert len(reasons()[name]) > 40


@pytest.mark.parametrize("dtype", ["int32", "int8", "uint4", "bool", "int64"])
def test_whole_numbers_are_equal_or_wrong(dtype):
    found = tolerance(jnp.dtype(dtype), BETWEEN_CLIENTS, "bfloat16")
    assert (found.absolute, found.relative, found.ulp) == (0, 0, 0)
    assert str(found) == f"{dtype} equal"


def test_float32_has_what_the_design_says():
    assert tolerance(jnp.dtype("float32"), SAME_CLIENT).relative == 2e-6
    assert tolerance(jnp.dtype("float32"), BETWEEN_CLIENTS).relative == 5e-6
    assert tolerance(jnp.dtype("complex64"), BETWEEN_CLIENTS).relative == 5e-6


def test_a_value_is_bounded_by_the_narrowest_dtype_on_the_way_to_it():
    half, single = jnp.dtype("bfloat16"), jnp.dtype("float32")
    assert tolerance(single, BETWEEN_CLIENTS, "bfloat16").relative == (
        tolerance(half, BETWEEN_CLIENTS).relative
    )
    assert tolerance(half, BETWEEN_CLIENTS, "float32") == tolerance(half, BETWEEN_CLIENTS)


def test_what_is_only_read_rounds_nothing():
    def widen(w, x):
        return w.astype(jnp.float32) @ x

    def narrow(w, x):
        return jax.lax.scan(lambda c, _: (c + w.astype(jnp.bfloat16), None), x, length=2)[0]

    w, x = jnp.ones((2, 2), jnp.bfloat16), jnp.ones((2, 2), jnp.float32)
    assert narrowest([trace(widen, w, x).jaxpr]) == "float32"
    assert narrowest([trace(narrow, w, w).jaxpr]) == "bfloat16"
    assert narrowest([trace(lambda w, i: i + 1, w, np.int32(1)).jaxpr]) == ""


CLUSTER = """
[[mesh]]
name = "a"
device_kind = "H100 SXM"
{first}
[[mesh]]
name = "b"
device_kind = "MI300X"
{second}
[[link]]
source = "a"
target = "b"
latency_s = 20e-6
bandwidth_bytes_per_s = 25e9
[[link]]
source = "b"
target = "a"
latency_s = 20e-6
bandwidth_bytes_per_s = 25e9
"""


def planned(first="", second="", dtype=jnp.float32, meshes=("a", "b", "a")):
    def fn(params, x):
        for w in params:
            x = jnp.tanh(x @ w)
        return x, jnp.argmax(x)

    traced = trace(fn, [jnp.ones((4, 4), dtype)] * 3, jnp.ones((2, 4), dtype))
    cluster = Cluster.from_toml(CLUSTER.format(first=first, second=second))
    return plan(traced, cluster, cuts=(1, 2), meshes=meshes)


def test_a_plan_says_what_its_edges_allow():
    found = planned(dtype=jnp.bfloat16)
    assert [(e.source, e.target) for e in found.edges] == [("a", "b"), ("b", "a")]
    assert {e.relation for e in found.edges} == {BETWEEN_CLIENTS}
    expected = tolerance(jnp.dtype("bfloat16"), BETWEEN_CLIENTS)
    assert all(e.tolerances == (expected,) for e in found.edges)
    assert found.edges[0].of("bfloat16") == expected and found.edges[0].of("int8") is None
    assert Plan.from_json(found.to_json()) == found
    assert "what crosses 'a' -> 'b', 'b' -> 'a' may be off by (between clients" in found.explain()
    assert str(expected) in found.explain()


def test_meshes_of_one_live_backend_are_one_client():
    same = planned('backend = "cuda"', 'backend = "cuda"\nfirst_device = 1')
    assert {e.relation for e in same.edges} == {SAME_CLIENT}
    assert same.edges[0].tolerances[0].relative == 2e-6
    two = planned('backend = "cuda"', 'backend = "rocm"')
    assert {e.relation for e in two.edges} == {BETWEEN_CLIENTS}


def test_the_same_backend_in_two_processes_is_two_clients():
    specs = [replace(spec, backend="cuda") for spec in planned().specs]
    apart = [replace(spec, worker=f"worker of {spec.name}") for spec in specs]
    together = [replace(spec, worker="w") for spec in specs]
    model = chain(trace(lambda w, x: jnp.tanh(x @ w) @ w, jnp.ones((4, 4)), jnp.ones((2, 4))))
    layout = Layout.pipeline((1,), ("a", "b"), model.num_segments)
    for of, relation in ((apart, BETWEEN_CLIENTS), (together, SAME_CLIENT)):
        assert [e.relation for e in edge_tolerances(layout, of, model)] == [relation]


def test_a_plan_of_before_has_none_and_one_with_others_is_refused():
    found = planned()
    assert Plan.from_json(replace(found, tolerances=()).to_json()).edges == ()
    with pytest.raises(PlanError, match="tolerances for each of its 2 hops"):
        replace(found, tolerances=found.tolerances[:1])
    wrong = replace(found.tolerances[0], relation="cousins")
    with pytest.raises(PlanError, match="'cousins', not one of same client"):
        replace(found, tolerances=(wrong, found.tolerances[1]))
    wrong = replace(found.tolerances[0], source="b")
    with pytest.raises(PlanError, match="are of 'b' to 'b', in its layout"):
        replace(found, tolerances=(wrong, found.tolerances[1]))
