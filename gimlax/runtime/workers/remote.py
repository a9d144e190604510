"""What handles hold of arrays on workers: stand-ins that stay good when the arrays move.

A `Stock` is a placed argument: it keeps the caller's arrays by reference, so that they can be put
on another worker. A `State` is a carried argument: where it lies now, and what it came from.
Reading one fetches it; letting go of one tells its workers with the next pass.
"""

from collections.abc import Sequence
from typing import Any, cast

import jax
import numpy as np

from gimlax.errors import BackendError, InternalError
from gimlax.graph import Part
from gimlax.lazy import read_all
from gimlax.partition import normal
from gimlax.runtime.arguments import num_bytes
from gimlax.runtime.inventory import Tree
from gimlax.runtime.stores import Cell
from gimlax.runtime.workers.attempts import Numbers, Placing
from gimlax.runtime.workers.files import where_filed
from gimlax.runtime.workers.footing import NUMBERS, Footing
from gimlax.runtime.workers.ground import Ground, Moved
from gimlax.runtime.workers.lineage import Origin, Value, Written

__all__ = ["RemoteStore", "State", "Stock", "stock_of"]


class Stock:
    """A placed argument: the caller's arrays by part, and where they lie on workers."""

    __slots__ = ("__weakref__", "_ground", "_lying", "placing", "sources", "tree")

    def __init__(self, ground: Ground, tree: Tree, sources: dict[Part, Any]) -> None:
        self.tree = tree
        self.sources = sources
        self.placing: Placing | None = None  # on the footing of now
        self._ground = ground
        self._lying: dict[Any, int] = {}  # by worker, mesh, part and split: number of the array

    def put(self, footing: Footing) -> Placing:
        """Puts on each mesh what stages there read; what lies there already stays.

        Raises:
            BackendError: a mesh has no room, or a worker is lost.
        """
        arrangement, tree = footing.inventory.arrangement, self.tree
        placed: dict[tuple[str, Part], int] = {}
        lying: dict[Any, int] = {}
        futures = []
        for mesh in dict.fromkeys(mesh for mesh, _ in footing.inventory.shelves[tree.index]):
            peer, split = footing.workers[mesh], arrangement.meshes[mesh].shape_tuple
            wanted = []
            for slot in footing.inventory.shelves[tree.index]:
                if slot[0] != mesh:
                    continue
                part, row = slot[1], self.rows(slot[1])
                sharding = arrangement.argument(mesh, tree.paths[part.leaf - tree.first])
                spec = normal(sharding.spec, np.ndim(row))
                key = (peer, mesh, split, part, spec)
                if key not in self._lying:
                    wanted.append((next(NUMBERS), spec, row))
                lying[key] = placed[slot] = self._lying.get(key, wanted[-1][0] if wanted else -1)
            futures += _begin(footing, mesh, wanted)
        # Whatever a worker cannot read from a file is sent to it.
        again = [lot for lot, future in futures if future.exception() is not None]
        sent = [(lot[0], footing.shelve(*lot, filed=False)) for lot in again]
        errors = [(mesh, error) for mesh, of in sent if (error := of.exception()) is not None]
        keep = self._lying if errors else lying
        for (peer, *_), number in {**self._lying, **lying}.items():
            if number not in keep.values() and peer.lost is None:
                self._ground.garbage.add(peer.name, "arrays", number)
        if errors:
            mesh, error = errors[0]
            raise BackendError(f"{tree.name} on mesh {mesh!r}: {error}") from error
        self._lying = lying
        return Placing(tree.index, placed)

    def rows(self, part: Part) -> Any:
        """What the caller gave of a part."""
        for given, source in self.sources.items():
            if given.leaf == part.leaf and (given.whole or given.start <= part.start < given.stop):
                first = max(given.start, 0)
                return source if part == given else source[part.start - first : part.stop - first]
        raise InternalError(f"{self.tree.name} was given no {part}; please report it")

    def __del__(self) -> None:
        garbage = self._ground.garbage
        for (peer, *_), number in self._lying.items():
            garbage.add(peer.name, "arrays", number)
        if self.placing is not None:
            for name, number in self.placing.workers.items():
                garbage.add(name, "placed", number)


def _begin(footing: Footing, mesh: str, wanted: Sequence[tuple[int, Any, Any]]) -> list[Any]:
    """Begins to put arrays, each with its number and spec, on a mesh; lots and their futures.

    One that has to be read here is sent by itself and waited for, so that no second one is held.
    """
    begun, together = [], []
    for number, spec, row in wanted:
        read = read_all(row)
        if read is row or where_filed(read) is not None:
            together.append((number, spec, row))
            continue
        future = footing.shelve(mesh, [number], [spec], [read], filed=False)
        future.exception()
        begun.append(((mesh, [number], [spec], [row]), future))
    if together:
        lot = mesh, *(list(of) for of in zip(*together, strict=True))
        begun.append((lot, footing.shelve(*lot, filed=True)))
    return begun


class _Weight:
    """A part of a stock as it was given; stands where a `jax.Array` does in a `Placed`."""

    __slots__ = ("_ground", "_part", "stock")

    def __init__(self, ground: Ground, stock: Stock, part: Part) -> None:
        self._ground = ground
        self._part = part
        self.stock = stock

    @property
    def meshes(self) -> tuple[str, ...]:
        """Names of the meshes that have some of it."""
        return tuple(mesh for mesh, _ in self._slots())

    @property
    def nbytes(self) -> int:
        """Bytes on all of them together."""
        return sum(num_bytes(self.stock.rows(part)) for _, part in self._slots())

    def fetch(self) -> Any:
        """What the caller gave."""
        return self.stock.sources[self._part]

    def __getitem__(self, index: Any) -> Any:
        return self.fetch()[index]

    def _slots(self) -> Sequence[tuple[str, Part]]:
        slots = self._ground.footing.inventory.shelves[self.stock.tree.index]
        return [slot for slot in slots if slot[1].leaf == self._part.leaf]


class State(Cell):
    """A carried argument of one generation.

    Attributes:
        tree: which argument.
        held: the footing and the numbers of its cells there, None while it lies nowhere.
        origin: what it came from, None if no log is kept.
        settled: whether the pass that makes it has ended.
        consumed: whether a pass was started on it.
        gone: why it cannot be had any more.
    """

    __slots__ = ("__weakref__", "_ground", "consumed", "gone", "held", "origin", "settled", "tree")

    def __init__(self, ground: Ground, tree: Tree, origin: Origin | None) -> None:
        self._ground = ground
        self.tree = tree
        self.origin = origin
        self.held: tuple[Footing, Numbers] | None = None
        self.settled = False
        self.consumed = False
        self.gone: str | None = None
        self.waiters = []

    @property
    def arrays(self) -> Any:
        """Stand-ins for its leaves."""
        return tuple(_Leaf(self, leaf) for leaf in range(len(self.tree.avals)))

    def __del__(self) -> None:
        if self.held is not None:
            self.held[0].let_go(self.held[1])

    def fresh(self) -> "State":
        """What a pass will make of it."""
        return State(self._ground, self.tree, None)

    def copy(self) -> "State":
        """Another of the same value and origin."""
        made = State(self._ground, self.tree, self.origin)
        self._ground.steadily(lambda footing: footing.copy(self.numbers(footing)), made.keep)
        return made

    def write(self, place: int, value: Any, index: Any = ()) -> None:
        """Replaces a leaf, or what `index` selects of it."""
        value = np.array(value) if not isinstance(value, jax.Array) else value
        written = Written(self.origin, place, value, index) if self.origin is not None else None

        def act(footing: Footing) -> None:
            footing.write(
                self.tree.index,
                self.numbers(footing),
                place,
                value if index == () else replaced(self.read(footing, place), value, index),
            )

        def keep(*_: Any) -> None:
            self.origin = written

        self._ground.steadily(act, keep)

    def fetch(self, leaf: int) -> Any:
        """A leaf, as an array of this process."""
        return self._ground.steadily(lambda footing: self.read(footing, leaf))

    def read(self, footing: Footing, leaf: int) -> Any:
        """The same on a footing; see `numbers`."""
        return joined(footing.read(self.tree.index, self.numbers(footing), leaf))

    def numbers(self, footing: Footing) -> Numbers:
        """Of its cells on a footing.

        Raises:
            BackendError: it is gone.
            Moved: it lies elsewhere by now.
        """
        self.check()
        held = self.held
        if held is None or held[0] is not footing:
            raise Moved
        return held[1]

    def leave(self) -> None:
        """Notes that it lies nowhere any more."""
        held, self.held = self.held, None
        if held is not None:
            held[0].let_go(held[1])

    def keep(self, footing: Footing, numbers: Numbers) -> None:
        """Notes where it lies, as it is."""
        self.leave()
        self.held = (footing, numbers)
        self.settled = True
        self._ground.states.add(self)

    def check(self) -> None:
        """Raises `BackendError` if it is gone."""
        if self.gone is not None:
            raise BackendError(f"{self.tree.name}: {self.gone}")


class _Leaf:
    """A leaf of a state; stands where a `jax.Array` does in a `Carried`."""

    __slots__ = ("_leaf", "_state")

    def __init__(self, state: State, leaf: int) -> None:
        self._state = state
        self._leaf = leaf

    def fetch(self) -> Any:
        """The array itself; a PRNG key as a `jax.Array` of the default device."""
        return self._state.fetch(self._leaf)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self.fetch(), dtype)

    def __getitem__(self, index: Any) -> Any:
        return self.fetch()[index]


class RemoteStore:
    """Keeps arrays on workers."""

    def __init__(self, ground: Ground) -> None:
        self._ground = ground

    def shelve(
        self,
        tree: Tree,
        mesh: str,
        parts: Sequence[Part],
        rows: Sequence[Any],
        lying: Sequence[jax.sharding.NamedSharding],
    ) -> Sequence[jax.Array]:
        """See `Store`; `mesh` is the imagined one."""
        stock = Stock(self._ground, tree, dict(zip(parts, rows, strict=True)))
        self._put(stock)
        return cast(Any, [_Weight(self._ground, stock, part) for part in parts])

    def fill(
        self,
        tree: Tree,
        mesh: str,
        parts: Sequence[Part],
        rows: Sequence[Any],
        lying: Sequence[jax.sharding.NamedSharding],
    ) -> Cell:
        """See `Store`; `mesh` is the imagined one."""
        kept = Value(tree.index, list(map(_kept, rows))) if self._ground.keeps_log else None
        state = State(self._ground, tree, kept)
        self._ground.steadily(lambda footing: footing.fill(tree.index, rows), state.keep)
        return state

    def empty(self, tree: Tree) -> Stock:
        """The stock of an argument that no stage reads."""
        stock = Stock(self._ground, tree, {})
        self._put(stock)
        return stock

    def _put(self, stock: Stock) -> None:
        def keep(footing: Footing, placing: Placing) -> None:
            stock.placing = placing
            self._ground.stocks.add(stock)

        self._ground.steadily(stock.put, keep)


def stock_of(placed: Any) -> Stock | None:
    """What a `Placed` holds; None if no stage reads it."""
    for weight in placed._shelf.values():
        return weight.stock
    return None


def joined(parts: Sequence[tuple[Part, Any]]) -> Any:
    """A leaf from its parts, in order."""
    arrays = [array for _, array in parts]
    if len(arrays) == 1:
        return arrays[0]
    joins = jax.numpy.concatenate if isinstance(arrays[0], jax.Array) else np.concatenate
    return joins(arrays)


def replaced(whole: Any, value: Any, index: Any) -> Any:
    """A leaf with what `index` selects replaced."""
    if isinstance(whole, jax.Array):
        return whole.at[index].set(value)
    whole = np.array(whole)
    whole[index] = np.asarray(value)
    return whole


def _kept(row: Any) -> Any:
    """An array that the caller cannot change."""
    return row if isinstance(row, jax.Array) else np.array(row)
