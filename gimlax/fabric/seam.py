"""What the layers above know of a link: a sender, a receiver, and the offer that joins them.

A receiver is made first. Its `offer` is plain data, so that whatever channel the two sides already
have can carry it; `connect` makes the sender of it. A link goes one way, from one sender to one
receiver, and keeps its order. Ways to move bytes, one for remote direct memory access too, differ
behind these two protocols only. What is made for every message is a named tuple, which takes a
fifth of the time of a frozen dataclass.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, Self

import jax
import numpy as np

from gimlax.errors import SpecError
from gimlax.fabric.frames import Limits, Tag
from gimlax.records import Count, from_json, to_json

__all__ = ["Message", "Offer", "Outgoing", "Part", "Receiver", "Sender"]

_SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """Where and how a receiver can be reached, by whoever knows the secret.

    `kind` is "ring" or "tcp", `address` the name of an abstract Unix socket or host:port. Whoever
    has the offer can send in the place of the sender, so it belongs on a channel that others cannot
    read.
    """

    kind: str
    link: str
    address: str
    secret: str
    payload_bytes: Count
    arrays: Count

    def __post_init__(self) -> None:
        wrong = [
            f"{name} is {value!r}; give text"
            for name in ("link", "address", "secret")
            if not isinstance(value := getattr(self, name), str) or not value
        ]
        if self.kind not in ("ring", "tcp"):
            wrong.append(f"kind is {self.kind!r}; give 'ring' or 'tcp'")
        if wrong:
            raise SpecError(f"offer of a link: {'; '.join(wrong)}")

    @property
    def limits(self) -> Limits:
        """What the receiver takes in one message."""
        return Limits(payload_bytes=self.payload_bytes, arrays=self.arrays)

    def to_json(self) -> str:
        """As text for a control channel."""
        return to_json(self, _SCHEMA_VERSION)

    @classmethod
    def from_json(cls, text: str) -> "Offer":
        """From such text; raises SpecError that says what is wrong with it."""
        return from_json(
            cls,
            text,
            _SCHEMA_VERSION,
            "offer of a link",
            error=SpecError,
            advice="ask the receiver for a new one",
        )


class Outgoing(NamedTuple):
    """A block of an array, to be sent.

    `data` holds the block, or with `take` something that it is cut out of once its values are
    there. An array of one device is waited for on the sender's thread, and may not be donated or
    changed before it is sent.
    """

    data: jax.Array | np.ndarray
    index: int = 0  # pyright: ignore[reportIncompatibleMethodOverride]
    whole: tuple[int, ...] | None = None
    start: tuple[int, ...] | None = None
    take: tuple[slice, ...] | None = None


class Part(NamedTuple):
    """A block of an array, as it came: read-only, and over memory of the link while it lives."""

    index: int  # pyright: ignore[reportIncompatibleMethodOverride]
    whole: tuple[int, ...]
    start: tuple[int, ...]
    data: np.ndarray


class Message(NamedTuple):
    """What one call of `send` sent.

    `shared` says that the bytes still lie where the sender wrote them; `void` that there are none,
    because the values could not be computed, which the sender's side knows the reason of.
    """

    tag: Tag
    sequence: int
    parts: tuple[Part, ...]
    shared: bool
    void: bool


class Sender(Protocol):
    """The end of a link that arrays go in at."""

    @property
    def link(self) -> str:
        """Its name in messages."""
        ...

    def send(
        self,
        tag: Tag,
        arrays: Sequence[jax.Array | np.ndarray | Outgoing],
        *,
        wait: bool = True,
    ) -> bool:
        """Takes arrays to be sent, in the order of the calls.

        What is small and there, with nothing before it, is sent as far as the system takes it at
        once; the rest goes on a thread of the link. Returns once the bytes that wait fit the
        queue's bound: with `wait` it blocks while the other side is behind, else it returns False
        and has taken nothing.

        Raises:
            SpecError: these arrays cannot be sent over this link; the link is as before.
            LinkError: this or an earlier message cannot be sent any more.
        """
        ...

    def drain(self, timeout_s: float | None = None) -> None:
        """Waits until all that was taken has been handed over to the system.

        Raises:
            LinkTimeout: it took longer.
            LinkError: it cannot be sent any more.
        """
        ...

    def close(self) -> None:
        """Closes the link, drops what was not sent, and wakes whoever waits on either side."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *failure: object) -> None: ...


class Receiver(Protocol):
    """The end of a link that arrays come out at."""

    @property
    def link(self) -> str:
        """Its name in messages."""
        ...

    @property
    def offer(self) -> Offer:
        """How to reach it; good for one sender."""
        ...

    def receive(self, timeout_s: float | None = None) -> Message:
        """The next message; nothing is read ahead, so one that is not asked for holds no memory
        here.

        Raises:
            LinkTimeout: none came in time; what has come of it is kept for the next call.
            LinkError: none will come any more.
        """
        ...

    def close(self) -> None:
        """Closes the link and wakes whoever waits on either side; what came stays valid."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *failure: object) -> None: ...
