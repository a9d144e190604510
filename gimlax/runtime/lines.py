"""A queue that gives what is put into it in the order in which that was announced."""

import threading
from collections import deque
from typing import Generic, TypeVar

__all__ = ["Line"]

Item = TypeVar("Item")


class Line(Generic[Item]):
    """Items in the order of `expect`, each once it was `put`; None ends it."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._expected: deque[Item] = deque()
        self._came: set[Item] = set()
        self._ended = False

    def expect(self, item: Item) -> None:
        """Announces an item, once."""
        with self._changed:
            self._expected.append(item)

    def put(self, item: Item | None) -> None:
        """Brings an item that was announced."""
        with self._changed:
            if item is None:
                self._ended = True
            else:
                self._came.add(item)
            self._changed.notify_all()

    def get(self) -> Item | None:
        """The next item, waiting for it; None once the line has ended."""
        with self._changed:
            while not self._ended and not (self._expected and self._expected[0] in self._came):
                self._changed.wait()
            if self._ended:
                return None
            item = self._expected.popleft()
            self._came.remove(item)
            return item
