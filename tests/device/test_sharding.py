"""A stage over all devices of the backend, its parameters split among them."""

import jax
import pytest
from jax.sharding import PartitionSpec

import gimlax as gx
from gimlax.runtime import gather
from tests.device.conftest import assert_close, make, reference, trace


@pytest.fixture
def every(backend, hardware):
    """The cluster of one mesh of all devices, of which there are several."""
    if backend.num_devices < 2:
        pytest.skip(f"one device of {backend.name!r} is here; sharding needs two")
    return hardware("devices")


def test_a_split_model_gives_what_one_device_gives(every, backend):
    specimen = make("plain")
    if 32 % backend.num_devices:
        pytest.skip(f"{backend.num_devices} devices do not divide the model's 32 columns")
    split = {
        "params['layers'][1]['up']": PartitionSpec(None, "model"),
        "params['layers'][1]['down']": PartitionSpec("model", None),
    }
    traced = trace(specimen)
    plan = gx.plan(traced, every, meshes=("devices",), shardings=split)
    with gx.compile(plan, traced) as step:
        placed = step.place(specimen.args[0])
        arrays = [x for x in jax.tree.leaves(dict(placed._shelf)) if len(x.devices()) > 1]
        assert any(not x.sharding.is_fully_replicated for x in arrays)
        found = gather(step(placed, *specimen.args[1:]))
    assert_close(found, reference(specimen.fn, *specimen.args))


def test_a_sum_over_all_devices(every, backend):
    mesh = jax.sharding.Mesh(jax.local_devices(backend=backend.name), ("model",))
    spec = jax.sharding.NamedSharding(mesh, PartitionSpec("model"))
    x = jax.device_put(jax.numpy.ones((backend.num_devices, 3)), spec)
    assert jax.jit(lambda x: x.sum())(x) == 3 * backend.num_devices
