"""Constraints in a model along axes that no mesh has are told, wherever they stand."""

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from gimlax.errors import SpecError
from gimlax.graph import Workload, trace
from gimlax.planning import pareto, plan
from tests.planning.cases import cluster_of, kind
from tests.planning.groups.test_groups import cluster as groups_of

WEIGHTS = [jax.ShapeDtypeStruct((32, 32), np.float32)] * 3
ROWS = jax.ShapeDtypeStruct((8, 32), np.float32)
TWO = cluster_of([kind("a"), kind("b")])


def model(spec, axis, *, in_a_loop=False):
    mesh = AbstractMesh((2,), (axis,), axis_types=(AxisType.Auto,))

    def layer(x, w):
        with jax.named_scope("hidden"):
            x = jax.lax.with_sharding_constraint(x @ w, NamedSharding(mesh, spec))
        return jax.nn.silu(x)

    def apply(params, x):
        if in_a_loop:
            return jax.lax.fori_loop(0, 3, lambda _, y: layer(y, params[0]), x)
        for w in params:
            x = layer(x, w)
        return x

    return trace(apply, WEIGHTS, ROWS)


@pytest.mark.parametrize("in_a_loop", [False, True])
@pytest.mark.parametrize("spec", [P("z"), P(None, ("z",)), P(P.UNCONSTRAINED, "z")])
def test_an_axis_that_no_mesh_has_is_named(spec, in_a_loop):
    pattern = r"^phase 'apply': with_sharding_constraint in .*'z'.* but meshes have 'data', 'model'"
    with pytest.raises(SpecError, match=pattern) as refused:
        plan(model(spec, "z", in_a_loop=in_a_loop), TWO)
    assert str(refused.value).count("with_sharding_constraint") == 1


def test_all_phases_are_looked_at_and_whatever_plans():
    both = Workload({name: model(P(None, "z"), "z") for name in ("one", "two")})
    with pytest.raises(SpecError, match=r"phase 'one': .*\nphase 'two': "):
        plan(both, TWO)
    with pytest.raises(SpecError, match="phase 'one'"):
        pareto(both, TWO, goals=("latency", "throughput"))
    with pytest.raises(SpecError, match="phase 'one'"):
        plan(both, groups_of([2]))


def test_the_axes_of_meshes_are_taken():
    plan(model(P(None, "model"), "model"), TWO)
    plan(model(P(P.UNCONSTRAINED, None), "z"), TWO)
