"""Workers that were described wrongly: told when the plan is compiled, by name, once each."""

import os
import signal

import jax.numpy as jnp
import numpy as np
import pytest

import gimlax as gx
from gimlax.devices import WorkerSpec
from gimlax.graph import trace
from gimlax.runtime.workers import binding, fleet
from gimlax.runtime.workers.server import PROTOCOL
from tests.runtime.workers.conftest import cluster_of, compile_on

NO_FLAG = "--xla_no_such_flag=3"
PARAMS = [np.eye(8, dtype=np.float32)] * 4
X = np.ones((2, 8), np.float32)


def layers(params, x):
    for w in params:
        x = jnp.tanh(x @ w)
    return x


def worker(name, platforms="cpu", flags=""):
    return WorkerSpec(name=name, platforms=platforms, flags=flags)


@pytest.fixture
def starts(monkeypatch):
    """Names of the workers that are started, in order."""
    told = []
    real = fleet._start

    def start(spec, *others):
        told.append(spec.name)
        return real(spec, *others)

    monkeypatch.setattr(fleet, "_start", start)
    return told


def test_a_worker_with_a_bad_flag_is_told_of_before_compile_returns(starts):
    cluster = cluster_of(worker("one"), worker("two", flags=NO_FLAG))
    with gx.start_workers(cluster) as workers:
        with pytest.warns(UserWarning) as told:
            step = compile_on(workers, trace(layers, PARAMS, X), ("one", "two"))
        with step:  # and nothing is left to be told of at the first pass
            assert step(step.place(PARAMS), X).shape == X.shape
    (warning,) = told
    said = str(warning.message)
    assert "worker 'two' is lost: it " in said and NO_FLAG in said
    assert said.endswith("The workload was planned anew: segments '0' to '3' on mesh 'one'")
    assert warning.filename.endswith("conftest.py")  # whoever called `compile`
    assert sorted(starts) == ["one", "two"]


def test_the_warning_as_an_error_leaves_nothing_on_the_workers():
    cluster = cluster_of(worker("one"), worker("two", flags=NO_FLAG))
    with gx.start_workers(cluster) as workers:
        with pytest.raises(UserWarning, match="planned anew"):
            compile_on(workers, trace(layers, PARAMS, X), ("one", "two"))
        assert workers.peers["one"]._listeners == {}


def test_two_bad_workers_are_named_once_each_and_started_again_once(starts):
    cluster = cluster_of(worker("one", flags=NO_FLAG), worker("two", flags=NO_FLAG))
    refused = pytest.raises(gx.BackendError, match="nowhere to run")
    with gx.start_workers(cluster) as workers, refused as told:
        compile_on(workers, trace(layers, PARAMS, X), ("one", "two"))
    said = str(told.value)
    for name in ("one", "two"):
        assert said.count(f"worker {name!r}") == 1
        assert starts.count(name) == 2
    assert said.count(NO_FLAG) == 2


def test_a_worker_that_was_killed_while_alone_is_started_again_and_told_of(starts):
    with gx.start_workers(cluster_of(worker("one"))) as workers:
        peer = workers.peers["one"]
        os.kill(peer.ask("hello", {"protocol": PROTOCOL})[0]["pid"], signal.SIGKILL)
        told = "worker 'one' is lost.* runs where it was planned, on workers that were started"
        with pytest.warns(UserWarning, match=told):
            step = compile_on(workers, trace(layers, PARAMS, X), ("one",), cuts=())
        with step:
            assert step(step.place(PARAMS), X).shape == X.shape
    assert starts == ["one", "one"]


def test_a_worker_whose_backend_does_not_start_is_given_up(monkeypatch):
    many = "--xla_force_host_platform_device_count=100000"  # takes minutes
    monkeypatch.setattr(binding, "_START_S", 1.0)
    cluster = cluster_of(worker("one", flags=many))
    refused = pytest.raises(gx.BackendError, match="'one' is lost: it has not started its backends")
    with gx.start_workers(cluster) as workers, refused:
        compile_on(workers, trace(layers, PARAMS, X), ("one",), cuts=())


def test_platforms_that_are_not_there_are_named_with_their_worker_and_what_is():
    cluster = cluster_of(worker("one", "cuda"), worker("two"), worker("three", "rocm"))
    with gx.start_workers(cluster) as workers:
        with pytest.raises(gx.BackendError) as told:
            compile_on(workers, trace(layers, PARAMS, X), ("one", "two", "three"))
        assert not workers.lost
    of_one, of_three, advice = str(told.value).splitlines()
    for said, name, platform in ((of_one, "one", "cuda"), (of_three, "three", "rocm")):
        assert said.startswith(f"worker {name!r} was started with platforms {platform!r}: ")
        assert f"{platform}: named by JAX_PLATFORMS, but nothing here provides it" in said
        assert f"cpu: left out by JAX_PLATFORMS={platform}" in said
    assert advice.startswith("correct the platforms of the worker")


def test_a_mesh_whose_backend_its_worker_leaves_out_is_named_with_both():
    cluster = cluster_of(worker("one"), one="cuda")
    told = r"worker 'one' was started with platforms 'cpu': mesh 'one': .*'cuda'.*live are 'cpu'"
    with gx.start_workers(cluster) as workers, pytest.raises(gx.BackendError, match=told):
        compile_on(workers, trace(layers, PARAMS, X), ("one",), cuts=())


@pytest.mark.parametrize(
    "given",
    [
        {"ray": None},
        {"ray": 3},
        {"ray": ""},
        {"insecure": "no"},
        {"insecure": True},
        {"timeout_s": 0},
        {"timeout_s": 1e20},
    ],
    ids=str,
)
@pytest.mark.parametrize("verb", [gx.start_workers, gx.discover], ids=lambda verb: verb.__name__)
def test_how_workers_are_started_is_checked_before_anything_is(verb, given, starts):
    ((name, _),) = given.items()
    cluster = (cluster_of(worker("one")),) if verb is gx.start_workers else ()
    with pytest.raises(gx.SpecError, match=f"{name} is .*; give"):
        verb(*cluster, **given)
    assert not starts


def test_cores_beyond_any_number_of_the_system_are_named():
    cluster = cluster_of(WorkerSpec(name="one", cores=(10**20,)))
    with pytest.raises(gx.SpecError, match=r"worker 'one' wants cores \[100000000000000000000\]"):
        gx.start_workers(cluster)
