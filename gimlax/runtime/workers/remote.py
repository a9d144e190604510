"""Arrays that lie on workers: stand-ins for them, and the store that handles keep them in.

A stand-in is known by a number on its worker. Reading one fetches it; letting go of one tells the
worker with the next message, so a collected handle costs nothing.
"""

import itertools
import weakref
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import jax
import numpy as np

from gimlax.partition import normal
from gimlax.runtime.stores import Cell
from gimlax.runtime.workers.peers import Peer

__all__ = ["Garbage", "RemoteArray", "RemoteCell", "RemoteStore", "number_of"]


class Garbage:
    """Numbers that nobody holds any more, by worker; added to wherever the collector runs."""

    def __init__(self, workers: Iterable[str]) -> None:
        self._lots: dict[str, deque[tuple[str, int]]] = {name: deque() for name in workers}

    def add(self, worker: str, what: str, number: int) -> None:
        """Notes an 'arrays', 'cells' or 'placed' number."""
        self._lots[worker].append((what, number))

    def take(self, worker: str) -> dict[str, list[int]] | None:
        """What has come together for a worker, None if nothing has."""
        lot = self._lots[worker]
        if not lot:
            return None
        found: dict[str, list[int]] = {"arrays": [], "cells": [], "placed": []}
        for _ in range(len(lot)):
            what, number = lot.popleft()
            found[what].append(number)
        return found


class RemoteArray:
    """An array on a worker, on its own or in a cell; becomes a numpy array when it is read."""

    __slots__ = ("__weakref__", "_cell", "_number", "_store", "aval", "mesh")

    def __init__(
        self,
        store: "RemoteStore",
        mesh: str,
        number: int,
        aval: jax.ShapeDtypeStruct,
        cell: "RemoteCell | None" = None,
    ) -> None:
        self._store = store
        self._cell = cell
        self._number = number
        self.mesh = mesh
        self.aval = aval

    @property
    def number(self) -> int:
        """On its worker; in a cell its place there."""
        return self._number

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the whole array."""
        return self.aval.shape

    @property
    def dtype(self) -> Any:
        """As of the array."""
        return self.aval.dtype

    def fetch(self) -> Any:
        """The array itself; a PRNG key as a `jax.Array` of the default device."""
        cell = None if self._cell is None else self._cell.number
        _, (array,) = self._store.ask(self.mesh, "read", {"cell": cell, "number": self._number})
        return array

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self.fetch(), dtype)

    def __getitem__(self, index: Any) -> Any:
        return self.fetch()[index]


class RemoteCell(Cell):
    """The carried arrays of one stage on a worker. They are never None: the worker knows better."""

    __slots__ = ("_avals", "_store", "mesh", "number")

    def __init__(
        self, store: "RemoteStore", mesh: str, avals: Sequence[jax.ShapeDtypeStruct]
    ) -> None:
        # A pass makes one of these for each stage, so there is nothing in it that can wait.
        self.mesh = mesh
        self.number = store.next_number()
        self._store = store
        self._avals = avals

    @property
    def arrays(self) -> Any:
        """Stand-ins for them."""
        return tuple(
            RemoteArray(self._store, self.mesh, place, aval, self)
            for place, aval in enumerate(self._avals)
        )

    def __del__(self) -> None:
        self._store.garbage.add(self._store.worker_of(self.mesh), "cells", self.number)

    def fresh(self) -> "RemoteCell":
        """A cell that a pass will fill."""
        return RemoteCell(self._store, self.mesh, self._avals)

    def copy(self) -> "RemoteCell":
        """A cell of copies."""
        made = self.fresh()
        self._store.ask(self.mesh, "copy", {"cell": self.number, "new": made.number})
        return made

    def write(self, place: int, value: Any, index: Any = ()) -> None:
        """Replaces an array, or what `index` selects of it, by way of this process."""
        if index != ():
            whole = np.array(self.filled()[place])
            whole[index] = np.asarray(value)
            value = whole
        fields = {"cell": self.number, "number": place, "config": self._store.config}
        self._store.ask(self.mesh, "write", fields, (value,))


def number_of(cell: Cell) -> int:
    """The number of a cell of a worker."""
    assert isinstance(cell, RemoteCell)
    return cell.number


class RemoteStore:
    """Keeps arrays on workers."""

    def __init__(
        self,
        deployment: int,
        peers: Mapping[str, Peer],
        config: Sequence[tuple[str, Any]],
    ) -> None:
        """`peers` has the worker of each mesh, `config` JAX's configuration of the trace."""
        self._workers = {mesh: peer.name for mesh, peer in peers.items()}
        self.garbage = Garbage(self._workers.values())
        self.config = config
        self.deployment = deployment
        self._peers = peers
        self._numbers = itertools.count()
        self._placed: weakref.WeakKeyDictionary[Any, dict[str, int]] = weakref.WeakKeyDictionary()

    def next_number(self) -> int:
        """A number that no array, cell or argument of this deployment has."""
        return next(self._numbers)

    def worker_of(self, mesh: str) -> str:
        """Name of the worker that has a mesh."""
        return self._workers[mesh]

    def ask(
        self, mesh: str, kind: str, fields: Mapping[str, Any], arrays: Sequence[Any] = ()
    ) -> tuple[Mapping[str, Any], list[Any]]:
        """Asks the worker of a mesh; see `Peer.ask`."""
        return self._peers[mesh].ask(kind, {"deployment": self.deployment, **fields}, arrays)

    def shelve(
        self, mesh: str, rows: Sequence[Any], lying: Sequence[jax.sharding.NamedSharding]
    ) -> Sequence[jax.Array]:
        """See `Store`."""
        made = [RemoteArray(self, mesh, self.next_number(), aval) for aval in _avals(rows)]
        worker = self.worker_of(mesh)
        for array in made:
            weakref.finalize(array, self.garbage.add, worker, "arrays", array.number)
        fields = {"mesh": mesh, "numbers": [a.number for a in made], "specs": _specs(rows, lying)}
        self.ask(mesh, "shelve", fields, rows)
        return cast(Any, made)

    def fill(
        self, mesh: str, rows: Sequence[Any], lying: Sequence[jax.sharding.NamedSharding]
    ) -> Cell:
        """See `Store`."""
        cell = RemoteCell(self, mesh, _avals(rows))
        fields = {"mesh": mesh, "number": cell.number, "specs": _specs(rows, lying)}
        self.ask(mesh, "fill", fields, rows)
        return cell

    def number_of(self, placed: Any, worker: str, rows: Mapping[int, Sequence[Any]]) -> int:
        """The number of a placed argument on a worker, which is told of it the first time.

        Args:
            placed: the handle.
            worker: its name.
            rows: by row of a stage on this worker what it reads.
        """
        numbers = self._placed.setdefault(placed, {})
        if worker not in numbers:
            number = self.next_number()
            peer = next(peer for peer in self._peers.values() if peer.name == worker)
            told = [[row, [array.number for array in of]] for row, of in rows.items()]
            peer.ask("place", {"deployment": self.deployment, "number": number, "rows": told})
            numbers[worker] = number
            weakref.finalize(placed, self.garbage.add, worker, "placed", number)
        return numbers[worker]


def _avals(rows: Sequence[Any]) -> list[jax.ShapeDtypeStruct]:
    return [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in map(jax.typeof, rows)]


def _specs(rows: Sequence[Any], lying: Sequence[jax.sharding.NamedSharding]) -> list[Any]:
    return [normal(sharding.spec, np.ndim(row)) for row, sharding in zip(rows, lying, strict=True)]
