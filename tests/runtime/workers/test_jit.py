"""`gx.jit` on a cluster of workers: one call starts them, one ends them."""

import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import psutil
import pytest

import gimlax as gx
from gimlax.devices import WorkerSpec
from tests.runtime.workers.conftest import cluster_of

pytestmark = pytest.mark.filterwarnings("ignore:.*was passed as an ordinary tree")


def two_layers(params, x):
    for w in params:
        x = jnp.tanh(x @ w)
    return x


ARGS = [jnp.eye(8)] * 2, jnp.ones((2, 8))


def test_the_first_call_starts_the_workers_and_close_ends_them():
    cluster = cluster_of(
        WorkerSpec(name="one", platforms="cpu"), WorkerSpec(name="two", platforms="cpu")
    )
    before = set(psutil.Process().children())
    with gx.jit(two_layers, cluster=cluster, meshes=("one", "two"), cuts=(1,)) as step:
        assert set(psutil.Process().children()) == before
        np.testing.assert_allclose(step(*ARGS), two_layers(*ARGS), rtol=5e-6)
        started = set(psutil.Process().children()) - before
        assert len(started) == 2
        step(ARGS[0], jnp.ones((3, 8)))
        assert set(psutil.Process().children()) - before == started
    assert set(psutil.Process().children()) == before
    step.close()


def test_after_close_it_says_so_and_starts_nothing():
    cluster = cluster_of(WorkerSpec(name="one", platforms="cpu"))
    before = set(psutil.Process().children())
    step = gx.jit(two_layers, cluster=cluster)
    step(*ARGS)
    lowered = step.lower(*ARGS)
    compiled = lowered.compile()
    step.close()
    told = "what gimlax.jit made of 'two_layers' is closed; call gimlax.jit again"
    for use in (lambda: step(*ARGS), lambda: step(ARGS[0], jnp.ones((3, 8))), lowered.compile):
        with pytest.raises(gx.SpecError, match=told):
            use()
    assert str(step.lower(*ARGS)) == str(lowered)  # a plan needs no workers
    # What was compiled apart from it has lost its workers, and says that once.
    with pytest.raises(gx.BackendError) as told_of_workers:
        compiled(*ARGS)
    said = str(told_of_workers.value)
    assert said.startswith("resident argument 0 of 'two_layers' could not be put there: ")
    assert said.count("worker 'one'") == 1 and "was closed; start workers and compile" in said
    compiled.close()
    assert set(psutil.Process().children()) == before


def test_workers_that_were_given_are_used_and_not_ended(workers):
    before = set(psutil.Process().children())
    with gx.jit(two_layers, workers=workers, meshes=("one", "two"), cuts=(1,)) as step:
        np.testing.assert_allclose(step(*ARGS), two_layers(*ARGS), rtol=5e-6)
    assert set(psutil.Process().children()) == before
    assert not workers.lost


SCRIPT = """
import warnings
warnings.simplefilter("ignore")
import psutil
from tests.runtime.workers.test_jit import ARGS, WorkerSpec, cluster_of, gx, two_layers
step = gx.jit(two_layers, cluster=cluster_of(WorkerSpec(name="one", platforms="cpu")))
step(*ARGS)
print(*(child.pid for child in psutil.Process().children()))
"""


def test_workers_that_nobody_closed_end_with_the_process():
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    pids = done.stdout.split()
    assert len(pids) == 1
    assert not any(psutil.pid_exists(int(pid)) for pid in pids)
