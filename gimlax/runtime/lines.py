"""A queue that gives what is put into it in the order in which that was announced."""

from collections import deque
from typing import Generic, TypeVar

__all__ = ["Line"]

Item = TypeVar("Item")


class Line(Generic[Item]):
    """Items in the order of `expect`, each once it has come; true while the next one has.

    It is used as the `deque` in whose place it stands, by one thread at a time.
    """

    def __init__(self) -> None:
        self._expected: deque[Item] = deque()
        self._came: set[Item] = set()

    def expect(self, item: Item) -> None:
        """Announces an item, once."""
        self._expected.append(item)

    def append(self, item: Item) -> None:
        """Brings an item that was announced."""
        self._came.add(item)

    def appendleft(self, item: Item) -> None:
        """Brings back what `popleft` gave."""
        self._expected.appendleft(item)
        self._came.add(item)

    def popleft(self) -> Item:
        """The next item."""
        item = self._expected.popleft()
        self._came.remove(item)
        return item

    def __getitem__(self, place: int) -> Item:
        return self._expected[place]

    def __bool__(self) -> bool:
        return bool(self._expected) and self._expected[0] in self._came
