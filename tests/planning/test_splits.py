"""Meshes that leave their axes to the planner, against planning every split by itself."""

import itertools
import json
from dataclasses import replace
from unittest import mock

import jax
import pytest
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec

from gimlax.devices import Cluster
from gimlax.errors import PlanError, SpecError
from gimlax.graph import chain, trace
from gimlax.planning import Objective, Plan, plan
from gimlax.planning.belonging import check_plan
from gimlax.planning.cost import costs
from tests.planning.sharding.models import f32, mlp, mlp_shapes
from tests.planning.test_sharded_memory import CHAIN, cluster


def two_layers(params, x):
    return mlp(params[1], mlp(params[0], x))


# Many rows and small weights: to split the batch needs no collective.
BATCHED = chain(trace(two_layers, [mlp_shapes(64, 256)] * 2, f32(4096, 64)))

# Two divides every dim, and four none.
EVEN = chain(trace(two_layers, [mlp_shapes(66, 258)] * 2, f32(4098, 66)))


def five_layers(params, x):
    for weights in params:
        x = mlp(weights, x)
    return x


# Four divides no dim of the narrow layers at the ends, which decide what is best for all of them;
# the wide ones would rather have all devices on one axis.
MIXED = chain(
    trace(five_layers, [mlp_shapes(64, w) for w in (258, 2**16, 64, 2**16, 258)], f32(66, 64))
)


def opened(made):
    return replace(made, meshes=tuple(replace(mesh, axes=()) for mesh in made.meshes))


def every_split(made):
    """The same cluster with each combination of splits."""
    of = [
        [(d, mesh.num_devices // d) for d in (1, 2, 4) if mesh.num_devices % d == 0]
        for mesh in made.meshes
    ]
    for sizes in itertools.product(*of):
        axes = [(("data", d), ("model", m)) for d, m in sizes]
        meshes = zip(made.meshes, axes, strict=True)
        yield replace(made, meshes=tuple(replace(mesh, axes=a) for mesh, a in meshes))


def best_value(tested, made, **request):
    values = []
    for split in every_split(made):
        try:
            values.append(plan(tested, split, **request).value)
        except PlanError:
            continue
    return min(values, default=None)


@pytest.mark.parametrize("goal", ["latency", "throughput", "usd"])
@pytest.mark.parametrize("share", [0.1, 0.3, 0.6, 2.0])
@pytest.mark.parametrize("tested", [CHAIN, BATCHED], ids=["llama", "batched"])
def test_the_split_is_the_best_of_all(tested, share, goal):
    whole = costs(tested, cluster(devices=(1,))).problem.stage_bytes()[0, 0, -1]
    made = cluster(whole * share, devices=(4, 2))
    request = {"objective": Objective(goal=goal)}
    best = best_value(tested, made, **request)
    if best is None:
        with pytest.raises(PlanError, match="fits nowhere"):
            plan(tested, opened(made), **request)
        return
    found = plan(tested, opened(made), **request)
    assert found.value == pytest.approx(best, rel=1e-9)
    assert 0 < found.bound <= found.value
    fixed = {spec.name: spec for spec in found.specs}
    meshes = tuple(fixed.get(mesh.name, mesh) for mesh in made.meshes)
    again = plan(tested, replace(made, meshes=meshes), **request)
    assert again.value == pytest.approx(found.value, rel=1e-9)


def test_both_axes_are_used_where_no_dim_takes_all_devices():
    made = opened(cluster(devices=(4,)))
    found = plan(EVEN, made)
    (spec,) = found.specs
    assert spec.axes == (("data", 2), ("model", 2))
    assert found.value < plan(EVEN, cluster(devices=(4,))).value
    assert "of4_0 (2 x 2)" in str(found)
    assert not found.shardings[0].exact
    assert "sharding of 'of4_0': the best that was found, not proved best" in str(found)
    one_axis = plan(EVEN, cluster(devices=(2,)))
    assert one_axis.shardings[0].exact and "not proved best" not in str(one_axis)
    assert Plan.from_json(found.to_json()) == found
    check_plan(found, EVEN, made)
    tampered = json.loads(found.to_json())
    tampered["specs"][0]["axes"] = []
    with pytest.raises(PlanError, match="mesh 'of4_0' has no axes; make a new plan"):
        Plan.from_json(json.dumps(tampered))


@pytest.mark.parametrize("tested", [CHAIN, BATCHED, EVEN], ids=["llama", "batched", "even"])
@pytest.mark.parametrize(("share", "goal"), [(0.3, "latency"), (2.0, "throughput")])
def test_a_mesh_that_comes_back_has_the_one_split_that_is_best(tested, share, goal):
    whole = costs(tested, cluster(devices=(1,))).problem.stage_bytes()[0, 0, -1]
    made = cluster(whole * share, devices=(4, 2))
    a, b = (mesh.name for mesh in made.meshes)
    request = {"objective": Objective(goal=goal), "meshes": (a, b, a)}
    best = best_value(tested, made, **request)
    if best is None:
        with pytest.raises(PlanError, match="fits nowhere"):
            plan(tested, opened(made), **request)
        return
    found = plan(tested, opened(made), **request)
    assert (found.value, found.method) == (pytest.approx(best, rel=1e-9), "exact")
    again = plan(tested, replace(made, meshes=found.specs), **request)
    assert again.value == pytest.approx(found.value, rel=1e-9)
    free = plan(tested, opened(made), objective=request["objective"])
    assert found.comparison.free.value == pytest.approx(free.value, rel=1e-9)


@pytest.mark.parametrize("shares", [("compute",), ("compute", "memory")])
@pytest.mark.parametrize("tested", [CHAIN, BATCHED], ids=["llama", "batched"])
def test_meshes_that_share_a_host_have_the_one_split_that_is_best(tested, shares):
    whole = costs(tested, cluster(devices=(1,))).problem.stage_bytes()[0, 0, -1]
    made = cluster(whole * 3, devices=(4, 4))
    meshes = tuple(replace(mesh, host="x", shares=shares) for mesh in made.meshes)
    made = replace(made, meshes=meshes)
    request = {"objective": Objective(goal="throughput"), "cuts": 2}
    found = plan(tested, opened(made), **request)
    assert found.method == "exact"
    assert found.value == pytest.approx(best_value(tested, made, **request), rel=1e-9)


@pytest.mark.parametrize("shared", [False, True])
def test_a_mesh_of_one_split_has_that_of_its_stages_and_not_of_the_whole_model(shared):
    made = cluster(devices=(4, 4, 4))
    a, b, c = (mesh.name for mesh in made.meshes)
    request = {"cuts": (1, 3, 4, 5), "meshes": (c, a, b, a, c)}
    if shared:
        request = {"cuts": (1, 5), "meshes": (a, b, c)}
        host = {"host": "x", "shares": ("compute",)}
        meshes = [replace(mesh, **(host if mesh.name != c else {})) for mesh in made.meshes]
        made = replace(made, meshes=tuple(meshes))
    found = plan(MIXED, opened(made), **request)
    assert found.method == "exact"
    split = {spec.name: set(dict(spec.axes).values()) for spec in found.specs}
    assert split[b if shared else a] == {1, 4} and split[c] == {2}
    everywhere = [replace(mesh, axes=(("data", 2), ("model", 2))) for mesh in made.meshes]
    assert found.value < plan(MIXED, replace(made, meshes=tuple(everywhere)), **request).value
    again = plan(MIXED, replace(made, meshes=found.specs), **request)
    assert again.value == pytest.approx(found.value, rel=1e-9)


def test_more_splits_of_such_meshes_than_are_tried_are_not_called_exact(monkeypatch):
    made = opened(cluster(devices=(4, 2)))
    a, b = (mesh.name for mesh in made.meshes)
    best = plan(BATCHED, made, meshes=(a, b, a))
    monkeypatch.setattr("gimlax.planning.splits.MOST_PROBLEMS", 1)
    found = plan(BATCHED, made, meshes=(a, b, a))
    assert (best.method, found.method) == ("exact", "local")
    assert found.value >= best.value


def test_a_mesh_that_comes_back_has_one_split():
    made = opened(cluster(devices=(4, 2)))
    names = [mesh.name for mesh in made.meshes]
    found = plan(CHAIN, made, meshes=(names[0], names[1], names[0]))
    assert [spec.name for spec in found.specs] == names
    assert 0 < found.bound <= found.value


def test_specs_that_are_given_choose_among_the_splits_that_take_them():
    made = opened(cluster(devices=(4,)))
    found = plan(BATCHED, made, shardings={"params[0]['up']": PartitionSpec(None, "model")})
    (of,) = found.shardings
    assert ("params[0]['up']", ((), ("model",))) in of.specs
    with pytest.raises(SpecError, match="params"):
        plan(BATCHED, made, shardings={"params[0]['up']": PartitionSpec("nowhere")})


@pytest.mark.parametrize("devices", [1, 4, 6, 8])
def test_mirror_images_of_a_split_are_priced_only_where_an_axis_is_named(devices):
    made = opened(cluster(devices=(devices,)))
    factors = [(d, devices // d) for d in range(1, devices + 1) if devices % d == 0]

    def tried(found, **settings):
        with mock.patch("gimlax.planning.meshes.costs", wraps=costs) as priced:
            plan(found, made, **settings)
        return [tuple(dict(c.args[1].meshes[0].axes).values()) for c in priced.call_args_list]

    assert tried(BATCHED) == [(data, model) for data, model in factors if data <= model]
    spec = {"params[0]['up']": PartitionSpec("data")}
    on_data = [(data, model) for data, model in factors if data > 1] or factors
    fits = [(data, model) for data, model in on_data if 64 % data == 0]
    assert set(tried(BATCHED, shardings=spec) if devices > 1 else fits) >= set(fits)

    def constrained(params, x):
        mesh = AbstractMesh((1, 1), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
        named = NamedSharding(mesh, PartitionSpec("model"))
        return two_layers(params, jax.lax.with_sharding_constraint(x, named))

    if 4096 % devices == 0:
        inside = chain(trace(constrained, [mlp_shapes(64, 256)] * 2, f32(4096, 64)))
        on_model = [(data, model) for data, model in factors if model > 1] or factors
        assert tried(inside) == on_model


def test_a_file_without_axes_leaves_them_open(tmp_path):
    made = opened(cluster(devices=(4,)))
    path = tmp_path / "cluster.toml"
    path.write_text(made.to_toml())
    assert "axes" not in path.read_text()
    assert Cluster.load(path).meshes == made.meshes
