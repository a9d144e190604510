"""Handles of what stays on the meshes: `Placed` parameters and `Carried` state.

A `jax.Array` lives on one client, a cut or tied one cannot, so a handle holds the arrays of every
stage and is one opaque leaf in the caller's trees. `Carried` is used once, like a donated array:
each pass takes it and returns the next generation. A state can be handed on before it is there: its
cells, one per stage, are filled by the pass that makes it, so that passes over one state follow
each other through the pipeline.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gimlax import _jax
from gimlax.errors import BackendError, SpecError
from gimlax.graph import Part
from gimlax.lazy import LazyArray, passing, read_all
from gimlax.runtime.arguments import check_tree, fits, num_bytes
from gimlax.runtime.inventory import Inventory, Tree
from gimlax.runtime.stores import Arrays, Cell, Store


class Placed:
    """A resident argument on its meshes: each stage's part, kept once per mesh."""

    __slots__ = ("__weakref__", "_inventory", "_rest", "_rows", "_shelf", "_tree")

    def __init__(
        self,
        inventory: Inventory,
        tree: Tree,
        shelf: dict[tuple[str, Part], jax.Array],
        rest: dict[int, Any],
    ) -> None:
        self._inventory = inventory
        self._tree = tree
        self._shelf = shelf
        self._rest = rest  # leaves that no stage reads, as they were given
        # One flat tuple per stage of every phase, so that a call only concatenates.
        self._rows: tuple[Arrays, ...] = tuple(
            tuple(shelf[slot] for slot in row) for row in inventory.rows[tree.index]
        )

    @property
    def name(self) -> str:
        """What messages call it."""
        return self._tree.name

    @property
    def nbytes(self) -> int:
        """Bytes on all meshes together; a part that two meshes use counts twice."""
        return sum(_nbytes(array) for array in self._shelf.values())

    @property
    def meshes(self) -> tuple[str, ...]:
        """Names of the meshes that hold something of it."""
        found = (getattr(a, "meshes", (mesh,)) for (mesh, _), a in self._shelf.items())
        return tuple(dict.fromkeys(mesh for of in found for mesh in of))

    @property
    def owner(self) -> Inventory:
        """What the handles of one compilation have in common: only its executables take them."""
        return self._inventory

    def __repr__(self) -> str:
        where = ", ".join(map(repr, self.meshes))
        return f"Placed({self.name}, {self.nbytes} bytes on {where})"

    def lazy(self) -> Any:
        """The ordinary tree, each of whose arrays comes to the host when it is read."""
        leaves = [
            LazyArray(
                shape=aval.shape,
                dtype=aval.dtype,
                read=functools.partial(self._read, leaf),
            )
            for leaf, aval in enumerate(self._tree.avals, self._tree.first)
        ]
        return jax.tree.unflatten(self._tree.treedef, leaves)

    def _read(self, leaf: int, index: tuple[slice, ...]) -> Any:
        found = self._leaf(leaf)
        found = found.fetch() if hasattr(found, "fetch") else found
        if isinstance(found, LazyArray):
            return found.read(index)
        return np.asarray(passing(found))[index]

    def _leaf(self, leaf: int) -> Any:
        parts = {part: array for (_, part), array in self._shelf.items() if part.leaf == leaf}
        if _complete(parts, self._tree.avals[leaf - self._tree.first]):
            return _join(parts)
        return self._rest[leaf]

    def _leaves(self) -> list[Any]:
        first = self._tree.first
        return [self._leaf(leaf) for leaf in range(first, first + len(self._tree.avals))]


class Carried:
    """Carried state on the meshes of its stages, good for one pass."""

    __slots__ = ("_cells", "_fate", "_generation", "_inventory", "_lost", "_tree", "_wait")

    def __init__(
        self,
        inventory: Inventory,
        tree: Tree,
        cells: tuple[Cell, ...],
        generation: int,
        wait: Callable[[], object] | None = None,
    ) -> None:
        self._inventory = inventory
        self._tree = tree
        self._cells = [cells]  # a list that holds the cells until a pass pops them: atomic
        self._fate = "has been used by a pass"
        self._lost = False
        self._generation = generation
        self._wait = wait

    @property
    def name(self) -> str:
        """What messages call it."""
        return self._tree.name

    @property
    def generation(self) -> int:
        """Passes applied since `init`."""
        return self._generation

    @property
    def nbytes(self) -> int:
        """Bytes on all meshes together."""
        return sum(map(_jax.nbytes, self._tree.avals))

    @property
    def owner(self) -> Inventory:
        """What the handles of one compilation have in common: only its executables take them."""
        return self._inventory

    def __repr__(self) -> str:
        state = "" if self._cells else f", {self._fate}"
        return f"Carried({self.name}, generation {self._generation}{state})"

    def copy(self) -> "Carried":
        """An independent state of the same generation, on the same meshes.

        Raises:
            SpecError: the state has been used.
        """
        cells = tuple(cell.copy() for cell in self._ready())
        return Carried(self._inventory, self._tree, cells, self._generation)

    def read(self, path: str, index: Any = ()) -> Any:
        """A copy of the leaf at `path`, or of what `index` selects of it, as a numpy array.

        Args:
            path: key path as in `Traced.arguments`, such as `cache['k']`.
            index: ints and slices, one per leading dim; all of the leaf by default.

        Raises:
            SpecError: the state has been used, or has no such leaf or no such index in it.
        """
        found = self._find(path)
        self._select(path, index)
        if len(found) == 1:
            _, cell, place = found[0]
            return to_host(cell.filled()[place][index])
        whole = _join({part: cell.filled()[place] for part, cell, place in found})
        return whole[index]

    def write(self, path: str, value: Any, index: Any = ()) -> None:
        """Replaces the leaf at `path`, or what `index` selects of it, on its meshes.

        Args:
            path: key path as in `Traced.arguments`.
            value: an array of the dtype and shape of what it replaces.
            index: ints and slices, one per leading dim; all of the leaf by default.

        Raises:
            SpecError: the state has been used, or has no such leaf or no such index in it.
            TraceError: `value` has another shape or dtype.
        """
        found = self._find(path)
        aval = self._select(path, index)
        value = read_all(value)
        if not fits(value, aval):
            check_tree(self.name, value, jax.tree.structure(0), (path,), (aval,))
        if len(found) == 1:
            _, cell, place = found[0]
            cell.write(place, value, index)
            return
        whole = np.array(_join({part: cell.filled()[place] for part, cell, place in found}))
        whole[index] = np.asarray(value)
        for part, cell, place in found:
            cell.write(place, whole[part.start : part.stop])

    def _select(self, path: str, index: Any) -> jax.ShapeDtypeStruct:
        """Shape and dtype of what `index` selects of a leaf; JAX would clamp what lies outside."""
        aval = self._tree.avals[self._tree.paths.index(path)]
        try:
            shape = np.broadcast_to(np.zeros(()), aval.shape)[index].shape
        except IndexError as error:
            raise SpecError(
                f"{path} has shape {list(aval.shape)} and was indexed with {index!r}: {error}; give"
                " ints and slices within it, one per leading dim"
            ) from error
        return jax.ShapeDtypeStruct(shape, aval.dtype)

    def wait(self) -> None:
        """Waits for the pass that makes this state, and raises its error."""
        if self._wait is not None:
            self._ready()

    def _next(self, cells: tuple[Cell, ...]) -> "Carried":
        """The state that a pass makes of this one."""
        return Carried(self._inventory, self._tree, cells, self._generation + 1)

    def _take(self) -> tuple[Cell, ...]:
        """The cells, for the one pass that may use them."""
        try:
            return self._cells.pop()
        except IndexError:
            raise self._gone() from None

    def _give_back(self, cells: tuple[Cell, ...]) -> None:
        """Undoes `_take`: the pass did not begin."""
        if not self._lost:
            self._cells.append(cells)

    def _lose(self, reason: str) -> None:
        self._fate = reason
        self._lost = True
        self._cells.clear()

    def _gone(self) -> SpecError:
        return SpecError(
            f"{self.name}, generation {self._generation}: {self._fate}; use the state that the"
            " pass returned, copy() it before the pass, or init() a new one"
        )

    def _ready(self) -> tuple[Cell, ...]:
        """The cells, all filled; waits for the pass that makes them."""
        if not self._cells:
            raise self._gone()
        if self._wait is not None:
            self._wait()
            self._wait = None
        try:
            return self._cells[0]
        except IndexError:
            raise self._gone() from None

    def _slots(self) -> Iterator[tuple[Part, Cell, int]]:
        states = self._inventory.states[self._tree.index]
        for cell, parts in zip(self._ready(), states, strict=True):
            for place, part in enumerate(parts):
                yield part, cell, place

    def _find(self, path: str) -> list[tuple[Part, Cell, int]]:
        if path not in self._tree.paths:
            shown = ", ".join(self._tree.paths[:10])
            raise SpecError(f"{self.name} has no leaf {path!r}; it has {shown}")
        leaf = self._tree.first + self._tree.paths.index(path)
        return sorted((slot for slot in self._slots() if slot[0].leaf == leaf), key=lambda s: s[0])

    def _leaves(self) -> list[Any]:
        parts: dict[int, dict[Part, jax.Array]] = {}
        for part, cell, place in self._slots():
            parts.setdefault(part.leaf, {})[part] = cell.filled()[place]
        return [_join(parts[leaf]) for leaf in sorted(parts)]


def place(inventory: Inventory, store: Store, tree: Tree, value: Any) -> Placed:
    """Puts a resident argument on the meshes of the stages that read it.

    Raises:
        TraceError: structure, shapes or dtypes differ from the trace.
        BackendError: a mesh has no room for its part.
    """
    leaves = check_tree(tree.name, value, tree.treedef, tree.paths, tree.avals)
    slots = inventory.shelves[tree.index]
    shelf: dict[tuple[str, Part], jax.Array] = {}
    for mesh in dict.fromkeys(mesh for mesh, _ in slots):
        mine = [slot for slot in slots if slot[0] == mesh]
        parts = [part for _, part in mine]
        with _putting(inventory, tree, mesh, parts, leaves) as lot:
            shelf.update(zip(mine, store.shelve(tree, mesh, parts, *lot), strict=True))
    rest: dict[int, Any] = {}
    for leaf, (given, aval) in enumerate(zip(leaves, tree.avals, strict=True), tree.first):
        if not _complete({part for _, part in shelf if part.leaf == leaf}, aval):
            rest[leaf] = given
    return Placed(inventory, tree, shelf, rest)


def init(inventory: Inventory, store: Store, tree: Tree, value: Any) -> Carried:
    """Copies a carried argument to its meshes as generation 0; the caller's arrays stay good.

    Raises:
        TraceError: structure, shapes or dtypes differ from the trace.
        BackendError: a mesh has no room for its part.
    """
    leaves = check_tree(tree.name, value, tree.treedef, tree.paths, tree.avals)
    states = inventory.states[tree.index]
    cells: list[Cell] = []
    for mesh, parts in zip(inventory.placement, states, strict=True):
        with _putting(inventory, tree, mesh, parts, leaves) as lot:
            cells.append(store.fill(tree, mesh, parts, *lot))
    return Carried(inventory, tree, tuple(cells), 0)


def gather(tree: Any) -> Any:
    """An ordinary tree of numpy arrays; handles in it become the trees that they hold.

    Typed PRNG keys have no numpy form and come back as `jax.Array`s of the default device. A
    `Carried` stays usable.

    Raises:
        SpecError: a carried state has been used.
    """
    return jax.tree.map(_gather_leaf, tree)


def _gather_leaf(leaf: Any) -> Any:
    if isinstance(leaf, Placed | Carried):
        host = [to_host(x) for x in leaf._leaves()]
        return jax.tree.unflatten(leaf._tree.treedef, host)
    return to_host(leaf)


def to_host(array: Any) -> Any:
    """A numpy copy of an array; a typed PRNG key is copied to the default device."""
    array = getattr(array, "fetch", lambda: array)()  # it may lie in another process
    if isinstance(array, jax.Array) and jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        data = jnp.asarray(np.array(jax.random.key_data(array)))
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(array))
    return np.array(array)


@contextlib.contextmanager
def _putting(
    inventory: Inventory, tree: Tree, mesh: str, parts: Sequence[Part], leaves: Sequence[Any]
) -> Iterator[tuple[list[Any], list[jax.sharding.NamedSharding]]]:
    """The rows of these parts and how they lie on the mesh; names the argument when that fails."""
    rows = [_rows(leaves[part.leaf - tree.first], part) for part in parts]
    paths = [tree.paths[part.leaf - tree.first] for part in parts]
    try:
        yield rows, [inventory.arrangement.argument(mesh, path) for path in paths]
    except BackendError as error:  # of workers: it says where, and not always what
        if str(error).startswith(tree.name):
            raise
        raise BackendError(f"{tree.name} could not be put there: {error}") from error
    except RuntimeError as error:
        nbytes = sum(map(num_bytes, rows))
        raise BackendError(
            f"{tree.name}: {nbytes} bytes could not be put on mesh {mesh!r}: {error}; free"
            " memory there, or plan with less on it"
        ) from error


def _nbytes(array: Any) -> int:
    """Bytes of an array on all meshes that it lies on."""
    return array.nbytes if hasattr(array, "meshes") else _jax.nbytes(array)


def _rows(leaf: Any, part: Part) -> Any:
    return leaf if part.whole else leaf[part.start : part.stop]


def _complete(parts: Any, aval: jax.ShapeDtypeStruct) -> bool:
    """Whether parts of one leaf hold each of its rows."""
    if any(part.whole for part in parts):
        return True
    rows = {row for part in parts for row in range(part.start, part.stop)}
    return bool(parts) and len(rows) == aval.shape[0]


def _join(parts: dict[Part, jax.Array]) -> Any:
    """The leaf that parts make up: the array itself if one holds it all, else rows on the host."""
    for part, array in parts.items():
        if part.whole or len(parts) == 1:
            return array
    host: dict[int, Any] = {}
    for part, array in parts.items():
        rows = to_host(array)
        host.update((part.start + i, rows[i]) for i in range(part.stop - part.start))
    ordered = [host[row] for row in sorted(host)]
    return jnp.stack(ordered) if isinstance(ordered[0], jax.Array) else np.stack(ordered)


__all__ = ["Carried", "Placed", "gather", "init", "place", "to_host"]
