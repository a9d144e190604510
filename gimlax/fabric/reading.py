"""Frames out of a stream of bytes, one after the other, from whatever gives them.

A read that is interrupted (a timeout) goes on where it was. A frame that is wrong ends the stream:
where the next one would begin cannot be known any more.
"""

from collections.abc import Callable

import numpy as np

from gimlax.fabric.checksums import PIECE_BYTES, crc32c
from gimlax.fabric.failures import FrameError, LinkClosed, LinkError, LinkLost
from gimlax.fabric.frames import (
    HEAD_BYTES,
    Frame,
    Head,
    Kind,
    Layout,
    Limits,
    decode_description,
    decode_head,
)

__all__ = ["FrameReader"]

_TRAILER_BYTES = 4
_BUFFER_BYTES = 64 * 1024


class FrameReader:
    """Reads the frames of one link in their order.

    Args:
        link: for messages.
        limits: what is taken in one frame.
        source: fills the beginning of a buffer and returns how much, 0 at the end of the stream;
            what it raises passes through, and the next read goes on.
        allocate: gives memory for a payload of so many bytes, aligned to 64.
        borrow: finds the payload of a loan; raises FrameError where there can be none.
    """

    def __init__(
        self,
        link: str,
        limits: Limits,
        source: Callable[[memoryview], int],
        allocate: Callable[[int], np.ndarray],
        borrow: Callable[[Head], np.ndarray],
    ) -> None:
        self._link = link
        self._limits = limits
        self._source = source
        self._allocate = allocate
        self._borrow = borrow
        self._sequence = 0
        self._broken: LinkError | None = None
        # read and not yet used: a small frame takes one read in all
        self._buffer = memoryview(bytearray(_BUFFER_BYTES))
        self._used = self._filled = 0
        # the frame that is under way
        self._head: Head | None = None
        self._layout: Layout | None = None
        self._payload: np.ndarray | None = None
        self._got = self._crc = 0

    def read(self) -> Frame:
        """The next frame.

        Raises:
            FrameError: it is not what has to come.
            LinkClosed: the sender closed the link in order.
            LinkLost: the stream ended without a farewell.
        """
        if self._broken is not None:
            raise self._broken.with_traceback(None)
        try:
            return self._next()
        except (FrameError, LinkClosed, LinkLost) as error:
            self._broken = error
            raise

    def _next(self) -> Frame:
        if (head := self._head) is None:
            data = self._exactly(HEAD_BYTES)
            head = self._head = decode_head(data, self._link, self._sequence, self._limits)
            if head.kind is Kind.FAREWELL:
                raise LinkClosed(self._link, f"the sender closed it after {head.sequence} messages")
        if (layout := self._layout) is None:
            data = self._whole_description(head.description_bytes)
            layout = self._layout = decode_description(data, head, self._link)
        payload = self._borrow(head) if head.kind is Kind.LOAN else None
        if head.kind is Kind.DATA:
            payload = self._whole_payload(head.payload_bytes)
            crc = int.from_bytes(self._exactly(_TRAILER_BYTES), "little")
            if crc != self._crc:
                raise FrameError(
                    self._link,
                    head.sequence,
                    f"the checksum of its payload of {head.payload_bytes} bytes is "
                    f"{self._crc:#010x}, and {crc:#010x} was sent with it",
                )
        self._head = self._layout = self._payload = None
        self._got = self._crc = 0
        self._sequence += 1
        return Frame(head=head, layout=layout, payload=payload)

    def _exactly(self, num_bytes: int) -> bytes:
        """So many bytes of at most a buffer; keeps what came if the rest does not."""
        if self._used == self._filled:
            self._used = self._filled = 0
        elif self._used + num_bytes > len(self._buffer):
            rest = bytes(self._buffer[self._used : self._filled])
            self._buffer[: len(rest)] = rest
            self._used, self._filled = 0, len(rest)
        while self._filled - self._used < num_bytes:
            self._filled += self._more(self._buffer[self._filled :])
        start, self._used = self._used, self._used + num_bytes
        return bytes(self._buffer[start : self._used])

    def _whole_description(self, num_bytes: int) -> bytes:
        if num_bytes <= len(self._buffer):
            return self._exactly(num_bytes)
        data = bytes(self._whole_payload(num_bytes))
        self._payload, self._got, self._crc = None, 0, 0
        return data

    def _whole_payload(self, num_bytes: int) -> np.ndarray:
        if self._payload is None:
            self._payload = self._allocate(num_bytes)
        payload = self._payload
        view = payload.data
        while self._got < num_bytes:
            if self._used < self._filled:
                count = min(self._filled - self._used, num_bytes - self._got)
                view[self._got : self._got + count] = self._buffer[self._used : self._used + count]
                self._used += count
            else:
                count = self._more(view[self._got : min(self._got + PIECE_BYTES, num_bytes)])
            self._crc = crc32c(payload[self._got : self._got + count], self._crc)
            self._got += count
        return payload

    def _more(self, view: memoryview) -> int:
        count = self._source(view)
        if count:
            return count
        raise LinkLost(
            self._link,
            f"the sender is gone without a farewell, before frame {self._sequence} was complete",
        )
