"""Frames into a stream socket, and the sender that is made of them."""

import contextlib
import select
import socket
from collections.abc import Sequence
from typing import Protocol, Self

import jax
import numpy as np

from gimlax.fabric.checksums import PIECE_BYTES, crc32c
from gimlax.fabric.failures import LinkLost
from gimlax.fabric.frames import NOTHING, Kind, Layout, Limits, Tag, encode
from gimlax.fabric.outbox import Outbox
from gimlax.fabric.packing import Packet, as_bytes, host_array, pack
from gimlax.fabric.seam import Outgoing

__all__ = ["Carrier", "FrameWriter", "SocketSender", "StreamCarrier"]

_SMALL_BYTES = 64 * 1024
_PATIENCE_S = 1.0


class FrameWriter:
    """Numbers frames and writes them, one caller at a time; any can `shut` it."""

    def __init__(self, link: str, sock: socket.socket) -> None:
        self.link = link
        self._socket = sock
        self._sequence = 0
        self._rest: memoryview | None = None
        self._poll = select.poll()
        self._poll.register(sock, select.POLLRDHUP)  # hang-up and error are always told

    def write(
        self,
        kind: Kind,
        tag: Tag,
        layout: Layout = NOTHING,
        payload: Sequence[np.ndarray] = (),
        *,
        slot: int = 0,
        offset: int = 0,
    ) -> None:
        """Sends one frame; blocks while the other side is behind.

        Raises:
            LinkLost: the other side is gone.
        """
        head = encode(kind, self._sequence, tag, layout, slot=slot, offset=offset)
        try:
            if kind is not Kind.DATA:
                self._socket.sendall(head)
            elif layout.payload_bytes <= _SMALL_BYTES:
                self._socket.sendall(_in_one(head, layout, payload))
            else:
                self._in_pieces(head, layout, payload)
        except OSError as error:
            # Its frames hold the arrays, and whoever keeps the error would keep them.
            raise self.lost(f"({error.strerror or error})") from error.with_traceback(None)
        self._sequence += 1

    def begin(
        self,
        kind: Kind,
        tag: Tag,
        layout: Layout = NOTHING,
        payload: Sequence[np.ndarray] = (),
        *,
        slot: int = 0,
        offset: int = 0,
    ) -> bool:
        """Sends a frame, whose payload is small, as far as the system takes it at once.

        Returns:
            Whether that was all of it; else `finish` has to send the rest before anything else.

        Raises:
            LinkLost: the other side is gone.
        """
        frame = encode(kind, self._sequence, tag, layout, slot=slot, offset=offset)
        if kind is Kind.DATA:
            frame = _in_one(frame, layout, payload)
        try:
            sent = self._socket.send(frame, socket.MSG_DONTWAIT)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            raise self.lost(f"({error.strerror or error})") from error.with_traceback(None)
        self._sequence += 1
        if sent == len(frame):
            return True
        self._rest = memoryview(frame)[sent:]
        return False

    def finish(self) -> bool:
        """Sends the rest of what was begun, if anything was; blocks as `write` does.

        Raises:
            LinkLost: the other side is gone.
        """
        rest, self._rest = self._rest, None
        if rest is None:
            return False
        try:
            self._socket.sendall(rest)
        except OSError as error:
            raise self.lost(f"({error.strerror or error})") from error.with_traceback(None)
        return True

    def farewell(self) -> None:
        """Says that no frame follows, if the other side takes it at once and none is unfinished."""
        if self._rest is not None:
            return
        head = encode(Kind.FAREWELL, self._sequence, Tag(pass_number=0))
        with contextlib.suppress(OSError):
            self._socket.send(head, socket.MSG_DONTWAIT)

    def is_gone(self) -> bool:
        """Whether the other side has closed its end, in order or by dying."""
        return bool(self._poll.poll(0))

    def lost(self, how: str = "") -> LinkLost:
        """The error to raise when it has."""
        return LinkLost(
            self.link,
            f"the receiver closed it or its process died, before message {self._sequence} was "
            f"sent {how}".rstrip(),
        )

    def shut(self) -> None:
        """Ends the stream in both directions, which wakes whoever waits on it."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Gives the socket back, once nobody uses it."""
        self._socket.close()

    def _in_pieces(self, head: bytes, layout: Layout, payload: Sequence[np.ndarray]) -> None:
        self._socket.sendall(head)
        crc, at = 0, 0
        for start, array in zip(layout.starts, payload, strict=True):
            zeros = bytes(start - at)
            if zeros:
                crc = crc32c(zeros, crc)
                self._socket.sendall(zeros)
            data = as_bytes(array)
            for first in range(0, data.size, PIECE_BYTES):
                piece = data[first : first + PIECE_BYTES]
                crc = crc32c(piece, crc)
                self._socket.sendall(piece.data)
            at = start + data.size
        self._socket.sendall(crc.to_bytes(4, "little"))


def _in_one(head: bytes, layout: Layout, payload: Sequence[np.ndarray]) -> bytes:
    """A frame whose payload is small."""
    body, at = b"", 0
    for start, array in zip(layout.starts, payload, strict=True):
        body += bytes(start - at) + array.tobytes()
        at = start + array.nbytes
    return b"".join((head, body, crc32c(body).to_bytes(4, "little")))


class Carrier(Protocol):
    """How the arrays of a packet get to the other side."""

    def carry(self, packet: Packet, arrays: Sequence[np.ndarray]) -> None:
        """Sends a packet whose arrays are there; blocks while the other side is behind."""
        ...

    def begin(self, packet: Packet, arrays: Sequence[np.ndarray]) -> bool:
        """Sends what it can of a small packet without waiting; whether that was all."""
        ...

    def close(self) -> None:
        """Gives its memory up, when no `carry` runs any more."""
        ...


class StreamCarrier:
    """All of it in frames."""

    def __init__(self, writer: FrameWriter) -> None:
        self._writer = writer

    def carry(self, packet: Packet, arrays: Sequence[np.ndarray]) -> None:
        """Sends a packet as one frame."""
        self._writer.write(Kind.DATA, packet.tag, packet.layout, arrays)

    def begin(self, packet: Packet, arrays: Sequence[np.ndarray]) -> bool:
        """Begins to send it so."""
        return self._writer.begin(Kind.DATA, packet.tag, packet.layout, arrays)

    def close(self) -> None:
        """There is none."""


class SocketSender:
    """The end of a link that arrays go in at; see `Sender`.

    Args:
        writer: of a socket whose other side has shown that it has the secret.
        limits: of the receiver.
        carrier: how the arrays get there.
        queue_bytes: payloads that may wait.
    """

    def __init__(
        self, writer: FrameWriter, limits: Limits, carrier: Carrier, queue_bytes: int
    ) -> None:
        self.link = writer.link
        self._writer = writer
        self._limits = limits
        self._carrier = carrier
        self._closed = False
        self._outbox = Outbox(
            self.link, queue_bytes, carry=self._carry, begin=self._begin, ended=self._release
        )

    def send(
        self,
        tag: Tag,
        arrays: Sequence[jax.Array | np.ndarray | Outgoing],
        *,
        wait: bool = True,
    ) -> bool:
        """Takes arrays to be sent; see `Sender.send`."""
        return self._outbox.put(pack(tag, arrays, self._limits, self.link), wait=wait)

    def drain(self, timeout_s: float | None = None) -> None:
        """Waits until all that was taken has been handed over to the system."""
        self._outbox.drain(timeout_s)

    def close(self) -> None:
        """Closes the link, drops what was not sent, and wakes whoever waits on either side.

        Values that never come cannot hold it up: then its thread gives the rest back later.
        """
        if self._closed:
            return
        self._closed = True
        if not self._outbox.stop():  # what is under way stays unfinished
            self._writer.shut()
        self._outbox.join(_PATIENCE_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failure: object) -> None:
        self.close()

    def _release(self) -> None:
        self._writer.farewell()
        self._writer.shut()
        self._carrier.close()
        self._writer.close()

    def _carry(self, packet: Packet) -> None:
        if self._writer.finish():  # it was begun, and this was the rest of it
            return
        arrays = self._there(packet)
        if arrays is None:
            self._writer.write(Kind.VOID, packet.tag)
        else:
            self._carrier.carry(packet, arrays)

    def _begin(self, packet: Packet) -> bool:
        arrays = self._there(packet)
        if arrays is None:
            return self._writer.begin(Kind.VOID, packet.tag)
        return self._carrier.begin(packet, arrays)

    def _there(self, packet: Packet) -> list[np.ndarray] | None:
        """The arrays of a packet, None if the computation failed or one was deleted.

        Whoever ran it knows why, and the link is as good as before.
        """
        if self._writer.is_gone():
            raise self._writer.lost()
        try:
            return [host_array(block) for block in packet.blocks]
        except Exception:
            return None
