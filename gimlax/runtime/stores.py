"""Where the arrays behind handles are kept: what a handle needs of them, and nothing else.

In this process they are `jax.Array`s on live meshes (`LocalStore`). A store over worker processes
gives stand-ins that are converted to numpy when somebody reads them.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import jax

from gimlax.errors import InternalError
from gimlax.graph import Part
from gimlax.lazy import LazyArray, read_all
from gimlax.runtime.inventory import Tree

__all__ = ["Arrays", "Cell", "LocalStore", "Store"]

Arrays = tuple[jax.Array, ...]


class Cell:
    """The carried arrays of one stage, None until the pass that makes them has run it.

    `waiters` are the tasks of passes, for the pipeline, that wait for the arrays.
    """

    __slots__ = ("arrays", "waiters")

    def __init__(self, arrays: Sequence[jax.Array] | None = None) -> None:
        self.arrays = arrays
        self.waiters: list[tuple[Any, int]] = []

    def filled(self) -> Sequence[jax.Array]:
        """The arrays, which must be there."""
        if self.arrays is None:
            raise InternalError("carried state was read before it was there; please report it")
        return self.arrays

    def fresh(self) -> "Cell":
        """An empty cell for the next generation."""
        return Cell()

    def copy(self) -> "Cell":
        """A cell with copies of the arrays, if its stage has any of this state."""
        return (
            Cell() if self.arrays is None else Cell(tuple(array.copy() for array in self.filled()))
        )

    def write(self, place: int, value: Any, index: Any = ()) -> None:
        """Replaces an array, or what `index` selects of it; `value` is copied."""
        arrays = self.filled()
        sharding = arrays[place].sharding
        if index == ():
            new = jax.device_put(value, sharding, may_alias=False)
        else:
            new = arrays[place].at[index].set(jax.device_put(value, sharding))
            new = jax.device_put(new, sharding)
        self.arrays = (*arrays[:place], new, *arrays[place + 1 :])


class Store(Protocol):
    """Keeps arrays on meshes."""

    def shelve(
        self,
        tree: Tree,
        mesh: str,
        parts: Sequence[Part],
        rows: Sequence[Any],
        lying: Sequence[jax.sharding.NamedSharding],
    ) -> Sequence[jax.Array]:
        """Puts parameters on a mesh; may use host arrays in place.

        Args:
            tree: the argument.
            mesh: where they go.
            parts: what of the argument's leaves.
            rows: the arrays of these parts.
            lying: how each lies there.

        Raises:
            RuntimeError: the mesh has no room.
        """
        ...

    def fill(
        self,
        tree: Tree,
        mesh: str,
        parts: Sequence[Part],
        rows: Sequence[Any],
        lying: Sequence[jax.sharding.NamedSharding],
    ) -> Cell:
        """Copies state of one stage to its mesh, to be donated; arguments as in `shelve`.

        Raises:
            RuntimeError: the mesh has no room.
        """
        ...


class LocalStore:
    """The meshes of this process."""

    def shelve(
        self,
        tree: Tree,
        mesh: str,
        parts: Sequence[Part],
        rows: Sequence[Any],
        lying: Sequence[jax.sharding.NamedSharding],
    ) -> Sequence[jax.Array]:
        """See `Store`."""
        if not any(isinstance(row, LazyArray) for row in rows):
            return jax.device_put(list(rows), list(lying))
        return [_lay(row, how) for row, how in zip(rows, lying, strict=True)]

    def fill(
        self,
        tree: Tree,
        mesh: str,
        parts: Sequence[Part],
        rows: Sequence[Any],
        lying: Sequence[jax.sharding.NamedSharding],
    ) -> Cell:
        """See `Store`."""
        # A pass donates these arrays, so they must not share memory with the caller's.
        whole = [read_all(row) for row in rows]
        return Cell(tuple(jax.device_put(whole, list(lying), may_alias=False)))


def _lay(row: Any, how: jax.sharding.NamedSharding) -> jax.Array:
    """One array on its mesh; of one that nobody has read yet each device reads what it holds.

    It is there when this returns: transfers under way would keep what was read in host memory.
    """
    if not isinstance(row, LazyArray):
        return jax.device_put(row, how)
    parts: dict[str, Any] = {}  # devices may hold the same part

    def read(index: tuple[slice, ...] | None) -> Any:
        key = str(index)
        if key not in parts:
            parts[key] = row.read(index or ())
        return parts[key]

    return jax.make_array_from_callback(row.shape, how, read).block_until_ready()
