"""Host arrays onto a mesh of which this process may have a part only."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

__all__ = ["lay"]


def lay(arrays: Sequence[Any], lying: Sequence[NamedSharding]) -> list[jax.Array]:
    """What `device_put` makes; of a mesh over several processes each lays what it has.

    There `device_put` would compare the processes' arrays, which is a collective: it would have to
    come in one order with all stages on all of them.
    """
    if all(sharding.is_fully_addressable for sharding in lying):
        return jax.device_put(list(arrays), list(lying))
    return [_lay_here(array, sharding) for array, sharding in zip(arrays, lying, strict=True)]


def _lay_here(array: Any, sharding: NamedSharding) -> jax.Array:
    if isinstance(array, jax.Array) and jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        data = np.asarray(jax.random.key_data(array))
        spec = (*sharding.spec, *(None,) * (data.ndim - len(sharding.spec)))
        whole = _lay_here(data, NamedSharding(sharding.mesh, PartitionSpec(*spec)))
        return jax.random.wrap_key_data(whole, impl=str(jax.random.key_impl(array)))
    host = np.asarray(array)
    kept = host.astype(jax.dtypes.canonicalize_dtype(host.dtype), copy=False)
    return jax.make_array_from_callback(host.shape, sharding, kept.__getitem__)
