"""What a carried state came from, so that it can be made again: values, and what was done to them.

A state is a value that was given, or what a pass made of states before it, or another with a part
written over. Only streamed inputs are kept of a pass, by reference to a chain that ends at a value;
what no living state came from is let go of by Python itself. A value is a snapshot or what `init`
was given; one that is the same number throughout, as empty caches are, is kept as that number.
"""

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from gimlax import _jax

__all__ = ["Applied", "Origin", "PassRecord", "Value", "Written", "events_before"]

_TURNS = itertools.count()


class Value:
    """A state as it was given, or as it was read back."""

    __slots__ = ("leaves", "tree")

    logged_bytes = 0
    num_events = 0

    def __init__(self, tree: int, leaves: Sequence[Any]) -> None:
        """`tree` is the index of the argument; `leaves` must not be changed by others."""
        self.tree = tree
        self.leaves = [_compact(leaf) for leaf in leaves]


class PassRecord:
    """A pass that was submitted: enough to do it again."""

    __slots__ = ("logged_bytes", "num_events", "origins", "phase", "stocks", "streamed", "turn")

    def __init__(
        self,
        phase: int,
        stocks: Sequence[Any],
        streamed: Mapping[int, Any],
        origins: Sequence["Origin"],
    ) -> None:
        """`stocks` are placed arguments, `streamed` leaves by number, `origins` of its state."""
        self.turn = next(_TURNS)
        self.phase = phase
        self.stocks = stocks
        self.streamed = streamed
        self.origins = origins
        self.logged_bytes = sum(
            (of.logged_bytes for of in origins), sum(map(_nbytes, streamed.values()))
        )
        self.num_events = 1 + max((of.num_events for of in origins), default=0)


class Applied:
    """What a pass made of one carried argument."""

    __slots__ = ("record", "tree")

    def __init__(self, record: PassRecord, tree: int) -> None:
        self.record = record
        self.tree = tree

    @property
    def logged_bytes(self) -> int:
        """Bytes of streamed inputs since the last value."""
        return self.record.logged_bytes

    @property
    def num_events(self) -> int:
        """What was done since the last value."""
        return self.record.num_events


class Written:
    """A state with a leaf, or what `index` selects of it, replaced."""

    __slots__ = ("base", "index", "leaf", "logged_bytes", "num_events", "tree", "turn", "value")

    def __init__(self, base: "Origin", leaf: int, value: Any, index: Any) -> None:
        self.turn = next(_TURNS)
        self.base = base
        self.tree: int = base.tree
        self.leaf = leaf
        self.value = value
        self.index = index
        self.logged_bytes = base.logged_bytes + _nbytes(value)
        self.num_events = base.num_events + 1


Origin = Value | Applied | Written


def events_before(wanted: Iterable[Origin]) -> tuple[list[PassRecord | Written], Counter[Any]]:
    """What has to be done to make these states, in the order in which it was done first.

    Returns:
        The events, and how often each origin is used by them and by `wanted`.
    """
    uses: Counter[Any] = Counter()
    events: dict[int, PassRecord | Written] = {}
    todo = list(wanted)
    while todo:
        origin = todo.pop()
        uses[origin] += 1
        if isinstance(origin, Written):
            if uses[origin] == 1:
                events[origin.turn] = origin
                todo.append(origin.base)
        elif isinstance(origin, Applied) and origin.record.turn not in events:
            events[origin.record.turn] = origin.record
            todo += origin.record.origins
    return [events[turn] for turn in sorted(events)], uses


def _nbytes(leaf: Any) -> int:
    return _jax.nbytes(jax.typeof(leaf))


def _compact(leaf: Any) -> Any:
    """The same array, without memory of its own if it is one number throughout."""
    if not isinstance(leaf, np.ndarray) or leaf.size < 2 or not leaf.flags.c_contiguous:
        return leaf
    raw = leaf.reshape(-1).view(np.uint8)
    size = leaf.dtype.itemsize
    if np.array_equal(raw[size:], raw[:-size]):
        return np.broadcast_to(leaf.reshape(-1)[0].copy(), leaf.shape)
    return leaf
