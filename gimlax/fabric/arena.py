"""Memory that messages take turns in, each for as long as an array lies over it.

Fresh memory costs more than a copy: the system zeroes every page of it first. So one range serves
a link for its whole life. A block is free again when the last array over it is gone: NumPy views
keep their root alive, and JAX keeps the view that it was given until neither an array, nor a view
of one, nor a running program uses the buffer (tried with JAX 0.10 and 0.12, with the built-in CPU
client and a plugin's: `delete`, dropping while a program runs, views, DLPack, moving to another
client, which shares the memory again). So a weak reference to the root tells, whoever was last.

JAX tells of an array that was dropped at its next call or collection only; `receive` has it do so.
It may tell in any thread and between any two lines, so it takes no lock: it appends to a deque.
"""

import collections
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np

from gimlax.errors import InternalError
from gimlax.fabric.frames import ALIGNMENT_BYTES

__all__ = ["Landing", "Loans", "Ranges", "fresh"]

_GRAIN_BYTES = 4096


def fresh(num_bytes: int) -> np.ndarray:
    """Aligned memory of its own."""
    raw = np.empty(num_bytes + ALIGNMENT_BYTES, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT_BYTES
    return raw[start : start + num_bytes]


class Ranges:
    """Which bytes of a range are taken: lowest address first, so that few pages are ever touched.

    Sizes are rounded up to pages. It has one user at a time.
    """

    def __init__(self, num_bytes: int) -> None:
        self.num_bytes = num_bytes // _GRAIN_BYTES * _GRAIN_BYTES
        self._holes = [(0, self.num_bytes)] if self.num_bytes else []  # (start, end), ascending
        self._taken: dict[int, int] = {}

    @property
    def taken_bytes(self) -> int:
        """Bytes in use."""
        return sum(end - start for start, end in self._taken.items())

    def take(self, num_bytes: int) -> int | None:
        """Where a block of so many bytes lies now, None if no hole is large enough."""
        size = max(-(-num_bytes // _GRAIN_BYTES), 1) * _GRAIN_BYTES
        for k, (start, end) in enumerate(self._holes):
            if end - start >= size:
                self._holes[k : k + 1] = [(start + size, end)] if end - start > size else []
                self._taken[start] = start + size
                return start
        return None

    def give_back(self, start: int) -> None:
        """Frees the block that lies there."""
        if start not in self._taken:
            raise InternalError(f"no block lies at byte {start} of this memory; please report this")
        hole = (start, self._taken.pop(start))
        merged: list[tuple[int, int]] = []
        for other in sorted([*self._holes, hole]):
            if merged and merged[-1][1] == other[0]:
                merged[-1] = (merged[-1][0], other[1])
            else:
                merged.append(other)
        self._holes = merged


class Loans:
    """Views of memory, each with what is to be done when the last array over it is gone.

    Args:
        memory: any writable buffer; lives while a loan does.
    """

    def __init__(self, memory: Any) -> None:
        self._memory = memory
        self._watched: dict[int, weakref.ref[np.ndarray]] = {}
        self._count = 0

    def lend(self, start: int, num_bytes: int, ended: Callable[[], object]) -> np.ndarray:
        """The bytes from `start` on; `ended` is called once, from any thread, without a lock."""
        root = np.frombuffer(self._memory, np.uint8, count=num_bytes, offset=start)
        number = self._count = self._count + 1
        watched = self._watched

        def gone(reference: object) -> None:
            watched.pop(number, None)
            ended()

        watched[number] = weakref.ref(root, gone)
        return root

    def __len__(self) -> int:
        return len(self._watched)


class Landing:
    """Memory of this process that payloads are received into: kept, and used again.

    What does not fit goes into memory of its own, so a reader that holds arrays for long is served
    more slowly and never refused. It has one user at a time, and loans that end in any thread.
    """

    def __init__(self, memory: Any) -> None:
        self._ranges = Ranges(len(memory))
        self._loans = Loans(memory)
        self._ended: collections.deque[int] = collections.deque()

    def allocate(self, num_bytes: int) -> np.ndarray:
        """Memory for a payload, aligned."""
        while self._ended:
            self._ranges.give_back(self._ended.popleft())
        if num_bytes < _GRAIN_BYTES or (start := self._ranges.take(num_bytes)) is None:
            return fresh(num_bytes)
        ended = self._ended
        return self._loans.lend(start, num_bytes, lambda: ended.append(start))
