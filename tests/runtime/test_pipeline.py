"""Passes in flight: order, bounds, failure, cancelling, and threads that end."""

import concurrent.futures
import dataclasses
import gc
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gimlax.errors import BackendError, SpecError
from gimlax.graph import trace
from gimlax.runtime import gather
from tests import zoo
from tests.runtime.conftest import gimlax_threads, on_cpu, over_backends, trace_specimen

pytestmark = over_backends

FIVE = ("cpu", "plugin", "cpu", "plugin", "cpu")
ONES = np.ones(4, np.float32)


def counting(params, state, x):
    """Four steps over one state of four rows, with a boundary between any two."""
    rows = []
    for i, weights in enumerate(params):
        x = jnp.tanh(x @ weights)
        x = x / (1 + jnp.abs(x).mean())
        rows.append(state[i] + 1)
    return x, rows


PARAMS = [zoo.normal(4, 4, seed=i) for i in range(4)]
STATE = [np.zeros((), np.float32) for _ in range(4)]


def trace_counting():
    return trace(counting, PARAMS, STATE, ONES, carried={1: 1})


class Gate:
    """Stands in front of a stage's call: holds it, or makes it fail."""

    def __init__(self, call):
        self.call = call
        self.open = threading.Event()
        self.reached = threading.Event()
        self.error = None

    def __call__(self, *args):
        self.reached.set()
        assert self.open.wait(60)
        if self.error is not None:
            raise self.error
        return self.call(*args)


@pytest.fixture
def gate():
    """Puts a gate in front of a stage of an executable; opened at the end, so nothing hangs."""
    gates = []

    def put(step, index):
        phase = step._phase
        gates.append(Gate(phase.stages[index].call))
        stages = [
            dataclasses.replace(s, call=gates[-1]) if s.index == index else s for s in phase.stages
        ]
        object.__setattr__(phase, "stages", tuple(stages))
        step._steps = tuple((s, phase.stage_of(s.instruction)) for s in phase.steps)
        return gates[-1]

    yield put
    for each in gates:
        each.open.set()


def test_independent_states_do_not_mix(deploy):
    specimen = zoo.plain()
    params, cache, tokens, _ = specimen.args
    step = deploy(trace_specimen(specimen), FIVE)
    placed = step.place(params)
    states = [step.init(cache) for _ in range(6)]
    inputs = [(tokens + i) % 50 for i in range(6)]
    for position in range(3):
        futures = [
            step.submit(placed, state, x, np.int32(position))
            for state, x in zip(states, inputs, strict=True)
        ]
        found = [f.result() for f in futures]
        states = [state for _, state in found]
    for x, (logits, state) in zip(inputs, found, strict=True):
        expected = cache
        for position in range(3):
            out, expected = on_cpu(specimen.fn, params, expected, x, np.int32(position))
        np.testing.assert_allclose(logits, out, atol=5e-6 * np.abs(out).max())
        assert state.generation == 3
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), gather(state), expected
        )


def test_a_state_can_be_handed_on_before_it_is_there(deploy, gate):
    step = deploy(trace_counting(), ("cpu", "plugin"))
    held = gate(step, 1)
    placed, state = step.place(PARAMS), step.init(STATE)
    futures = []
    for _ in range(5):
        futures.append(step.submit(placed, state, ONES))
        [state] = futures[-1].carried
    assert not futures[0].done()
    held.open.set()
    assert state.generation == 5
    assert gather(state) == [5, 5, 5, 5]  # waits for all five
    assert all(f.done() for f in futures)
    _, state = step(placed, state, ONES)  # a call takes it as well
    assert gather(state) == [6, 6, 6, 6]


def test_results_come_in_any_order_they_are_asked_for(deploy):
    step = deploy(trace(lambda w, x: x * w, np.float32(2), ONES), ("cpu",))
    placed = step.place(np.float32(2))
    futures = {step.submit(placed, ONES * i): i for i in range(20)}
    for future in concurrent.futures.as_completed(futures, timeout=60):
        np.testing.assert_array_equal(future.result(timeout=60), ONES * 2 * futures[future])


def test_inputs_may_change_after_submit(deploy, gate):
    step = deploy(trace(lambda w, x: x * w, np.float32(2), ONES), ("cpu",))
    held = gate(step, 0)
    x = ONES.copy()
    future = step.submit(step.place(np.float32(2)), x)
    x[:] = 100
    held.open.set()
    np.testing.assert_array_equal(future.result(60), ONES * 2)


def test_submit_waits_while_the_pipeline_is_full(deploy, gate):
    step = deploy(trace_counting(), ("cpu", "plugin"), max_in_flight=2)
    held = gate(step, 0)
    placed = step.place(PARAMS)
    for _ in range(2):
        step.submit(placed, step.init(STATE), ONES)
    entered, third = threading.Event(), []

    def submit():
        entered.set()
        third.append(step.submit(placed, step.init(STATE), ONES))

    thread = threading.Thread(target=submit)
    thread.start()
    assert entered.wait(60)
    [pipeline] = step._deployment.executor._pipelines
    assert len(pipeline.futures()) == 2
    assert not third
    held.open.set()
    thread.join(60)
    assert gather(third[0].result()[1]) == [1, 1, 1, 1]


def test_submit_from_many_threads(deploy):
    step = deploy(trace_counting(), ("cpu", "plugin", "cpu"))
    placed = step.place(PARAMS)
    results, errors = [], []

    def hammer():
        try:
            state = step.init(STATE)
            for i in range(15):
                run = step if i % 3 == 0 else lambda *a: step.submit(*a).result(60)
                _, state = run(placed, state, ONES)
            results.append(gather(state))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=hammer) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert errors == []
    assert results == [[15, 15, 15, 15]] * 6


def test_a_callback_may_submit_the_next_pass(deploy):
    step = deploy(trace_counting(), ("cpu", "plugin"), max_in_flight=1)
    placed, ended, seen = step.place(PARAMS), threading.Event(), []

    def following(future):
        _, state = future.result()
        seen.append(state.generation)
        if state.generation == 10:
            ended.set()
            return
        # The second of these finds the pipeline full, and waiting here would be for itself.
        next_pass = step.submit(placed, state, ONES)
        step.submit(placed, step.init(STATE), ONES)
        next_pass.add_done_callback(following)

    step.submit(placed, step.init(STATE), ONES).add_done_callback(following)
    assert ended.wait(60)
    assert seen == list(range(1, 11))


def test_a_failing_stage_stops_everything_and_is_named(deploy, gate):
    step = deploy(trace_counting(), ("cpu", "plugin", "cpu:1"))
    names = step.program.segments[1]
    held = gate(step, 1)
    held.error = RuntimeError("RESOURCE_EXHAUSTED: out of memory\nlong story")
    placed, states = step.place(PARAMS), [step.init(STATE) for _ in range(4)]
    futures = [step.submit(placed, state, ONES) for state in states]
    held.open.set()
    for future in futures:
        with pytest.raises(BackendError) as caught:
            future.result(60)
        text = str(caught.value)
        assert "stage 1 (" in text
        assert all(repr(name) in text for name in (names[0], names[-1]))
        assert "on mesh 'plugin' failed: RESOURCE_EXHAUSTED: out of memory;" in text
        assert "long story" not in text
        assert caught.value.__cause__ is held.error
    assert gimlax_threads() == []  # without close()
    with pytest.raises(SpecError, match="was lost when a pass failed"):
        states[0].read("state[0]")
    held.error = None
    _, state = step.submit(placed, step.init(STATE), ONES).result(60)  # it starts anew
    assert gather(state) == [1, 1, 1, 1]


def test_a_call_that_fails_names_its_stage_and_loses_its_state(deploy, gate):
    step = deploy(trace_counting(), ("cpu", "plugin"))
    held = gate(step, 1)
    held.open.set()
    held.error = RuntimeError("gone")
    placed, state = step.place(PARAMS), step.init(STATE)
    with pytest.raises(BackendError, match=r"stage 1 .* on mesh 'plugin' failed: gone"):
        step(placed, state, ONES)
    with pytest.raises(SpecError, match="lost"):
        gather(state)
    held.error = None
    assert gather(step(placed, step.init(STATE), ONES)[1]) == [1, 1, 1, 1]


def test_a_failure_leaves_the_states_of_passes_that_had_not_begun(deploy, gate):
    step = deploy(trace_counting(), ("cpu", "plugin"))
    held = gate(step, 0)
    held.error = RuntimeError("gone")
    placed, mine = step.place(PARAMS), step.init(STATE)
    first = step.submit(placed, step.init(STATE), ONES)
    assert held.reached.wait(60)
    following = step.submit(placed, *first.carried, ONES)
    waiting = step.submit(placed, mine, ONES)
    held.open.set()
    for future in (first, following, waiting):
        assert isinstance(future.exception(60), BackendError)
    for never in (*first.carried, *following.carried, *waiting.carried):
        with pytest.raises(SpecError, match=r"lost|never came to be"):
            gather(never)
    assert gather(mine) == [0, 0, 0, 0]


class Broken:
    """Stands for an array whose computation failed; a watcher learns of it only when released."""

    def __init__(self, released):
        self.released = released

    def is_ready(self):
        return False

    def block_until_ready(self):
        if threading.current_thread().name.startswith("gimlax watch"):
            assert self.released.wait(60)
        raise RuntimeError("poisoned")


@pytest.mark.parametrize("token_too", [True, False])
def test_a_failing_transfer_names_the_stage_behind_it_or_itself(token_too, deploy, gate):
    step = deploy(trace_counting(), ("cpu", "plugin"))
    released = threading.Event()
    held = gate(step, 0)
    held.open.set()
    call = held.call

    def poisoned(*args):
        state, produced, token = call(*args)
        return state, (Broken(released),) * len(produced), Broken(released) if token_too else token

    held.call = poisoned
    error = step.submit(step.place(PARAMS), step.init(STATE), ONES).exception(60)
    released.set()
    assert isinstance(error, BackendError)
    if token_too:
        assert "stage 0 (" in str(error)
        assert "on mesh 'cpu' failed: poisoned" in str(error)
    else:
        assert "of 'counting' from mesh 'cpu' to 'plugin' failed" in str(error)


def failing():
    """A function whose execution, not its dispatch, fails where `x` is negative."""

    def check(x):
        if x[0] < 0:
            raise ValueError("a negative input")
        return x

    def fn(w, x):
        x = jnp.tanh(x @ w)
        x = x / (1 + jnp.abs(x).mean())
        x = jax.pure_callback(check, jax.ShapeDtypeStruct(x.shape, x.dtype), x)
        x = jnp.tanh(x @ w)
        return x / (1 + jnp.abs(x).mean())

    return trace(fn, np.eye(4, dtype=np.float32), ONES)


@pytest.mark.parametrize("placement", [("cpu",), ("cpu", "plugin"), ("cpu", "cpu:1")], ids="-".join)
def test_a_real_failing_execution_names_the_stage_that_it_failed_in(placement, deploy):
    step = deploy(failing(), placement)
    placed = step.place(np.eye(4, dtype=np.float32))
    futures = [step.submit(placed, x) for x in (ONES, -ONES)]
    with pytest.raises(BackendError, match=r"stage \d .* on mesh 'cpu' failed: .*"):
        futures[1].result(60)
    assert gimlax_threads() == []
    with pytest.raises(BackendError, match=r"on mesh 'cpu' failed"):
        for _ in range(200):  # a call may return before its stage fails; a later one says so
            step(placed, -ONES)
    step._tokens.clear()
    step(placed, ONES).block_until_ready()


def test_a_pass_that_was_not_dispatched_can_be_cancelled(deploy, gate):
    step = deploy(trace_counting(), ("cpu", "plugin"))
    held = gate(step, 0)
    placed, states = step.place(PARAMS), [step.init(STATE) for _ in range(2)]
    first = step.submit(placed, states[0], ONES)
    assert held.reached.wait(60)
    second = step.submit(placed, states[1], ONES)
    [promised] = second.carried
    assert not first.cancel()  # it has begun, and its state must stay consistent
    assert second.cancel()
    assert second.cancelled() and second.done()
    with pytest.raises(concurrent.futures.CancelledError):
        second.result()
    with pytest.raises(SpecError, match="cancelled"):
        gather(promised)
    held.open.set()
    assert gather(first.result(60)[1]) == [1, 1, 1, 1]
    _, state = step(placed, states[1], ONES)  # usable again
    assert gather(state) == [1, 1, 1, 1]
    assert not first.cancel()


def test_a_pass_that_another_one_follows_cannot_be_cancelled(deploy, gate):
    step = deploy(trace_counting(), ("cpu", "plugin"))
    held = gate(step, 0)
    placed = step.place(PARAMS)
    blocker = step.submit(placed, step.init(STATE), ONES)
    assert held.reached.wait(60)
    first = step.submit(placed, step.init(STATE), ONES)
    second = step.submit(placed, first.carried[0], ONES)
    assert not first.cancel()
    assert second.cancel()
    assert first.cancel()
    held.open.set()
    blocker.result(60)


def test_a_pass_without_state_can_be_cancelled_at_any_time(deploy, gate):
    step = deploy(trace(lambda w, x: x * w, np.float32(2), ONES), ("cpu",))
    held = gate(step, 0)
    future = step.submit(step.place(np.float32(2)), ONES)
    assert held.reached.wait(60)
    assert future.cancel() and future.cancelled()
    assert concurrent.futures.wait([future], 60).done == {future}
    held.open.set()


def test_closing_waits_for_passes_and_ends_threads(deploy):
    step = deploy(trace_counting(), ("cpu", "plugin"))
    placed = step.place(PARAMS)
    with step:
        assert gimlax_threads() == []  # none before the first submit
        future = step.submit(placed, step.init(STATE), ONES)
        assert sorted(set(gimlax_threads())) == sorted(
            f"gimlax {track}"
            for track in ("cpu", "plugin", "watch cpu", "watch plugin", "cpu -> plugin")
        )
    assert gimlax_threads() == []
    assert gather(future.result(0)[1]) == [1, 1, 1, 1]
    for use in (step, step.submit):
        with pytest.raises(SpecError, match="'counting' is closed"):
            use(placed, step.init(STATE), ONES)
    step.close()


def test_threads_end_when_nobody_holds_the_executable(meshes, deploy):
    step = deploy(trace_counting(), ("cpu", "plugin"))
    step.submit(step.place(PARAMS), step.init(STATE), ONES).result(60)
    threads = list(step._deployment.executor._pipelines[0]._threads)
    finalizer = step._deployment.executor._finalizer
    deploy.forget()
    del step
    for _ in range(100):  # a thread may still be letting go of the pass
        if finalizer.alive:
            gc.collect()
    assert not finalizer.alive
    for thread in threads:
        thread.join(60)
    assert gimlax_threads() == []


def test_close_in_a_callback_is_refused(deploy):
    step = deploy(trace(lambda w, x: x * w, np.float32(2), ONES), ("cpu",))
    heard = concurrent.futures.Future()

    def callback(_):
        try:
            step._deployment.executor._pipelines[0].close()
        except SpecError as error:
            heard.set_result(str(error))

    step.submit(step.place(np.float32(2)), ONES).add_done_callback(callback)
    assert "callback" in heard.result(60)


def test_spans_of_a_mesh_do_not_overlap(deploy):
    ticks = iter(range(10**9))
    lock = threading.Lock()

    def clock():
        with lock:
            return float(next(ticks))

    step = deploy(trace_counting(), ("cpu", "plugin", "cpu"), clock=clock)
    placed = step.place(PARAMS)
    step.submit(placed, step.init(STATE), ONES).result()
    with step.record() as recording:
        for _ in range(5):
            step.submit(placed, step.init(STATE), ONES)
        step(placed, step.init(STATE), ONES)
    step.submit(placed, step.init(STATE), ONES).result()
    timeline = recording.timeline
    links = {"cpu -> plugin", "plugin -> cpu"}
    assert set(timeline.tracks()) == {"cpu", "plugin", *links}
    tasks = [span.task for span in timeline.spans]
    for i in range(3):
        assert tasks.count(f"counting: stage {i}") == 6
    for track in timeline.tracks():
        spans = [span for span in timeline.spans if span.mesh == track]
        assert all(a.end_s <= b.start_s for a, b in zip(spans, spans[1:]))
    with step.record(), pytest.raises(SpecError, match="under way already"), step.record():
        pass


class Slow:
    """Stands for a token that comes when it is released."""

    def __init__(self, token):
        self.token = token
        self.released = threading.Event()

    def is_ready(self):
        return self.released.is_set()

    def block_until_ready(self):
        assert self.released.wait(60)
        return self.token.block_until_ready()


def test_a_pipeline_says_what_its_devices_are_at(deploy, gate):
    step = deploy(trace_counting(), ("cpu", "plugin"))
    held = gate(step, 0)
    held.open.set()
    call, tokens = held.call, []

    def slow(*args):
        state, produced, token = call(*args)
        tokens.append(Slow(token))
        return state, produced, tokens[-1]

    held.call = slow
    placed = step.place(PARAMS)
    first = step.submit(placed, step.init(STATE), ONES)
    second = step.submit(placed, first.carried[0], ONES)
    (pipeline,) = step._deployment.executor._pipelines
    jobs = first.job, second.job
    for count, (job, future) in enumerate(zip(jobs, (first, second), strict=True), 1):
        while len(tokens) < count or "plugin" in pipeline.under_way():
            threading.Event().wait(0.001)
        running = pipeline.under_way()["cpu"]
        assert running.job is job
        assert running.stage.index == 0
        tokens[count - 1].released.set()
        future.result(60)
    assert pipeline.under_way() == {}
