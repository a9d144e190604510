"""From memory of a link to an array on a device, without a copy where the device's client does so.

A client whose devices read host memory takes an aligned array over as it is (tried with JAX 0.10
and 0.12: the built-in CPU client and a plugin's; all dtypes of whole bytes, scalars included).
Such an array must not be donated: its memory belongs to the link, so XLA copies it first, and
nothing would be saved. Others copy, which `Landed.aliased` says; the memory is kept until they
have.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from gimlax import _jax
from gimlax.errors import SpecError

__all__ = ["Landed", "keep_dtype", "land", "lies_over"]


class Landed(NamedTuple):
    """An array, and what was received for each of its devices."""

    array: jax.Array
    received: Mapping[Any, np.ndarray]

    @property
    def aliased(self) -> bool:
        """Whether it lies over memory of a link, so that donating it is of no use."""
        shards = self.array.addressable_shards
        return any(lies_over(shard.data, self.received[shard.device]) for shard in shards)


def land(data: np.ndarray, device: Any) -> Landed:
    """Puts what was received on a device; does not wait for a copy.

    Raises:
        SpecError: JAX would change the dtype, as it does with 64 bits by default.
    """
    keep_dtype(data.dtype)
    sharding = jax.sharding.SingleDeviceSharding(device)
    array = _jax.put_shards(data.shape, sharding, {device: data})
    return Landed(array, {device: data})


def keep_dtype(dtype: np.dtype) -> None:
    """Raises SpecError if JAX would change a dtype here."""
    if dtype.itemsize < 8:
        return
    kept = jax.dtypes.canonicalize_dtype(dtype)
    if kept != dtype:
        raise SpecError(
            f"a {dtype} array came, which JAX turns into {kept} here; set jax_enable_x64 as "
            "the sender has, or send another dtype"
        )


def lies_over(array: jax.Array, data: np.ndarray) -> bool:
    """Whether an array of one device has taken host memory over."""
    if not data.nbytes:
        return False
    try:
        return array.unsafe_buffer_pointer() == data.ctypes.data
    except Exception:  # a client that shows no pointer; any class, as a plugin pleases
        return False
