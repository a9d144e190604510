"""Whatever ends first, nothing waits for ever: workers, executables, passes, and their restarts."""

import gc
import threading
import weakref

import jax.numpy as jnp
import numpy as np
import pytest

import gimlax as gx
from gimlax.devices import WorkerSpec
from gimlax.graph import trace
from gimlax.runtime.workers.launching import ChildProcesses
from tests.runtime.workers.conftest import cluster_of, compile_on

LIMIT_S = 60


def within_limit(act):
    """What `act` returned or raised, unless it takes for ever."""
    found = []

    def run():
        try:
            found.append((act(), None))
        except BaseException as error:
            found.append((None, error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(LIMIT_S)
    assert found, "it is still waiting"
    result, error = found[0]
    if error is not None:
        raise error
    return result


def layers(params, x):
    for w in params:
        x = jnp.tanh(x @ w)
    return x


PARAMS = [np.eye(16, dtype=np.float32)] * 4
X = np.ones((4, 16), np.float32)


@pytest.fixture
def started():
    cluster = cluster_of(WorkerSpec(name="one", platforms="cpu"))
    workers = gx.start_workers(cluster)
    step = compile_on(workers, trace(layers, PARAMS, X), ("one",), cuts=())
    yield workers, step
    within_limit(step.close)
    within_limit(workers.close)


def test_workers_may_be_closed_before_what_runs_on_them(started):
    workers, step = started
    placed = step.place(PARAMS)
    step(placed, X)
    futures = [step.submit(placed, X) for _ in range(3)]
    within_limit(workers.close)
    for future in futures:
        try:
            np.testing.assert_allclose(future.result(LIMIT_S), np.tanh(X), atol=1)
        except gx.BackendError as error:
            assert "closed" in str(error)
    with pytest.raises(gx.BackendError, match="closed"):
        within_limit(lambda: step(placed, X))
    within_limit(step.close)
    with pytest.raises(gx.SpecError, match="is closed"):
        step.place(PARAMS)


def test_workers_keep_nothing_of_what_was_closed(started):
    workers, _ = started
    step = compile_on(workers, trace(layers, PARAMS, X), ("one",), cuts=())
    step(step.place(PARAMS), X)
    ended = weakref.ref(step._deployment.executor)
    step.close()
    del step
    gc.collect()
    assert ended() is None


def test_a_workload_with_nowhere_to_run_ends_its_passes(started, monkeypatch):
    workers, step = started
    placed = step.place(PARAMS)
    step(placed, X)

    def refuse(self, spec, *, timeout_s):
        raise gx.BackendError(f"worker {spec.name!r} cannot be started here")

    monkeypatch.setattr(ChildProcesses, "start", refuse)
    workers.peers["one"].launched.kill()
    with pytest.raises(gx.BackendError, match="nowhere to run"):
        within_limit(lambda: step(placed, X))
    with pytest.raises(gx.BackendError, match="nowhere to run"):
        within_limit(lambda: step(placed, X))


def test_two_sides_that_send_much_do_not_wait_for_each_other():
    """Big inputs and outputs, with another thread that asks for more."""

    def echo(params, x):
        return x * params, x + params

    x = np.ones((1024, 1024), np.float32)
    cluster = cluster_of(WorkerSpec(name="one", platforms="cpu"))
    with gx.start_workers(cluster) as workers:
        step = compile_on(workers, trace(echo, np.float32(2), x), ("one",), cuts=())
        placed = step.place(np.float32(2))
        ending = threading.Event()

        def place():
            while not ending.is_set():
                step.place(np.float32(2))

        other = threading.Thread(target=place, daemon=True)
        other.start()

        def all_passes():
            return [future.result() for future in [step.submit(placed, x) for _ in range(60)]]

        assert len(within_limit(all_passes)) == 60
        ending.set()
        other.join(LIMIT_S)
        within_limit(step.close)


def test_a_callback_that_asks_a_worker_is_told_not_to(started):
    _, step = started
    placed = step.place(PARAMS)
    told = []

    def ask(_):
        try:
            step.place(PARAMS)
        except gx.GimlaxError as error:
            told.append(str(error))

    future = step.submit(placed, X)
    future.add_done_callback(ask)
    future.result(LIMIT_S)
    step(placed, X)  # the thread of callbacks has come through
    assert not told or "in a callback of a pass" in told[0]
