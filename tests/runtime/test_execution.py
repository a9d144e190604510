"""A model in stages on several meshes computes what it computes uncut."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gimlax.graph import Workload, chain, trace
from gimlax.runtime import gather
from tests import zoo
from tests.runtime.conftest import on_cpu, over_backends, trace_specimen

pytestmark = over_backends

ONE_CLIENT = (("cpu",), ("cpu", "cpu:1"), ("cpu", "cpu:1", "cpu"))
TWO_CLIENTS = (
    ("plugin",),
    ("cpu", "plugin"),
    ("plugin", "cpu", "cpu:1"),
    ("cpu", "plugin", "cpu", "plugin", "cpu"),
)


def assert_within(found, expected, relative):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=relative * np.abs(b).max()),
        found,
        jax.tree.map(np.asarray, expected),
    )


@pytest.mark.parametrize("kind", zoo.ZOO)
@pytest.mark.parametrize("placement", ONE_CLIENT + TWO_CLIENTS, ids="-".join)
def test_cut_and_uncut_agree(kind, placement, deploy):
    specimen = zoo.ZOO[kind]()
    step = deploy(trace_specimen(specimen), placement)
    args = (step.place(specimen.args[0]), *specimen.args[1:])
    called, submitted = step(*args), step.submit(*args).result()
    # XLA fuses a stage apart from its neighbours, so one client may differ in the last bits.
    relative = 2e-6 if placement in ONE_CLIENT else 5e-6
    expected = on_cpu(specimen.fn, *specimen.args)
    assert_within(gather(called), expected, relative)
    # Both ways run the same compiled stages: no bit may differ between them.
    jax.tree.map(np.testing.assert_array_equal, gather(called), gather(submitted))


@pytest.mark.parametrize("kind", zoo.ZOO)
@pytest.mark.parametrize(
    ("placement", "relative"), [(("cpu", "cpu:1"), 2e-6), (("plugin", "cpu"), 5e-6)]
)
def test_every_single_boundary(kind, placement, relative, deploy):
    specimen = zoo.ZOO[kind]()
    found = chain(trace_specimen(specimen))
    expected = on_cpu(specimen.fn, *specimen.args)
    for boundary in range(1, found.num_segments):
        (step,) = deploy(found, placement, cuts=(boundary,)).values()
        args = (step.place(specimen.args[0]), *specimen.args[1:])
        assert_within(gather(step(*args)), expected, relative)


@pytest.mark.parametrize("placement", [("cpu",), ("cpu", "plugin")], ids="-".join)
def test_outputs_lie_where_their_stage_ran(placement, deploy, meshes):
    specimen = zoo.plain()
    step = deploy(trace_specimen(specimen), placement)
    logits, _ = step(step.place(specimen.args[0]), *specimen.args[1:])
    assert isinstance(logits, jax.Array)
    assert logits.devices() == set(meshes[placement[-1]].devices.flat)


def test_state_follows_from_pass_to_pass(deploy):
    specimen = zoo.plain()
    params, cache, tokens, _ = specimen.args
    step = deploy(trace_specimen(specimen), ("cpu", "plugin", "cpu"))
    placed, state = step.place(params), step.init(cache)
    for position in range(0, 6, 3):
        logits, state = step(placed, state, tokens, np.int32(position))
        expected, cache = on_cpu(specimen.fn, params, cache, tokens, np.int32(position))
        assert_within(logits, expected, 5e-6)
    assert state.generation == 2
    assert_within(gather(state), cache, 5e-6)


def test_equal_trees_are_taken_from_wherever_they_lie(deploy):
    specimen = zoo.plain()
    params, cache, tokens, position = specimen.args
    step = deploy(trace_specimen(specimen), ("cpu", "cpu:1"))
    placed = step.place(params)
    expected, _ = step(placed, cache, tokens, position)
    for elsewhere in jax.devices():
        moved = jax.device_put((cache, tokens, position), elsewhere)
        for run in (step, lambda *a: step.submit(*a).result()):
            logits, _ = run(placed, *moved)
            np.testing.assert_array_equal(logits, expected)
    assert not any(x.is_deleted() for x in jax.tree.leaves(moved))  # state was copied, not donated


def test_typed_keys_cross_meshes(deploy):
    def noisy(params, key, x):
        for weights in params:
            key, here = jax.random.split(key)
            x = jnp.tanh(x @ weights) + jax.random.normal(here, x.shape)
        return x, key

    params = [zoo.normal(4, 4, seed=i) for i in range(4)]
    traced = trace(noisy, params, jax.random.key(3), zoo.normal(2, 4))
    step = deploy(traced, ("cpu", "plugin"))
    args = (jax.random.key(3), zoo.normal(2, 4))
    x, key = step(step.place(params), *args)
    expected, expected_key = on_cpu(noisy, params, *args)
    assert_within(x, expected, 5e-6)
    np.testing.assert_array_equal(*map(jax.random.key_data, (key, expected_key)))


def test_state_that_is_a_typed_key_can_be_gathered(deploy):
    def draw(params, key):
        key, here = jax.random.split(key)
        return params + jax.random.uniform(here), key

    step = deploy(trace(draw, np.float32(1), jax.random.key(0), carried={1: 1}), ("plugin",))
    _, state = step(step.place(np.float32(1)), step.init(jax.random.key(0)))
    expected = jax.random.split(jax.random.key(0))[0]
    np.testing.assert_array_equal(*map(jax.random.key_data, (gather(state), expected)))


def test_keyword_arguments_and_trees_travel_with_the_call(deploy):
    def fn(params, batch, *, scale):
        return {"y": params * batch["x"] + batch["b"], "s": (scale, None)}

    batch = {"x": np.float32(3), "b": np.ones(4, np.float32)}
    step = deploy(trace(fn, np.float32(2), batch, scale=np.float32(5)), ("cpu",))
    found = step(step.place(np.float32(2)), batch, scale=5.0)
    np.testing.assert_array_equal(found["y"], np.full(4, 7, np.float32))
    assert float(found["s"][0]) == 5
    assert found["s"][1] is None


def test_a_traced_configuration_is_kept(deploy):
    with jax.enable_x64(True):
        traced = trace(lambda w, x: w * x, np.float64(1 / 3), np.float64(1))
    step = deploy(traced, ("cpu",))
    for run in (step, lambda *a: step.submit(*a).result()):
        found = run(step.place(np.float64(1 / 3)), np.float64(1))
        assert found.dtype == np.float64
        assert float(found) == 1 / 3


def test_phases_share_handles(deploy):
    specimen = zoo.plain()
    params, cache, tokens, position = specimen.args
    one = tokens[:1]
    workload = Workload(
        {
            "prefill": trace(specimen.fn, params, cache, tokens, position, carried={1: 1}),
            "decode": trace(specimen.fn, params, cache, one, position, carried={1: 1}),
        }
    )
    steps = deploy(chain(workload), ("cpu", "plugin"))
    assert list(steps) == ["prefill", "decode"]
    placed, state = steps.place(params), steps.init(cache)
    _, state = steps["prefill"](placed, state, tokens, np.int32(0))
    first = steps["decode"].submit(placed, state, one, np.int32(6))
    logits, state = steps["decode"](placed, first.carried[0], one, np.int32(7))
    _, cache = on_cpu(specimen.fn, params, cache, tokens, np.int32(0))
    _, cache = on_cpu(specimen.fn, params, cache, one, np.int32(6))
    expected, cache = on_cpu(specimen.fn, params, cache, one, np.int32(7))
    assert_within(logits, expected, 5e-6)
    assert_within(gather(state), cache, 5e-6)
    with pytest.raises(KeyError, match="no phase 'train'"):
        steps["train"]
