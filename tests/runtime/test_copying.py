"""Copying between meshes gives what `jax.device_put` gives, whichever way it takes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gimlax import _jax

ARRAYS = {
    "float32": lambda: jnp.arange(6.0).reshape(2, 3),
    "bfloat16": lambda: jnp.ones(4, jnp.bfloat16),
    "scalar": lambda: jnp.int32(7),
    "empty": lambda: jnp.zeros((0, 3)),
    "key": lambda: jax.random.key(3),
}


def lying_on(devices, *spec):
    return NamedSharding(Mesh(np.array(devices), ("data",)), PartitionSpec(*spec))


def data_of(array):
    if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        array = jax.random.key_data(array)
    return np.asarray(array)


@pytest.mark.parametrize("kind", ARRAYS)
@pytest.mark.parametrize("target", ["same", "other", "two", "plugin"])
def test_a_copy_is_what_device_put_makes(kind, target, plugin_name):
    one, two = jax.devices("cpu")[:2]
    (foreign,) = jax.devices(plugin_name)[:1]
    devices = {"same": [one], "other": [two], "two": [one, two], "plugin": [foreign]}[target]
    array, lying = jax.device_put(ARRAYS[kind](), lying_on([one])), lying_on(devices)
    (found,) = _jax.copy_arrays([array], [lying])
    expected = jax.device_put(array, lying)
    assert found.sharding == expected.sharding == lying
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(data_of(found), data_of(expected))


@pytest.mark.parametrize("sharded", [False, True])
def test_arrays_that_go_several_ways_keep_their_order(sharded):
    one, two = jax.devices("cpu")[:2]
    arrays = [jax.device_put(jnp.full(2, float(i)), lying_on([one])) for i in range(3)]
    last = lying_on([one, two], "data") if sharded else lying_on([one])
    lying = [lying_on([two]), lying_on([two]), last]
    found = _jax.copy_arrays(arrays, lying)
    assert [array.sharding for array in found] == lying
    assert [float(array[0]) for array in found] == [0.0, 1.0, 2.0]
