"""Arrays that several processes hold parts of: each tells its own, and they are joined elsewhere.

So an array is read without a collective, which would have to come in one order with all stages on
all processes. Of a part that several devices hold the first one's process tells it.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gimlax.errors import InternalError

__all__ = ["join", "share"]

Described = list[list[Any]]  # of each array its shape, generator, and starts of its parts


def share(arrays: Sequence[Any]) -> tuple[Described, list[Any]]:
    """What this process tells of arrays: a description, and their parts one after another."""
    described: Described = []
    parts: list[Any] = []
    for array in arrays:
        generator = ""
        if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
            generator = str(jax.random.key_impl(array))
            array = jax.random.key_data(array)
        mine = [shard for shard in array.addressable_shards if shard.replica_id == 0]
        starts = [[cut.start or 0 for cut in shard.index] for shard in mine]
        described.append([list(array.shape), generator, starts])
        parts += [shard.data for shard in mine]
    return described, parts


def join(
    said: Sequence[tuple[Described, Sequence[np.ndarray]]],
) -> tuple[list[np.ndarray], Mapping[int, str]]:
    """The arrays that all processes together told of.

    Returns:
        The arrays, of typed PRNG keys their data, and by index the generators of those.

    Raises:
        InternalError: they do not make up whole arrays.
    """
    arrays: list[np.ndarray] = []
    keys: dict[int, str] = {}
    rest = [iter(parts) for _, parts in said]
    for index, of in enumerate(zip(*(described for described, _ in said), strict=True)):
        shape, generator, _ = of[0]
        pieces = [
            (start, next(parts))
            for (_, _, starts), parts in zip(of, rest, strict=True)
            for start in starts
        ]
        if generator:
            keys[index] = generator
        if sum(piece.size for _, piece in pieces) != math.prod(shape):
            raise InternalError(f"processes told parts of an array {shape}; please report it")
        if len(pieces) == 1:
            arrays.append(pieces[0][1])
            continue
        whole = np.empty(shape, pieces[0][1].dtype) if pieces else np.empty(shape)
        for start, piece in pieces:
            cut = tuple(slice(s, s + n) for s, n in zip(start, piece.shape, strict=True))
            whole[cut] = piece
        arrays.append(whole)
    return arrays, keys
