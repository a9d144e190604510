"""Arrays that lie elsewhere, in files or on meshes, and are read when somebody needs them.

A `LazyArray` stands in a tree wherever an array may be placed or saved. Whoever places it reads
only the parts that each device holds; whoever saves it reads it alone. A tree of them takes no
memory, so the host never has to hold a model to move it.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from gimlax.errors import SpecError

__all__ = ["LazyArray", "passing", "read_all"]

Index = tuple[slice, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LazyArray:
    """An array that nobody has read yet.

    Attributes:
        shape: of the whole.
        dtype: of what is read.
        read: gives the part at an index, one slice a dim; fewer stand for the first dims.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[Index], np.ndarray]

    @property
    def ndim(self) -> int:
        """Number of dims."""
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of it in memory."""
        return math.prod(self.shape) * self.dtype.itemsize

    def __getitem__(self, rows: slice) -> "LazyArray":
        """Rows of the first dim, not read yet either.

        Raises:
            SpecError: `rows` is no slice, or goes backwards.
        """
        if not isinstance(rows, slice) or (rows.step is not None and rows.step < 1):
            raise SpecError(
                f"a LazyArray of shape {self.shape} was indexed by {rows!r}; give a slice of rows"
                " with a positive step, or read it with numpy.asarray"
            )
        if not self.shape:
            raise SpecError("a LazyArray of shape () has no rows; read it with numpy.asarray")
        start, stop, step = rows.indices(self.shape[0])

        def read(index: Index) -> np.ndarray:
            first, rest = (index[0], index[1:]) if index else (slice(None), ())
            inner = range(start, stop, step)[first]
            return self.read((slice(inner.start, inner.stop, inner.step), *rest))

        shape = (len(range(start, stop, step)), *self.shape[1:])
        return LazyArray(shape=shape, dtype=self.dtype, read=read)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.read(()), dtype) if copy else np.asarray(self.read(()), dtype)


def passing(array: Any) -> Any:
    """The same array; what it has on the host goes with it, not with the one that was given.

    A `jax.Array` keeps the host copy that it was once asked for: saving a model would end with all
    of it in host memory.
    """
    if not isinstance(array, jax.Array) or not array.is_fully_addressable:
        return array
    shards = [shard.data for shard in array.addressable_shards]
    return jax.make_array_from_single_device_arrays(array.shape, array.sharding, shards)


def read_all(array: Any) -> Any:
    """All of a `LazyArray`; anything else as it is."""
    return array.read(()) if isinstance(array, LazyArray) else array
