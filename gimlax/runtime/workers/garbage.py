"""What workers can let go of: numbers that nobody holds any more."""

from collections import defaultdict, deque

__all__ = ["Garbage"]


class Garbage:
    """Numbers by worker; added to wherever the collector runs, so without a lock."""

    def __init__(self) -> None:
        self._lots: defaultdict[str, deque[tuple[str, int]]] = defaultdict(deque)

    def add(self, worker: str, what: str, number: int) -> None:
        """Notes an 'arrays', 'cells', 'placed' or 'taps' number."""
        self._lots[worker].append((what, number))

    def take(self, worker: str) -> dict[str, list[int]] | None:
        """What has come together for a worker, None if nothing has."""
        lot = self._lots[worker]
        if not lot:
            return None
        found: dict[str, list[int]] = {"arrays": [], "cells": [], "placed": [], "taps": []}
        for _ in range(len(lot)):
            what, number = lot.popleft()
            found[what].append(number)
        return found

    def forget(self, worker: str) -> None:
        """Drops what was noted for a worker that is no more."""
        self._lots.pop(worker, None)
