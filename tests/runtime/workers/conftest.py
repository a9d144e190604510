"""Two worker processes with their own XLA flags, and one with a backend of another library."""

import os
import signal
import threading

import pytest

import gimlax as gx
from gimlax.devices import Link, MeshSpec, WorkerSpec
from gimlax.graph import Chain, Traced, chain
from gimlax.runtime.compiling import compile
from gimlax.runtime.workers.server import PROTOCOL
from tests.runtime.conftest import spread_cuts

LIMIT_S = 60
TWO_DEVICES = "--xla_force_host_platform_device_count=2"


def cluster_of(*workers, **backends):
    """A mesh for each worker, of its first device; called as its worker."""
    names = [worker.name for worker in workers]
    return gx.Cluster(
        workers=workers,
        meshes=tuple(
            MeshSpec(
                name=name,
                device_kind="cpu",
                backend=backends.get(name, "cpu"),
                worker=name,
                memory_bytes=10**9,
            )
            for name in names
        ),
        links=tuple(
            Link(source=a, target=b, latency_s=1e-5, bandwidth_bytes_per_s=1e9)
            for a in names
            for b in names
            if a != b
        ),
    )


@pytest.fixture(scope="session")
def workers(plugin_name):
    """One set for all tests that do no harm to it."""
    cluster = cluster_of(
        WorkerSpec(name="one", platforms="cpu"),
        WorkerSpec(name="two", platforms="cpu", flags=TWO_DEVICES),
        WorkerSpec(name="other", platforms=f"cpu,{plugin_name}"),
        other=plugin_name,
    )
    with gx.start_workers(cluster) as started:
        yield started


def compile_on(workers, workload, placement, cuts=None, **settings):
    """The workload on the named meshes, cut as told or evenly."""
    found = chain(workload) if isinstance(workload, Traced) else workload
    cuts = spread_cuts(found, len(placement)) if cuts is None else cuts
    plan = gx.plan(found, workers.cluster, cuts=cuts, meshes=placement)
    return compile(
        plan,
        workload if isinstance(workload, Traced | Chain) else found,
        workers=workers,
        **settings,
    )


@pytest.fixture(scope="module")
def shared():
    names = ("one", "two", "three")
    cluster = cluster_of(*(WorkerSpec(name=name, platforms="cpu") for name in names))
    with gx.start_workers(cluster) as workers:
        yield workers


@pytest.fixture
def crew(shared):
    """Three workers; those that a test has lost are started again for the next."""
    for name in shared.lost:
        shared.start_again(name)
    return shared


def pid_of(workers, name):
    return workers.peers[name].ask("hello", {"protocol": PROTOCOL})[0]["pid"]


def hurt(workers, name, how=signal.SIGKILL):
    """Sends a signal to a worker, and waits until it is noticed."""
    peer = workers.peers[name]
    os.kill(pid_of(workers, name), how)
    noticed = threading.Event()
    peer.when_lost(lambda _: noticed.set())
    assert noticed.wait(LIMIT_S)
