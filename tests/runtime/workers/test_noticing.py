"""That a worker lives is seen while it compiles; that it does not, by nobody who was asleep."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading

import jax
import jax.numpy as jnp
import numpy as np
import psutil
import pytest

from gimlax.graph import trace
from gimlax.runtime.workers.connection import accept, connect, listen
from gimlax.runtime.workers.noticing import _MOST_SILENT, Pulse
from tests.runtime.workers.conftest import compile_on

LIMIT_S = 60


def test_a_long_compilation_does_not_silence_a_worker(workers):
    """Sorts in a row are slow to compile, and XLA does so without Python's lock."""

    def slow(x):
        for i in range(60):
            x = jnp.sort(x * (i + 1.5), axis=i % 2) + jnp.tanh(x @ x.T @ x)
        return x

    x = np.ones((16, 16), np.float32)
    peer = workers.peers["one"]
    heard, set_heard = [], peer._pulse._heard.set
    peer._pulse._heard.set = lambda: (heard.append(None), set_heard())
    try:
        with compile_on(workers, trace(slow, x, resident=()), ("one",)) as step:
            during = len(heard)
            assert peer.lost is None
            np.testing.assert_allclose(step(x), jax.jit(slow)(x), rtol=1e-5)
    finally:
        del peer._pulse._heard.set
    assert during >= 3


class _Silent:
    """A connection that takes beats and never echoes one."""

    def __init__(self):
        self.sent = 0
        self.closed = threading.Event()

    def send(self, message):
        self.sent += 1

    def receive(self):
        self.closed.wait(LIMIT_S)

    def close(self):
        self.closed.set()


def test_silence_is_counted_in_waits(monkeypatch):
    waits = []

    class Event(threading.Event):
        def wait(self, timeout=None):
            if timeout is not None and timeout < 1:
                waits.append(timeout)
                return False
            return super().wait(timeout)

    monkeypatch.setattr("gimlax.runtime.workers.noticing.threading.Event", Event)
    silent = []
    pulse = Pulse("one", _Silent(), silent.append)
    pulse._threads[1].join(LIMIT_S)
    pulse.end()
    pulse.join()
    assert len(waits) == _MOST_SILENT
    assert silent == [pytest.approx(sum(waits))]
    assert sum(waits) < 3


def test_an_echo_in_time_keeps_the_peace():
    listener, address = listen()
    ends = []
    thread = threading.Thread(target=lambda: ends.append(accept(listener, b"s", timeout_s=LIMIT_S)))
    thread.start()
    mine = connect(address, b"s", timeout_s=LIMIT_S)
    thread.join()
    silent, echoed = [], threading.Semaphore(0)

    def echo():
        while (message := ends[0].receive()) is not None:
            ends[0].send(message)
            echoed.release()

    threading.Thread(target=echo, daemon=True).start()
    pulse = Pulse("one", mine, silent.append)
    for _ in range(3):
        assert echoed.acquire(timeout=LIMIT_S)
    pulse.end()
    pulse.join()
    listener.close()
    ends[0].close()
    assert silent == []


def test_an_interrupted_wait_leaves_the_pass_to_end_once(workers):
    def layers(params, x):
        for w in params:
            x = jnp.tanh(x @ w)
        return x

    params, x = [np.eye(16, dtype=np.float32)] * 4, np.ones((4, 16), np.float32)
    with compile_on(workers, trace(layers, params, x), ("one", "two")) as step:
        future = step.submit(step.place(params), x)
        ends = []
        future.add_done_callback(ends.append)

        class Interrupted:
            def __enter__(self):
                raise KeyboardInterrupt

            def __exit__(self, *_):
                pass

        condition, future._condition = future._condition, Interrupted()
        with pytest.raises(KeyboardInterrupt):
            future.result()
        future._condition = condition
        assert future.result(LIMIT_S).shape == (4, 16)
        assert ends == [future]


CONTROLLER = """
    import json, os, signal, sys
    import numpy as np, jax.numpy as jnp
    import gimlax as gx
    from gimlax.devices import WorkerSpec
    from tests.runtime.workers.conftest import cluster_of, compile_on
    from gimlax.graph import trace

    # The background job of a shell ignores it.
    signal.signal(signal.SIGINT, signal.default_int_handler)

    def layers(params, x):
        for w in params:
            x = jnp.tanh(x @ w)
        return x

    cluster = cluster_of(*(WorkerSpec(name=n, platforms="cpu") for n in ("one", "two")))
    params, x = [np.eye(16, dtype=np.float32)] * 4, np.ones((4, 16), np.float32)
    with gx.start_workers(cluster) as workers:
        pids = [p.ask("hello", {"protocol": 1})[0]["pid"] for p in workers.peers.values()]
        with compile_on(workers, trace(layers, params, x), ("one", "two")) as step:
            placed = step.place(params)
            try:
                print(json.dumps(pids), flush=True)
                while True:
                    step(placed, x)
            except KeyboardInterrupt:
                print("interrupted", flush=True)
    print("closed", flush=True)
"""


@pytest.mark.parametrize(
    "how", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM], ids=lambda s: s.name
)
def test_no_process_and_no_memory_outlives_its_controller(how):
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(CONTROLLER)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    pids = json.loads(child.stdout.readline())
    workers = [psutil.Process(pid) for pid in pids]
    child.send_signal(how)
    said, wrote = child.communicate(timeout=LIMIT_S)
    if how == signal.SIGINT:
        assert said.split() == ["interrupted", "closed"], wrote
    gone, alive = psutil.wait_procs(workers, timeout=LIMIT_S)
    assert not alive and len(gone) == 2
    assert not [name for name in os.listdir("/dev/shm") if "gimlax" in name]
