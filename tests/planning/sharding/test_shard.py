"""Layouts that a search must find, those that it must leave alone, and what it refuses."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from gimlax.errors import PlanError, SpecError
from gimlax.graph import trace
from gimlax.models import SMOLLM2_135M
from tests.planning.sharding.models import (
    every_kind,
    expert_shapes,
    experts,
    f32,
    kind,
    kinds_of,
    llama_config,
    mlp,
    mlp_shapes,
    sharded,
    trace_llama,
)

ROWS, COLUMNS = (("model",), ()), ((), ("model",))


@pytest.mark.parametrize("size", [4, 8])
def test_a_llama_layer_is_split_by_heads_and_hidden_units_with_two_sums(size):
    found = sharded(
        trace_llama(llama_config(width=256, head_size=32, mlp_width=1024)),
        {"data": 1, "model": size},
    )
    layers = kinds_of(found)[1:-1]
    assert layers == [["all_reduce"]] * 4
    for layer in range(2):
        path = f"params['layers'][{layer}]"
        for name in ("query", "key", "value"):
            assert found.specs[f"{path}['attention']['{name}']"] == ROWS
        assert found.specs[f"{path}['attention']['output']"] == COLUMNS
        for name in ("gate", "up"):
            assert found.specs[f"{path}['mlp']['{name}']"] == ROWS
        assert found.specs[f"{path}['mlp']['down']"] == COLUMNS
        for name in "kv":
            assert found.specs[f"cache[{layer}]['{name}']"] == ((), (), ("model",), ())


def test_only_what_is_exact_is_called_so(monkeypatch):
    traced = trace_llama(llama_config(width=256, head_size=32, mlp_width=1024))
    assert sharded(traced, {"data": 1, "model": 4}).exact
    assert sharded(traced, {"data": 1, "model": 1}).exact
    assert not sharded(traced, {"data": 2, "model": 2}).exact  # one axis after another

    def twice(params, x):
        return mlp(params, mlp(params, x))

    shared = trace(twice, mlp_shapes(64, 256), f32(64, 64))
    assert sharded(shared, {"data": 1, "model": 4}).exact
    monkeypatch.setattr("gimlax.planning.sharding.axis._MOST_SHARED", 1)
    assert not sharded(shared, {"data": 1, "model": 4}).exact
    assert sharded(traced, {"data": 1, "model": 4}).exact  # shares nothing
    monkeypatch.setattr("gimlax.planning.sharding.elimination.MAX_ENTRIES", 4)
    assert not sharded(traced, {"data": 1, "model": 4}).exact


@pytest.mark.parametrize("size", [6, 12, 5040])
def test_what_no_number_of_devices_divides_stays_whole(size):
    found = sharded(trace_llama(llama_config()), {"data": 1, "model": size})
    assert every_kind(found) == []
    assert not any(any(spec) for spec in found.specs.values())


def test_phases_share_the_specs_and_equal_layers_have_equal_ones():
    config = llama_config(width=256, head_size=32, mlp_width=1024, num_layers=4)
    phases = {"prefill": trace_llama(config, length=8), "decode": trace_llama(config)}
    found = sharded(phases, {"data": 1, "model": 4}, calls={"prefill": 1, "decode": 64})
    for layer in range(1, 4):
        same = {p: s for p, s in found.specs.items() if "[0]" in p}
        for path, spec in same.items():
            assert found.specs[path.replace("[0]", f"[{layer}]")] == spec
    assert len(found.segments) == 2
    assert kinds_of(found, 1)[1:-1] == [["all_reduce"]] * 8


def test_local_operations_do_a_share_of_the_work():
    traced = trace_llama(llama_config(width=256, head_size=32, mlp_width=1024))
    alone = sharded(traced, {"data": 1, "model": 1})
    found = sharded(traced, {"data": 1, "model": 4})
    assert found.carried_bytes * 4 == alone.carried_bytes
    assert found.resident_bytes < 0.3 * alone.resident_bytes
    for whole, part in zip(alone.segments[0][1:], found.segments[0][1:], strict=True):
        products = [
            sum(o.count * o.flops for o in s.operations if o.kind in ("matmul", "attention"))
            for s in (whole, part)
        ]
        assert products[1] == pytest.approx(products[0] / 4, rel=0.02)
        assert {o.kind for o in whole.operations} == {o.kind for o in part.operations}


@pytest.mark.parametrize("size", [2, 4, 8])
def test_nine_heads_are_not_split_where_nine_does_not_divide(size):
    config = SMOLLM2_135M
    found = sharded(trace_llama(config), {"data": 1, "model": size}, card=kind(slower=1e-3))
    for layer in range(config.num_layers):
        path = f"params['layers'][{layer}]['attention']"
        assert found.specs[f"{path}['query']"][0] == ()
        assert found.specs[f"{path}['output']"][1] == ()
        assert found.specs[f"cache[{layer}]['k']"][2] == ()
        # Without heads in the way, 1,536 hidden units divide.
        assert found.specs[f"params['layers'][{layer}]['mlp']['up']"] == ROWS


def test_nine_heads_are_split_by_three():
    found = sharded(trace_llama(SMOLLM2_135M), {"data": 1, "model": 3}, card=kind(slower=1e-3))
    path = "params['layers'][7]['attention']"
    assert found.specs[f"{path}['query']"] == ROWS
    assert found.specs[f"{path}['output']"] == COLUMNS
    assert found.specs["cache[7]['k']"] == ((), (), ("model",), ())


def test_experts_are_split_by_expert_with_one_collective():
    traced = trace(experts, expert_shapes(width=64, hidden=256), f32(4, 64))
    found = sharded(traced, {"data": 1, "model": 4})
    by_expert = (("model",), (), ())
    assert found.specs["params['up']"] == found.specs["params['down']"] == by_expert
    assert len(every_kind(found)) == 1


def test_what_is_too_small_to_gain_is_left_alone():
    traced = trace(mlp, mlp_shapes(), f32(4, 16))
    found = sharded(traced, {"data": 1, "model": 4}, card=kind(1e6, slower=1e-2))
    assert set(found.specs.values()) == {((), ())}
    assert every_kind(found) == []


def test_a_large_batch_is_split_over_both_axes():
    traced = trace(mlp, mlp_shapes(), f32(4096, 16))
    found = sharded(traced, {"data": 2, "model": 2}, card=kind(slower=1e-5))
    assert found.streamed[0]["x"] == (("data", "model"), ())
    assert every_kind(found) == []


def test_given_specs_are_kept():
    traced = trace(mlp, mlp_shapes(), f32(4, 16))
    given = {"params['up']": P("model", None), "x": P()}
    found = sharded(traced, {"data": 1, "model": 4}, given=given)
    assert found.specs["params['up']"] == ROWS
    assert found.streamed[0]["x"] == ((), ())


def constrained(spec, size=4):
    mesh = AbstractMesh((1, size), ("data", "model"), axis_types=(AxisType.Auto,) * 2)

    def model(params, x):
        hidden = jax.nn.relu(x @ params["up"])
        hidden = jax.lax.with_sharding_constraint(hidden, NamedSharding(mesh, spec))
        return hidden @ params["down"]

    return model


def test_constraints_inside_of_the_model_are_kept():
    whole = trace(constrained(P(None, None)), mlp_shapes(), f32(4, 16))
    found = sharded(whole, {"data": 1, "model": 4})
    assert found.specs["params['down']"] != ROWS
    split = trace(constrained(P(None, "model")), mlp_shapes(), f32(4, 16))
    found = sharded(split, {"data": 1, "model": 4}, card=kind(1e6, slower=1e-2))
    assert found.specs["params['up']"] == COLUMNS


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"params['up']": P("rows")}, "axis 'rows', but meshes have 'data', 'model'"),
        ({"params['up']": P("model")}, r"dim 0 of \[6, 9\] into 4 parts"),
        ({"params['up']": P("model", "model")}, "two dims along axis 'model'"),
        ({"params['up']": P(None, None, "model")}, "has 3 dims"),
        ({"params['over']": P()}, "params\\['over'\\]: a spec is given for it, but no argument"),
    ],
)
def test_a_wrong_spec_is_named(given, message):
    traced = trace(mlp, mlp_shapes(6, 9), f32(4, 6))
    with pytest.raises(SpecError, match=message):
        sharded(traced, {"data": 1, "model": 4}, given=given)


def test_all_wrong_specs_are_reported():
    given = {"params['up']": P("rows"), "params['down']": P("model")}
    with pytest.raises(SpecError) as error:
        sharded(trace(mlp, mlp_shapes(6, 9), f32(4, 6)), {"data": 1, "model": 4}, given=given)
    assert str(error.value).count("\n") == 1


def test_a_constraint_that_does_not_divide_is_named():
    traced = trace(constrained(P("model", None), 3), mlp_shapes(), f32(4, 16))
    with pytest.raises(PlanError, match=r"splits dim 0 of \[4, 64\] along axis 'model', whose 3"):
        sharded(traced, {"data": 1, "model": 3})


def test_a_card_without_an_interconnect_is_refused():
    card = kind()
    card = type(card)(**{f: getattr(card, f) for f in card.__slots__} | {"interconnect": None})
    with pytest.raises(SpecError, match="'test' has no interconnect"):
        sharded(trace(mlp, mlp_shapes(), f32(4, 16)), {"data": 1, "model": 4}, card=card)


def test_state_comes_back_as_it_went_in():
    def step(params, state, x):
        y = x @ params["w"]
        return y.sum(), state + jnp.tanh(y)

    traced = trace(step, {"w": f32(64, 64)}, f32(8, 64), f32(8, 64), carried={1: 1})
    found = sharded(traced, {"data": 1, "model": 4})
    assert found.specs["state"] in {(("model",), ()), ((), ("model",))}
