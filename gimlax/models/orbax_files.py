"""Checkpoints of Orbax: written and read array by array, whatever meshes they came from or go to.

Orbax restores whole trees, or those leaves that are asked for; here it is asked for one at a time,
as an array of the host, so that whoever places it decides where it goes. Arrays are called by their
key path, as Orbax does.
"""

import functools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np

from gimlax.errors import SpecError
from gimlax.host_memory import host_memory_bytes
from gimlax.lazy import LazyArray
from gimlax.mapped import Stamp, stamp_of
from gimlax.models.extras import require
from gimlax.models.leaves import Index, Leaf, flat_paths, name_of
from gimlax.models.manifest import MANIFEST

__all__ = ["is_orbax", "orbax_leaves", "write_orbax"]

MARKS = ("_METADATA", "_CHECKPOINT_METADATA")
WRITTEN = (*MARKS, MANIFEST, "manifest.ocdbt")  # anew by every save


def is_orbax(path: Path) -> bool:
    """Whether a folder is one that Orbax wrote."""
    return any((path / mark).is_file() for mark in MARKS)


def write_orbax(path: Path, tree: Any, count: Callable[[int], None]) -> None:
    """Writes a tree of arrays, `LazyArray`s among them, to where nothing is yet.

    `count` is called with the bytes of arrays that were written.
    """
    ocp = _orbax()

    class LotByLot(ocp.type_handlers.NumpyHandler):
        """Reads no more than the largest array has, and waits until it is written."""

        async def serialize(self, values: Any, infos: Any, args: Any = None) -> Sequence[Any]:
            for start, stop in _lots([value.nbytes for value in values]):
                arrays = [np.asarray(value) for value in values[start:stop]]
                how = None if args is None else args[start:stop]
                for future in await super().serialize(arrays, infos[start:stop], how):
                    future.result()
                count(sum(array.nbytes for array in arrays))
            return []

    handlers = ocp.type_handlers.create_type_handler_registry(
        (LazyArray, LotByLot()), (jax.Array, ocp.type_handlers.ArrayHandler())
    )
    handler = ocp.PyTreeCheckpointHandler(type_handler_registry=handlers)
    with ocp.Checkpointer(handler) as checkpointer:
        checkpointer.save(path.absolute(), args=ocp.args.PyTreeSave(tree))


def _lots(sizes: Sequence[int]) -> list[tuple[int, int]]:
    """Neighbours that together have no more bytes than the largest, as (start, stop)."""
    lots: list[tuple[int, int]] = []
    start = held = 0
    for place, size in enumerate(sizes):
        if place > start and held + size > max(sizes):
            lots.append((start, place))
            start, held = place, 0
        held += size
    return [*lots, (start, len(sizes))] if sizes else []


def orbax_leaves(path: Path) -> tuple[Leaf, ...]:
    """The arrays of a checkpoint, none of which is read yet.

    Raises:
        SpecError: it is not a sound checkpoint of one tree of arrays.
    """
    ocp = _orbax()
    path = path.absolute()
    stamps = _stamps(path)
    handler = ocp.PyTreeCheckpointHandler()
    try:
        with ocp.Checkpointer(handler) as checkpointer:
            found = checkpointer.metadata(path).item_metadata
        tree = getattr(found, "tree", found)
        arrays = [(of, info) for of, info in flat_paths(tree) if hasattr(info, "shape")]
    except Exception as error:
        raise _unsound(path, error) from error
    if not arrays:
        raise SpecError(
            f"'{path}' is a checkpoint of Orbax in which it finds no arrays: it is damaged, or"
            " holds several items, of which one, such as 'default' or 'params', has to be given"
        )
    return tuple(
        Leaf(
            path=of,
            shape=tuple(info.shape),
            dtype=np.dtype(info.dtype),
            num_bytes=int(np.prod(info.shape)) * np.dtype(info.dtype).itemsize,
            read=(one := _One(path, tree, of, info, stamps)).read,
            drop=one.drop,
        )
        for of, info in arrays
    )


class _One:
    """One array of a checkpoint; it is kept until it is dropped, as devices ask for its parts."""

    def __init__(
        self, path: Path, tree: Any, of: Any, info: Any, stamps: Sequence[Stamp | None]
    ) -> None:
        self._path = path
        self._info = info
        self._stamps = stamps
        self._tree = tree
        self._of = of
        self._array: np.ndarray | None = None

    def read(self, index: Index) -> np.ndarray:
        if self._array is None:
            self._array = self._restore()
        return self._array[index]

    def drop(self) -> None:
        self._array = None

    def _restore(self) -> np.ndarray:
        ocp = _orbax()
        self._check_same()
        _check_room(self._path, self._of, self._info)
        paths = [of for of, _ in flat_paths(self._tree)]
        blank = [0 if of == self._of else ocp.PLACEHOLDER for of in paths]
        item = jax.tree.unflatten(jax.tree.structure(self._tree), blank)
        how = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), item)
        try:
            with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
                found = checkpointer.restore(
                    self._path, args=ocp.args.PyTreeRestore(item=item, restore_args=how)
                )
        except Exception as error:
            raise _unsound(self._path, error) from error
        self._check_same()
        return np.asarray(jax.tree.leaves(found)[paths.index(self._of)])

    def _check_same(self) -> None:
        """Orbax opens the path again: another checkpoint may lie there by now."""
        if _stamps(self._path) != self._stamps:
            raise SpecError(
                f"'{self._path}' was saved anew, or removed, after it was opened, and"
                f" {name_of(self._of)!r} would be read from another checkpoint; load again, and"
                " save to another path"
            )


def _check_room(path: Path, of: Any, info: Any) -> None:
    """Refuses an array that this host cannot hold: Orbax would end the process.

    A small checkpoint may announce it, as what is all zeros takes no bytes in one; so may a chunk,
    of which all is read.
    """
    chunk = getattr(getattr(info, "storage", None), "chunk_shape", None) or ()
    size = max(math.prod(map(int, info.shape)), math.prod(map(int, chunk)))
    num_bytes, room_bytes = size * np.dtype(info.dtype).itemsize, host_memory_bytes()
    if num_bytes > room_bytes:
        raise SpecError(
            f"'{path}' announces {num_bytes} bytes for {name_of(of)!r}, of shape"
            f" {tuple(info.shape)}{f' in chunks of {tuple(chunk)}' if chunk else ''}, and this host"
            f" has {room_bytes} bytes of memory; it is damaged, or needs a larger host"
        )


def _stamps(path: Path) -> tuple[Stamp | None, ...]:
    """What tells whether a checkpoint is still the one that it was."""
    files = [path / name for name in WRITTEN]
    return tuple(stamp_of(file.stat()) if file.is_file() else None for file in files)


@functools.cache
def _orbax() -> ModuleType:
    return require("orbax.checkpoint", "a checkpoint of Orbax")


def _unsound(path: Path, error: Exception) -> SpecError:
    return SpecError(f"'{path}' cannot be read by Orbax: {str(error)[:400]}")
