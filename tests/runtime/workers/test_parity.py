"""A model over several processes computes what it computes in one."""

import gc
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gimlax as gx
from gimlax.graph import chain, trace
from gimlax.runtime.workers.footing import Footing
from tests import zoo
from tests.runtime.conftest import on_cpu, trace_specimen
from tests.runtime.test_execution import assert_within
from tests.runtime.workers.conftest import LIMIT_S, compile_on

PLACEMENTS = (("one",), ("one", "two"), ("other", "one", "two"), ("one", "other", "one", "two"))


@pytest.mark.parametrize("kind", zoo.ZOO)
@pytest.mark.parametrize("placement", PLACEMENTS, ids="-".join)
def test_cut_over_workers_and_uncut_agree(kind, placement, workers):
    specimen = zoo.ZOO[kind]()
    with compile_on(workers, trace_specimen(specimen), placement) as step:
        args = (step.place(specimen.args[0]), *specimen.args[1:])
        called, submitted = step(*args), step.submit(*args).result()
        expected = on_cpu(specimen.fn, *specimen.args)
        assert_within(gx.gather(called), expected, 5e-6)
        jax.tree.map(np.testing.assert_array_equal, gx.gather(called), gx.gather(submitted))


@pytest.mark.parametrize("kind", zoo.ZOO)
def test_every_single_boundary(kind, workers):
    specimen = zoo.ZOO[kind]()
    found = chain(trace_specimen(specimen))
    expected = on_cpu(specimen.fn, *specimen.args)
    for boundary in range(1, found.num_segments):
        if found.splits(boundary):
            continue
        executables = compile_on(workers, found, ("two", "other"), cuts=(boundary,))
        with executables:
            (step,) = executables.values()
            args = (step.place(specimen.args[0]), *specimen.args[1:])
            assert_within(gx.gather(step(*args)), expected, 5e-6)


def test_equal_stages_are_compiled_once_on_a_worker(workers):
    def layers(params, x):
        for w in params:
            x = jnp.tanh(x @ w)
        return x

    traced = trace(layers, [jnp.eye(16)] * 6, jnp.ones((4, 16)))
    placement = ("one", "two", "one", "two", "one", "two")
    with compile_on(workers, traced, placement, cuts=(1, 2, 3, 4, 5)) as step:
        assert step.num_compiled == 2


@pytest.mark.parametrize("placement", [("one", "two"), ("two", "other", "one")], ids="-".join)
def test_passes_in_flight_keep_the_order_of_their_state(placement, workers):
    specimen = zoo.ZOO["plain"]()
    with compile_on(workers, trace_specimen(specimen), placement) as step:
        params, cache, tokens, position = specimen.args
        placed, state = step.place(params), step.init(cache)
        expected, futures = cache, []
        for _ in range(4):
            future = step.submit(placed, state, tokens, position)
            futures.append(future)
            (state,) = future.carried
        outputs = [future.result()[0] for future in futures]
        for found in outputs:
            logits, expected = on_cpu(specimen.fn, params, expected, tokens, position)
            assert_within(np.asarray(found), logits, 5e-6)
        assert_within(gx.gather(state), expected, 5e-6)
        assert state.generation == 4


def test_state_can_be_copied_read_and_written(workers):
    specimen = zoo.ZOO["plain"]()
    traced = trace_specimen(specimen)
    with compile_on(workers, traced, ("one", "two")) as step:
        cache = specimen.args[1]
        state = step.init(cache)
        copy = state.copy()
        path = traced.arguments[[a.position for a in traced.arguments].index(1)].path
        before = state.read(path)
        state.write(path, np.ones_like(before[0]), 0)
        assert (state.read(path, 0) == 1).all()
        np.testing.assert_array_equal(copy.read(path), before)
        np.testing.assert_array_equal(state.read(path)[1:], before[1:])


def test_what_a_stage_costs_is_asked_of_its_worker(workers):
    specimen = zoo.ZOO["plain"]()
    with compile_on(workers, trace_specimen(specimen), ("one", "two")) as step:
        assert step.cost_analysis()["flops"] > 0
        assert step.memory_analysis(1)["argument_size_in_bytes"] > 0


def test_handles_that_are_let_go_free_the_memory_of_their_worker(workers):
    specimen = zoo.ZOO["plain"]()
    with compile_on(workers, trace_specimen(specimen), ("one", "two")) as step:
        placed = step.place(specimen.args[0])
        number = step._deployment.executor._ground.footing.number
        for _ in range(3):
            step(placed, *specimen.args[1:])
        held = {
            peer.name: peer.ask("census", {"deployment": number})[0]
            for peer in workers.peers.values()
            if peer.name != "other"
        }
        for census in held.values():
            assert census["placed"] == 1
            assert census["cells"] <= 4  # those of the last pass, and what it took


def test_an_executable_that_is_dropped_leaves_its_workers_once_its_state_is_too(workers):
    params = np.float32(2)
    traced = gx.trace(lambda w, s, x: (w * x, s + x), params, params, params, carried={1: 1})
    step = compile_on(workers, traced, ("one",), cuts=[])
    number = step._deployment.executor._ground.footing.number
    _, state = step(step.place(params), step.init(params), params)

    def census():
        return workers.peers["one"].ask("census", {"deployment": number})[0]

    del step
    gc.collect()
    assert np.asarray(gx.gather(state)) == 4
    assert census()["cells"] == 1
    del state
    gc.collect()

    end_s = time.monotonic() + LIMIT_S
    with pytest.raises(gx.InternalError, match="is not on this worker"):
        while time.monotonic() < end_s:
            census()
            time.sleep(0.01)


def test_a_recording_has_the_spans_of_all_workers(workers):
    specimen = zoo.ZOO["plain"]()
    with compile_on(workers, trace_specimen(specimen), ("one", "two")) as step:
        args = (step.place(specimen.args[0]), *specimen.args[1:])
        with step.record() as recording:
            step(*args)
            step.submit(*args)
        assert set(recording.timeline.tracks()) == {"one", "one -> two", "two"}
        first = {span.mesh: span for span in reversed(recording.timeline.spans)}
        assert first["one"].start_s <= first["one -> two"].start_s <= first["two"].start_s


def test_a_recording_keeps_what_there_was_when_its_executable_is_closed(workers):
    specimen = zoo.ZOO["plain"]()
    step = compile_on(workers, trace_specimen(specimen), ("one", "two"))
    with step.record() as recording:
        step(step.place(specimen.args[0]), *specimen.args[1:])
        step.close()
    assert set(recording.timeline.tracks()) == {"one", "one -> two", "two"}
    with pytest.raises(gx.SpecError, match="is closed"):
        step.record()


def test_only_those_tell_of_the_end_that_nobody_waits_for(workers, monkeypatch):
    told = []
    hear = Footing._hear

    def listening(footing, name, message):
        told.append((name, message.kind))
        hear(footing, name, message)

    monkeypatch.setattr(Footing, "_hear", listening)
    specimen = zoo.ZOO["plain"]()
    with compile_on(workers, trace_specimen(specimen), ("one", "two", "other")) as step:
        args = (step.place(specimen.args[0]), *specimen.args[1:])
        step(*args)
        assert told == [("other", "done")]
        told.clear()
        with step.record():  # then all spans have to be there
            step(*args)
        assert sorted(told) == [("one", "done"), ("other", "done"), ("two", "done")]


def test_closing_ends_the_threads_of_the_executable(workers):
    before = {thread.name for thread in threading.enumerate()}
    specimen = zoo.ZOO["plain"]()
    step = compile_on(workers, trace_specimen(specimen), ("one", "two"))
    args = (step.place(specimen.args[0]), *specimen.args[1:])
    step(*args)
    step.close()
    assert {thread.name for thread in threading.enumerate()} <= before
    with pytest.raises(gx.SpecError, match="is closed"):
        step(*args)
