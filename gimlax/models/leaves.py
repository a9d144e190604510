"""Parameters that still lie in files: each with its key path, its shape, and a way to read a part.

A reader of a format makes one `Leaf` per parameter and reads nothing; what does not fit the model
is found from names and shapes alone. Whoever places parameters then reads each of them, or the part
that a device holds (`jax.make_array_from_callback(leaf.shape, sharding, leaf.read)`), one by one.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from gimlax.errors import SpecError

__all__ = [
    "Held",
    "Index",
    "KeyPath",
    "Leaf",
    "ModelFiles",
    "Progress",
    "Wanted",
    "check_fit",
    "counting",
    "exact",
    "flat_paths",
    "flat_shapes",
    "leaf_of",
    "name_of",
    "read_leaves",
    "read_tree",
    "wanted_tensors",
]

KeyPath = tuple[str | int, ...]
Index = tuple[slice, ...]
Progress = Callable[[int, int], None]

MAX_LISTED = 10


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Leaf:
    """A parameter in a file.

    Attributes:
        path: of keys, in the tree of parameters.
        shape: of the parameter.
        dtype: of what is read.
        num_bytes: that it takes in its file.
        read: gives the part at an index, one slice a dim; fewer stand for the first dims.
        drop: lets go of what reading has mapped.
    """

    path: KeyPath
    shape: tuple[int, ...]
    dtype: np.dtype
    num_bytes: int
    read: Callable[[Index], np.ndarray]
    drop: Callable[[], None]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ModelFiles:
    """A model in files: its sizes, and its parameters, which nobody has read yet.

    `others` are tensors that the model may have and does not need, each by its name.
    """

    config: Any
    leaves: tuple[Leaf, ...]
    others: tuple[Leaf, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A tensor that a model needs: its name in the files, and what it is, or is one row of.

    `dtype` is the only one that will do, None where any floats will.
    """

    name: str
    path: KeyPath
    shape: tuple[int, ...]
    dtype: np.dtype | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """A tensor that files have; `dtype` is how they call it, `numpy` how numpy does, None for a
    float of any kind."""

    shape: tuple[int, ...]
    dtype: str
    numpy: np.dtype | None = None

    def is_like(self, dtype: np.dtype | None) -> bool:
        """Whether what wants this dtype, or floats if it is None, can have it."""
        found = None if self.numpy is None or _floats(self.numpy) else self.numpy
        return found == dtype


def wanted_tensors(path: KeyPath, shape: tuple[int, ...], names: Sequence[str]) -> list[Wanted]:
    """The tensors that make a parameter: one, or one for each row of its first dim."""
    if len(names) == 1:
        return [Wanted(name=names[0], path=path, shape=shape)]
    return [Wanted(name=name, path=(*path, row), shape=shape[1:]) for row, name in enumerate(names)]


def leaf_of(
    path: KeyPath,
    shape: tuple[int, ...],
    names: Sequence[str],
    read: Callable[[str, Index], np.ndarray],
    drop: Callable[[str], None],
    *,
    dtype: np.dtype,
    num_bytes: int,
) -> Leaf:
    """A parameter that is one tensor, or one tensor for each row of its first dim.

    Args:
        path: see `Leaf`; so are shape, dtype and num_bytes.
        names: of its tensors.
        read: gives the part at an index of the tensor of a name.
        drop: lets go of what reading that tensor has mapped.
    """

    def one(index: Index) -> np.ndarray:
        return read(names[0], index).astype(dtype, copy=False)

    def stacked(index: Index) -> np.ndarray:
        first, rest = (index[0], index[1:]) if index else (slice(None), ())
        if not names[first]:
            return np.empty((0, *shape[1:]), dtype)
        begun = read(names[first][0], rest)
        stack = np.empty((len(names[first]), *begun.shape), dtype)
        stack[0] = begun
        drop(names[first][0])
        for row, name in enumerate(names[first][1:], 1):  # one at a time
            stack[row] = read(name, rest)
            drop(name)
        return stack

    def dropped() -> None:
        for name in names:
            drop(name)

    return Leaf(
        path=path,
        shape=shape,
        dtype=dtype,
        num_bytes=num_bytes,
        read=one if len(names) == 1 else stacked,
        drop=dropped,
    )


def check_fit(
    origin: str,
    wanted: Iterable[Wanted],
    held: Mapping[str, Held],
    may_have: Callable[[str], bool] = lambda name: False,
) -> None:
    """Compares what a model needs with what files have.

    Args:
        origin: the files, for messages.
        wanted: tensors of the model.
        held: tensors of the files by name.
        may_have: whether a tensor that the model does not need may be there.

    Raises:
        SpecError: they differ; lists up to ten tensors, with both shapes.
    """
    faults: list[str] = []
    known: set[str] = set()
    for want in wanted:
        known.add(want.name)
        have = held.get(want.name)
        where = "".join(f"[{key!r}]" for key in want.path)
        if have is None:
            faults.append(f"{where} ({want.name}): model {want.shape}, file nothing")
        elif have.shape != want.shape:
            turned = ", transposed" if have.shape == want.shape[::-1] else ""
            faults.append(f"{where} ({want.name}): model {want.shape}, file {have.shape}{turned}")
        elif not have.is_like(want.dtype):
            need = "floats" if want.dtype is None else want.dtype
            faults.append(
                f"{where} ({want.name}): model {need} {want.shape}, file {have.dtype} {have.shape}"
            )
    faults += [
        f"({name}): model nothing, file {have.shape}"
        for name, have in held.items()
        if name not in known and not may_have(name)
    ]
    if faults:
        more = f"; and {len(faults) - MAX_LISTED} more" if len(faults) > MAX_LISTED else ""
        raise SpecError(
            f"{origin}: weights do not fit the model: {'; '.join(faults[:MAX_LISTED])}{more}"
        )


def flat_shapes(params: Any) -> dict[KeyPath, tuple[int, ...]]:
    """Shape of each parameter by key path."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {tuple(key.key for key in path): leaf.shape for path, leaf in leaves}


def flat_paths(tree: Any) -> list[tuple[KeyPath, Any]]:
    """The leaves of a tree of any kind with their key paths."""
    return [
        (tuple(map(_key, path)), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    ]


def name_of(path: KeyPath) -> str:
    """What the tensor of a parameter is called."""
    return ".".join(map(str, path)) or "value"


def _key(key: Any) -> str | int:
    for field in ("key", "idx", "name"):
        if hasattr(key, field):
            return getattr(key, field)
    return str(key)


def exact(dtype: np.dtype) -> np.dtype | None:
    """The `dtype` of a `Wanted` for a parameter of this dtype: None if it is a float."""
    return None if _floats(dtype) else dtype


def _floats(dtype: np.dtype) -> bool:
    return bool(jax.numpy.issubdtype(dtype, jax.numpy.floating))


def counting(progress: Progress | None, total_bytes: int) -> Callable[[int], None]:
    """What is called with the bytes of each step, and passes on those of all steps so far."""
    done_bytes = 0

    def count(num_bytes: int) -> None:
        nonlocal done_bytes
        done_bytes += num_bytes
        if progress is not None:
            progress(done_bytes, total_bytes)

    return count


def read_leaves(
    leaves: Sequence[Leaf], progress: Progress | None = None
) -> Iterator[tuple[KeyPath, np.ndarray]]:
    """Reads parameters one by one; `progress(done_bytes, total_bytes)`, in bytes of the files, is
    called after each."""
    count = counting(progress, sum(leaf.num_bytes for leaf in leaves))
    for leaf in leaves:
        yield leaf.path, leaf.read(())
        count(leaf.num_bytes)


def read_tree(leaves: Sequence[Leaf], progress: Progress | None = None) -> dict[str, Any]:
    """All parameters as nested dicts of arrays of the host."""
    tree: dict[Any, Any] = {}
    for path, values in read_leaves(leaves, progress):
        node = tree
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = values
    return tree
