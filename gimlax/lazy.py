"""Arrays that lie elsewhere, in files or on meshes, and are read when somebody needs them.

A `LazyArray` stands in a tree wherever an array may be placed or saved. Whoever places it reads
only the parts that each device holds; whoever saves it reads it alone. A tree of them takes no
memory, so the host never has to hold a model to move it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["LazyArray", "read_all"]

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

    def __getitem__(self, rows: slice) -> "LazyArray":
        """Rows of the first dim, not read yet either."""
        start, stop, step = rows.indices(self.shape[0])

        def read(index: Index) -> np.ndarray:
            first, rest = (index[0], index[1:]) if index else (slice(None), ())
            inner = range(start, stop, step)[first]
            return self.read((slice(inner.start, inner.stop, inner.step), *rest))

        shape = (len(range(start, stop, step)), *self.shape[1:])
        return LazyArray(shape=shape, dtype=self.dtype, read=read)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.read(()), dtype) if copy else np.asarray(self.read(()), dtype)


def read_all(array: Any) -> Any:
    """All of a `LazyArray`; anything else as it is."""
    return array.read(()) if isinstance(array, LazyArray) else array
