"""Checks of live passes: which are checked, that they change nothing, and what they tell."""

import dataclasses
import threading
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gimlax as gx
from gimlax.graph import trace
from gimlax.runtime import gather, tapping
from gimlax.runtime.probing import watching
from tests import zoo
from tests.runtime.conftest import trace_specimen

LIMIT_S = 60


@pytest.mark.parametrize("way", ["call", "submit"])
def test_every_nth_pass_is_checked_and_none_is_changed(way, cluster, two_meshes):
    specimen = zoo.plain()
    params, cache, tokens, _ = specimen.args
    traced = trace_specimen(specimen)
    planned = gx.plan(traced, cluster, cuts=2, meshes=two_meshes)

    def run(step):
        placed, state = step.place(params), step.init(cache)
        found, futures = [], []
        for position in range(7):
            if way == "call":
                logits, state = step(placed, state, tokens, np.int32(position))
            else:
                future = step.submit(placed, state, tokens, np.int32(position))
                (state,) = future.carried
                futures.append(future)
                logits = None
            found.append(logits)
        if futures:
            found = [future.result()[0] for future in futures]
        return found, gather(state)

    with gx.compile(planned, traced) as step:
        expected = run(step)
        assert step.checks == ()
    with gx.compile(planned, traced, check_every=3) as step:
        found = run(step)
        checks = step.checks
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert [check.number for check in checks] == [1, 4, 7]
    assert all(check.ok for check in checks)
    # It is the pass's own inputs and state that are probed, not made ones.
    bounds = {tuple(f.bound for f in check.report.findings) for check in checks}
    assert len(bounds) == 3
    assert "inputs of this pass" in str(checks[0].report)


def diverging(params, state, x):
    """Its state grows until it is infinite, and in the second stage infinity becomes NaN."""
    state = state * params["a"]
    x = x @ params["w"] + state
    x = jnp.maximum(x, 0) @ params["w"]
    return (x - x[:, ::-1]) @ params["w"], state


PARAMS = {"a": np.float32(1e20), "w": np.ones((4, 4), np.float32)}


def deployed(deploy, fn, *args, carried=None, **settings):
    traced = trace(fn, *args, carried=carried)
    return deploy(traced, ("cpu", "plugin"), check_every=1, **settings)


def test_the_first_stage_that_makes_nan_is_named(deploy):
    x = np.ones((2, 4), np.float32)
    state = np.ones(4, np.float32)
    step = deployed(deploy, diverging, PARAMS, state, x, carried={1: 1}, cuts=(1,))
    placed, state = step.place(PARAMS), step.init(np.ones(4, np.float32))
    with pytest.warns(gx.ContractWarning):
        for _ in range(3):
            _, state = step(placed, state, x)
        checks = step.checks
    assert [bool(check.not_finite) for check in checks] == [False, True, True]
    said = checks[1].not_finite
    assert "NaN" in said and "stage 1" in said and "'plugin'" in said
    assert "makes the same of it" in said  # it is the model's doing


def test_nan_of_a_backend_alone_is_told_from_that_of_the_model(deploy, break_mesh):
    fn = lambda w, x: jnp.tanh(jnp.tanh(x @ w) @ w) @ w  # noqa: E731
    w, x = np.eye(4, dtype=np.float32), np.ones((2, 4), np.float32)
    break_mesh("plugin", "tanh", lambda y: y / 0)
    step = deployed(deploy, fn, w, x, cuts=(1,))
    with pytest.warns(gx.ContractWarning, match=r"pass 1: stage 1 .*NaN.*none of it there"):
        step(step.place(w), x)
        step.close()


def test_a_weight_that_is_not_finite_is_named(deploy):
    fn = lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"]  # noqa: E731
    good = np.eye(4, dtype=np.float32)
    params, x = {"a": good, "b": good * np.nan}, np.ones((2, 4), np.float32)
    step = deployed(deploy, fn, params, x)
    with pytest.warns(gx.ContractWarning, match=r"it was given some in \w+\['b'\]"):
        step(step.place(params), x)
        step.close()


def test_masks_of_infinity_are_no_news(deploy):
    def masked(w, x):
        scores = jnp.where(x > 0, x @ w, -jnp.inf)
        return jax.nn.softmax(scores) @ w, scores

    w, x = np.eye(4, dtype=np.float32), np.float32([[1, -1, 2, -2], [3, 1, -1, 1]])
    step = deployed(deploy, masked, w, x)
    step(step.place(w), x)
    assert [check.ok for check in step.checks] == [True]


def test_a_breach_on_live_data_warns_and_the_pass_goes_on(deploy, break_mesh):
    fn = lambda w, x: jnp.tanh(jnp.tanh(x @ w) @ w) @ w  # noqa: E731
    w, x = zoo.normal(4, 4), zoo.normal(2, 4)
    break_mesh("plugin", "tanh", lambda y: y * 1.01)
    step = deployed(deploy, fn, w, x, cuts=(1,))
    with pytest.warns(gx.ContractWarning, match=r"stage 1 .*'plugin'.*breaks the numerical"):
        assert np.isfinite(step(step.place(w), x)).all()
        step.close()
    with pytest.raises(gx.SpecError, match="closed"):
        step(step.place(w), x)


def test_a_user_who_makes_errors_of_warnings_gets_one_at_the_next_check(deploy, break_mesh):
    fn = lambda w, x: jnp.tanh(jnp.tanh(x @ w) @ w) @ w  # noqa: E731
    w, x = zoo.normal(4, 4), zoo.normal(2, 4)
    break_mesh("plugin", "tanh", lambda y: y * 1.01)
    step = deployed(deploy, fn, w, x, cuts=(1,))
    placed = step.place(w)
    step(placed, x)
    with pytest.raises(gx.ContractWarning, match="pass 1"):
        step(placed, x)
    assert len(step.checks) == 1


def test_inputs_may_be_written_over_while_they_are_checked(deploy, monkeypatch):
    go_on = threading.Event()
    examine = watching.examine

    def late(*args, **settings):
        assert go_on.wait(LIMIT_S)
        return examine(*args, **settings)

    monkeypatch.setattr(watching, "examine", late)
    fn = lambda w, x: jnp.tanh(jnp.tanh(x @ w) @ w) @ w  # noqa: E731
    w, x = zoo.normal(4, 4), zoo.normal(2, 4)
    step = deployed(deploy, fn, w, x, cuts=(1,))
    step(step.place(w), x).block_until_ready()
    x[:] = 0
    go_on.set()
    assert [check.ok for check in step.checks] == [True]


def test_what_is_judged_is_what_the_pass_made(deploy):
    """A stage that is wrong once is not run again to be found right."""
    fn = lambda w, x: jnp.tanh(jnp.tanh(x @ w) @ w) @ w  # noqa: E731
    w, x = zoo.normal(4, 4), zoo.normal(2, 4)
    step = deployed(deploy, fn, w, x, cuts=(1,))
    stages = step._phase.stages
    real, calls = stages[1].call, []

    def once_wrong(*given):
        state, produced, token = real(*given)
        calls.append(given)
        return state, tuple(p * (1.1 if len(calls) == 1 else 1) for p in produced), token

    broken = dataclasses.replace(stages[1], call=once_wrong)
    step._steps = tuple((of, broken if stage is stages[1] else stage) for of, stage in step._steps)
    placed = step.place(w)
    with pytest.warns(gx.ContractWarning, match=r"pass 1: stage 1 .*only the whole does"):
        step(placed, x)
        assert len(step.checks) == 1
    step(placed, x)
    assert [check.ok for check in step.checks] == [False, True]
    assert len(calls) == 2


def test_a_tap_keeps_no_memory_that_others_want_back():
    """State is donated, and what was received may lie over a link's memory; results are free."""
    stage = SimpleNamespace(index=0, received=(("m", 1),), produced=(("m", 2),))
    given, received, updated, produced = (jnp.full(3, i) for i in range(4))
    tap = tapping.LocalTap(1)
    tap.before(stage, [[given]], [received])
    tap.after(stage, [[updated]], [produced])
    for array in (given, received, updated):
        array.delete()
    kept = (tap.given(0)[0][0], tap.value("m", 1), tap.updated(0)[0][0], tap.value("m", 2))
    for i, array in enumerate(kept):
        np.testing.assert_array_equal(array, np.full(3, i))
    assert kept[3] is produced
    tap.let_go()
    with pytest.raises(KeyError):
        tap.given(0)


def test_a_pass_goes_on_if_there_is_no_room_to_check_it(deploy, monkeypatch):
    def no_room(arrays):
        raise RuntimeError("RESOURCE_EXHAUSTED: out of memory")

    x, state = np.ones((2, 4), np.float32), np.zeros(4, np.float32)
    step = deployed(deploy, diverging, PARAMS, state, x, carried={1: 1}, cuts=(1,))
    placed = step.place(PARAMS)
    expected, state = step(placed, step.init(state), x)
    assert len(step.checks) == 1
    monkeypatch.setattr(tapping, "_copies", no_room)
    with pytest.warns(gx.ContractWarning, match="pass 2 could not be checked.*EXHAUSTED.*room"):
        found, state = step(placed, state, x)
        assert len(step.checks) == 1
    np.testing.assert_array_equal(found, expected)
    assert state.generation == 2
