"""Workers that were described wrongly: told when the plan is compiled, by name, once each."""

import jax.numpy as jnp
import numpy as np
import pytest

import gimlax as gx
from gimlax.devices import WorkerSpec
from gimlax.graph import trace
from tests.runtime.workers.conftest import cluster_of, compile_on

PARAMS = [np.eye(8, dtype=np.float32)] * 4
X = np.ones((2, 8), np.float32)


def layers(params, x):
    for w in params:
        x = jnp.tanh(x @ w)
    return x


def worker(name, platforms="cpu", flags=""):
    return WorkerSpec(name=name, platforms=platforms, flags=flags)


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
