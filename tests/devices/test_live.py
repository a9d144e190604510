"""From described meshes to live ones."""

import dataclasses

import jax
import numpy as np
import pytest

from gimlax.devices import MeshSpec, bind, check_one_client
from gimlax.errors import BackendError, SpecError

FIRST = MeshSpec(name="first", device_kind="cpu", backend="cpu")
SECOND = dataclasses.replace(FIRST, name="second", first_device=1)
BOTH = dataclasses.replace(FIRST, name="both", num_devices=2, axes=(("data", 1), ("model", 2)))


def mesh_of(*devices, shape=(1, 1), names=("data", "model")):
    return jax.sharding.Mesh(np.array(devices).reshape(shape), names)


def test_devices_are_found_by_the_registered_name(plugin_name):
    plugin = dataclasses.replace(FIRST, name="other", backend=plugin_name)
    found = bind([FIRST, SECOND, BOTH, plugin])
    cpu = jax.devices("cpu")
    assert list(found["first"].devices.flat) == [cpu[0]]
    assert list(found["second"].devices.flat) == [cpu[1]]
    assert list(found["both"].devices.flat) == cpu
    assert dict(found["both"].shape) == {"data": 1, "model": 2}
    (device,) = found["other"].devices.flat
    # It calls itself by the platform and the id of the other backend's first device.
    assert (device.platform, device.id) == (cpu[0].platform, cpu[0].id)
    assert device.client is not cpu[0].client
    assert device.client is jax.devices(plugin_name)[0].client


def test_a_cluster_binds_as_it_was_discovered(cluster):
    found = bind(cluster.meshes)
    assert list(found) == [mesh.name for mesh in cluster.meshes]


def test_a_given_mesh_is_used():
    mesh = mesh_of(jax.devices("cpu")[1])
    described = dataclasses.replace(FIRST, backend="")
    assert bind([described], {"first": mesh}) == {"first": mesh}
    assert bind([dataclasses.replace(FIRST, device_kind="EPYC 9654")], {"first": mesh})


def test_a_mesh_that_mixes_clients_is_one_clear_error(plugin_name):
    cpu, other = jax.devices("cpu"), jax.devices(plugin_name)
    mixed = mesh_of(cpu[0], other[0], shape=(1, 2))
    message = (
        f"mesh 'both' mixes backends: it has 1 of backend 'cpu' and 1 of backend '{plugin_name}'"
    )
    with pytest.raises(SpecError, match=message):
        bind([BOTH], {"both": mixed})
    with pytest.raises(SpecError, match=message):
        check_one_client(mixed, "both")
    check_one_client(mesh_of(*cpu, shape=(1, 2)), "both")


def test_given_meshes_that_do_not_fit_are_all_reported():
    cpu = jax.devices("cpu")
    specs = [
        FIRST,
        dataclasses.replace(BOTH, device_kind="H100 SXM"),
        dataclasses.replace(SECOND, backend=""),
    ]
    given = {
        "first": mesh_of(cpu[0], names=("x", "y")),
        "both": mesh_of(cpu[0]),
        "typo": mesh_of(cpu[0]),
    }
    with pytest.raises(SpecError) as error:
        bind(specs, given)
    for part in (
        "mesh 'typo' was given, but nothing here is called so (there are 'first', 'both', 'seco",
        "mesh 'first' was given with axes {'x': 1, 'y': 1}, but is planned with",
        "mesh 'both' was given with axes {'data': 1, 'model': 1}",
        "mesh 'both' was given with devices of kind 'cpu', but is planned for 'H100 SXM'",
        "mesh 'second' is only described, it has no live backend; pass meshes={'second': ...}",
    ):
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"backend": "cuda"},
            r"'first': backend 'cuda' is not there \(.*install.*\); live are 'cpu'",
        ),
        ({"backend": "what"}, r"'what' is not there \(nothing installed provides it\)"),
        ({"first_device": 7}, "'first' wants devices 7 to 7 of backend 'cpu', which has 2"),
        (
            {"device_kind": "TPU v5e"},
            "planned for devices of kind 'TPU v5e', but backend 'cpu' has 'cpu'",
        ),
    ],
)
def test_a_backend_that_has_not_what_is_planned_for(change, message):
    with pytest.raises(BackendError, match=message):
        bind([dataclasses.replace(FIRST, **change)])
