"""What a compilation has on a worker, whatever plan it follows just now."""

from typing import Any

import jax

__all__ = ["Possessions"]


class Possessions:
    """Parameters by number, and compiled stages by what makes two of them equal.

    When stages move, those that stay on this worker find both here.
    """

    __slots__ = ("arrays", "compiled")

    def __init__(self) -> None:
        self.arrays: dict[int, jax.Array] = {}
        self.compiled: dict[Any, Any] = {}
