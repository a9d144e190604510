"""A pass as it is tried on one footing: told to workers, with cells of its own."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gimlax.errors import GimlaxError
from gimlax.graph import Part
from gimlax.runtime.passes import Key

__all__ = ["Attempt", "Numbers", "Placing"]

Numbers = tuple[int, ...]  # of a state: its cell of each stage


class Attempt:
    """A pass as it is tried on one footing.

    Attributes:
        phase: which.
        placed: of each resident argument its number by worker, and what stages read of it.
        before, after: cells of each carried argument.
        streamed: leaves by number.
        wanted: whether its outputs are to be sent here.
        done: called when all workers have ended it, with the outputs by mesh and value.
        failed: called when a worker could not, with its error.
        tap: what is to be checked of it, None if nothing is; a `RemoteTap`.
    """

    __slots__ = (
        "after",
        "before",
        "done",
        "failed",
        "missing",
        "phase",
        "placed",
        "streamed",
        "tap",
        "values",
        "wanted",
    )

    def __init__(
        self,
        phase: int,
        placed: Sequence["Placing"],
        before: Sequence[Numbers],
        after: Sequence[Numbers],
        streamed: Mapping[int, Any],
        *,
        wanted: bool,
        done: Callable[[dict[Key, Any]], None],
        failed: Callable[[GimlaxError], None],
        tap: Any = None,
    ) -> None:
        self.phase = phase
        self.placed = placed
        self.before = before
        self.after = after
        self.streamed = streamed
        self.wanted = wanted
        self.done = done
        self.failed = failed
        self.tap = tap
        self.values: dict[Key, Any] = {}
        self.missing: set[str] = set()


class Placing:
    """A resident argument on a footing: its arrays by slot, and its number on each worker."""

    __slots__ = ("arrays", "tree", "workers")

    def __init__(self, tree: int, arrays: Mapping[tuple[str, Part], int]) -> None:
        self.tree = tree
        self.arrays = arrays
        self.workers: dict[str, int] = {}
