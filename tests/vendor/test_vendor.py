"""A vendor that JAX does not know: what is found out about it, and what gimlax runs on it."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gimlax as gx
from gimlax import devices
from gimlax.errors import BackendError, SpecError
from gimlax.runtime import gather
from tests import vendor, zoo
from tests.runtime.conftest import on_cpu
from tests.vendor import RESOURCE_EXHAUSTED, VENDORS, CannotBuild

each_vendor = pytest.mark.parametrize("name", VENDORS)


@pytest.fixture
def plan_on(loaded_vendors):
    """Plans a function in two stages, the second on this mesh of the vendors' cluster."""
    hardware = devices.Cluster.load(vendor.CLUSTER)

    def plan(specimen, mesh):
        traced = gx.trace(specimen.fn, *specimen.args, carried=specimen.carried)
        return gx.plan(traced, hardware, cuts=2, meshes=("cpu", mesh)), traced

    return plan


@each_vendor
def test_it_is_another_platform_with_memory_of_its_own(name, loaded_vendors, vendors):
    here = jax.devices(name)
    assert len(here) == loaded_vendors[name].num_devices
    assert {(d.platform, d.device_kind) for d in here} == {(name, loaded_vendors[name].device_kind)}
    host = np.arange(4096, dtype=np.float32)
    _, before, back = vendors[name].counts()
    array = jax.device_put(host, here[0]).block_until_ready()
    host[:] = -1
    other = np.asarray(array)
    assert vendors[name].counts()[1:] == (before + 1, back + 1)
    np.testing.assert_array_equal(other, np.arange(4096))


@each_vendor
def test_what_it_can_do_is_asked(name, loaded_vendors):
    found = devices.capabilities(jax.devices(name)[0])
    assert not found.host_memory
    assert not found.donation
    assert not found.callbacks
    assert found.memory_analysis
    assert found.serialization
    assert dict(found.how)["host_memory"] == "a host array was copied by device_put"


def test_its_kind_is_nobody_elses(loaded_vendors, cluster):
    for name, of in loaded_vendors.items():
        assert "cannot be planned for" in cluster.backend(name).reason
        with pytest.raises(SpecError, match=f"device kind '{of.device_kind}' is not known"):
            devices.load_kind(of.device_kind)


@each_vendor
@pytest.mark.parametrize("kind", ["plain", "linen", "scanned"])
def test_a_plan_with_it_gives_what_one_device_gives(name, kind, plan_on):
    specimen = zoo.ZOO[kind]()
    with gx.compile(*plan_on(specimen, name)) as step:
        found = gather(step(step.place(specimen.args[0]), *specimen.args[1:]))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=5e-6 * np.abs(b).max()),
        found,
        jax.tree.map(np.asarray, on_cpu(specimen.fn, *specimen.args)),
    )


@each_vendor
def test_an_execution_that_it_refuses_is_named(name, plan_on, vendors):
    specimen = zoo.linen()
    failure = f"RESOURCE_EXHAUSTED: injected failure of {name}"
    with gx.compile(*plan_on(specimen, name)) as step:
        params = step.place(specimen.args[0])
        expected = step(params, specimen.args[1])
        for run in (step, lambda *args: step.submit(*args).result(60)):
            vendors[name].fail(1, RESOURCE_EXHAUSTED)
            with pytest.raises(BackendError, match=f"on mesh '{name}' failed: {failure}"):
                run(params, specimen.args[1])
            np.testing.assert_array_equal(run(params, specimen.args[1]), expected)


@each_vendor
def test_it_fails_as_often_as_it_was_told(name, vendors):
    double = jax.jit(lambda x: 2 * x)
    x = jax.device_put(np.ones(4, np.float32), jax.devices(name)[0])
    assert double(x).sum() == 8
    vendors[name].fail(-1)
    for _ in range(3):
        with pytest.raises(Exception, match=f"INTERNAL: injected failure of {name}"):
            double(x)
    vendors[name].fail(0)
    assert double(x).sum() == 8


CHILD = """\
import sys
import jax
from gimlax.devices.probe import load
from tests import vendor

load(vendor.candidate(vendor.VENDORS["acme"]))
x = jax.device_put(1.0, jax.devices("acme")[0])
for _ in range(3):
    try:
        print(float(jax.jit(lambda x: x + 1)(x)))
    except Exception as error:
        print(error)
"""


def test_another_process_is_told_by_its_environment(loaded_vendors, monkeypatch):
    for variable, value in loaded_vendors["acme"].environment(failures=2).items():
        monkeypatch.setenv(variable, value)
    child = [sys.executable, "-c", CHILD]
    root = vendor.SOURCES.parent.parent
    said = subprocess.run(child, capture_output=True, text=True, cwd=root, timeout=300, check=True)
    failure = "INTERNAL: injected failure of acme"
    assert said.stdout.splitlines() == [failure, failure, "2.0"]


def test_several_builders_at_once_get_one_library(loaded_vendors, tmp_path, monkeypatch):
    monkeypatch.setattr(vendor, "BUILT", tmp_path / "built")
    with ThreadPoolExecutor(4) as pool:
        libraries = set(pool.map(vendor.build.__wrapped__, [VENDORS["acme"]] * 4))
    assert set(vendor.BUILT.iterdir()) == libraries
    assert len(libraries) == 1


def test_without_gcc_it_says_so(loaded_vendors, tmp_path, monkeypatch):
    monkeypatch.setattr(vendor, "BUILT", tmp_path / "built")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CannotBuild, match="gcc is not installed"):
        vendor.build.__wrapped__(VENDORS["acme"])


def test_its_devices_share_a_product(loaded_vendors):
    mesh = jax.sharding.Mesh(np.array(jax.devices("zenith")), ("model",))
    spec = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("model"))
    rows = jax.device_put(np.arange(16, dtype=np.float32).reshape(8, 2), spec)
    assert jax.jit(jnp.sum)(rows) == 120
