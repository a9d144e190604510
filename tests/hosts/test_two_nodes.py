"""A Ray of two nodes that was started by hand, with a token: joined, asked, and run on over TCP."""

import contextlib
import os
import secrets
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import psutil
import pytest

import gimlax as gx
from gimlax import hosts
from gimlax.devices import WorkerSpec
from gimlax.errors import BackendError
from tests.runtime.workers.conftest import TWO_DEVICES, cluster_of, compile_on

WATCHDOG_S = 120
HEAD, OTHER = "127.0.0.2", "127.0.0.3"


@pytest.fixture(scope="module")
def address(ray, tmp_path_factory):
    """Of the head; both nodes are addresses of this host's loopback."""
    with socket.socket() as free:
        free.bind((HEAD, 0))
        port = free.getsockname()[1]
    patch = pytest.MonkeyPatch()
    patch.setenv("RAY_AUTH_MODE", "token")
    patch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
    folder = f"--temp-dir={tmp_path_factory.mktemp('r')}"
    nodes = []
    try:
        head = (f"--port={port}", f"--node-ip-address={HEAD}", "--include-dashboard=false", folder)
        nodes.append(start("--head", "--min-worker-port=0", "--max-worker-port=0", *head))
        wait_for(HEAD, port)
        nodes.append(start(f"--address={HEAD}:{port}", f"--node-ip-address={OTHER}"))
        yield f"{HEAD}:{port}"
    finally:
        patch.undo()
        for node in nodes:
            end(node)


def start(*flags):
    command = Path(sys.executable).with_name("ray")
    size = ("--num-cpus=0", "--object-store-memory=80000000", "--disable-usage-stats", "--block")
    return subprocess.Popen(
        [command, "start", *size, *flags],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def end(node):
    """Ends a node and all of its processes, those that Ray would leave behind included."""
    for process in [*psutil.Process(node.pid).children(recursive=True), node]:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    node.wait()


def wait_for(host, port):
    until = time.monotonic() + WATCHDOG_S
    while time.monotonic() < until:
        with contextlib.suppress(OSError):
            socket.create_connection((host, port)).close()
            return
        threading.Event().wait(0.1)
    raise AssertionError("Ray did not start")


@pytest.fixture(scope="module")
def both(address):
    """The address, once both nodes are there."""
    until = time.monotonic() + WATCHDOG_S
    while time.monotonic() < until:
        with hosts.join(address) as joined:
            if len(joined.nodes) == 2:
                return address
    raise AssertionError("the second node did not come")


def test_both_nodes_are_known_by_their_addresses(both):
    with hosts.join(both) as joined:
        assert {node.address for node in joined.nodes} == {HEAD, OTHER}
        assert [node.address for node in joined.nodes if node.here] == [HEAD]
        assert joined.node_of("", "it").address == HEAD
        assert joined.node_of(OTHER, "it").address == OTHER


def test_a_wrong_token_is_not_let_in(both, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0" * 64)
    with pytest.raises(BackendError, match=r"cannot join Ray .*is the token of that Ray"):
        hosts.join(both)


def test_a_model_over_workers_of_both_nodes(both):
    cluster = cluster_of(
        WorkerSpec(name="one", host=HEAD, platforms="cpu"),
        WorkerSpec(name="two", host=OTHER, platforms="cpu", flags=TWO_DEVICES),
    )

    def layers(params, x):
        for w in params:
            x = jnp.tanh(x @ w)
        return x

    params, x = [jnp.eye(8)] * 4, jnp.ones((2, 8))
    before = {p.pid for p in psutil.process_iter()}
    with gx.start_workers(cluster, ray=both) as workers:
        listening = {name: peer.launched.address[:2] for name, peer in workers.peers.items()}
        assert listening == {"one": ("tcp", HEAD), "two": ("tcp", OTHER)}
        with compile_on(workers, gx.trace(layers, params, x), ("one", "two", "one")) as step:
            found = step(step.place(params), x)
        np.testing.assert_allclose(np.asarray(found), layers(params, x), rtol=5e-6)
        pids = [peer.ask("hello", {"protocol": 1})[0]["pid"] for peer in workers.peers.values()]
        assert not before & set(pids)
    assert not [pid for pid in pids if alive(pid)]
    with hosts.join(both) as joined:  # it was not ours to end
        assert len(joined.nodes) == 2


def alive(pid):
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


def test_discovery_asks_both(both):
    cluster = gx.discover(ray=both)
    assert {worker.host for worker in cluster.workers} == {HEAD, OTHER}
    assert {f"{HEAD}/cpu", f"{OTHER}/cpu"} <= {mesh.name for mesh in cluster.meshes}
    assert os.environ.get("XLA_FLAGS", "") == cluster.workers[0].flags
