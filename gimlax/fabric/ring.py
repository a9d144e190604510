"""A link between two processes of one host: arrays in memory that the receiver's device reads too.

The receiver makes the memory (a memfd, sealed against another size) and hands it to the sender over
the Unix socket of the link, so there is no name in any file system that could outlive the two. The
socket then carries only heads and descriptions, and waking up is the kernel's: reading the socket
on one side, an eventfd for room on the other. A byte for each slot says who has it:

    FREE ──sender writes, sends a loan──▶ SENT ──receiver takes the frame──▶ TAKEN
      ◀────────────────────── the last array over it is gone ──────────────────┘

The copy into the ring is the only one where the receiving client takes host memory over as it is.
What is small goes through the socket, and so does what finds no room while the receiver has taken
all that was sent: then only its arrays hold the memory, and waiting for them could wait for ever.
Payloads in shared memory have no checksum: nothing lies between that could change them.
"""

import contextlib
import fcntl
import mmap
import os
import secrets
import select
import socket
import time
from collections.abc import Sequence

import numpy as np

from gimlax.fabric.accepting import SocketReceiver
from gimlax.fabric.arena import Loans, Ranges, fresh
from gimlax.fabric.failures import FrameError, LinkLost, LinkTimeout
from gimlax.fabric.frames import Head, Kind, Limits
from gimlax.fabric.handshake import answer, new_secret
from gimlax.fabric.packing import Packet
from gimlax.fabric.seam import Offer
from gimlax.fabric.writing import FrameWriter, SocketSender, StreamCarrier

__all__ = ["connect_ring", "listen_ring"]

_NUM_SLOTS = 4096  # a byte each, in the first page
_FREE, _SENT, _TAKEN = 0, 1, 2
_SMALL_BYTES = 16 * 1024
_GREETING = b"ring"


def listen_ring(link: str, capacity_bytes: int, limits: Limits) -> SocketReceiver:
    """A receiver for a sender of this host.

    Args:
        link: for messages.
        capacity_bytes: of the shared memory; pages that were never used take none.
        limits: of one message; one that is larger than the memory goes through the socket.
    """
    name = f"gimlax-{secrets.token_hex(8)}"
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(f"\0{name}")  # abstract: gone with the socket
    listener.listen(8)
    offer = Offer(
        kind="ring",
        link=link,
        address=name,
        secret=new_secret(),
        payload_bytes=limits.payload_bytes,
        arrays=limits.arrays,
    )
    return SocketReceiver(offer, listener, _RingMemory(link, capacity_bytes))


def connect_ring(offer: Offer, timeout_s: float, queue_bytes: int) -> SocketSender:
    """The sender of an offer.

    Raises:
        LinkError: nobody is there, or not the receiver that made the offer.
    """
    end_s = time.monotonic() + timeout_s
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.settimeout(timeout_s)
        try:
            sock.connect(f"\0{offer.address}")
        except OSError as error:
            raise LinkLost(
                offer.link,
                f"nobody listens at {offer.address} on this host and in this network namespace "
                f"({error})",
            ) from error
        answer(sock, offer.link, offer.secret, end_s)
        memory, room = _received(sock, offer.link, end_s)
        sock.settimeout(None)
    except BaseException:
        sock.close()
        raise
    writer = FrameWriter(offer.link, sock)
    return SocketSender(writer, offer.limits, _RingCarrier(writer, sock, memory, room), queue_bytes)


class _Descriptor:
    """A file descriptor that is closed when nobody has it any more."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._close = os.close  # kept, since an array may outlive the modules of the process

    def __del__(self) -> None:
        self._close(self.fd)


class _RingMemory:
    """The receiver's side of the shared memory."""

    def __init__(self, link: str, capacity_bytes: int) -> None:
        self._link = link
        file = _Descriptor(os.memfd_create("gimlax", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING))
        size = _NUM_SLOTS + -(-capacity_bytes // _NUM_SLOTS) * _NUM_SLOTS
        os.ftruncate(file.fd, size)
        fcntl.fcntl(
            file.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
        )
        self._file: _Descriptor | None = file
        self._map: mmap.mmap | None = mmap.mmap(file.fd, size)
        self._room: _Descriptor | None = _Descriptor(
            os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        )
        self._loans: Loans | None = Loans(self._map)

    def greet(self, sock: socket.socket) -> None:
        """Hands memory and eventfd over."""
        assert self._file is not None and self._room is not None
        socket.send_fds(sock, [_GREETING], [self._file.fd, self._room.fd])
        self._file = None

    def allocate(self, num_bytes: int) -> np.ndarray:
        """Memory for what comes through the socket."""
        return fresh(num_bytes)

    def borrow(self, head: Head) -> np.ndarray:
        """The memory of a loan, which is the sender's again when the last array over it is gone."""
        memory, room, loans = self._map, self._room, self._loans
        assert memory is not None and room is not None and loans is not None
        slot, start, end = head.slot, head.offset, head.offset + head.payload_bytes
        if slot >= _NUM_SLOTS or memory[slot] != _SENT or head.payload_bytes == 0:
            raise FrameError(self._link, head.sequence, f"slot {slot} was not sent")
        if start % mmap.PAGESIZE or not _NUM_SLOTS <= start < end <= len(memory):
            raise FrameError(
                self._link,
                head.sequence,
                f"its payload is said to lie from byte {start} to {end} of {len(memory)}",
            )
        memory[slot] = _TAKEN
        tell = os.eventfd_write  # kept, since an array may outlive the modules of the process
        tell(room.fd, 1)

        def ended() -> None:
            memory[slot] = _FREE
            tell(room.fd, 1)

        return loans.lend(start, head.payload_bytes, ended)

    def close(self) -> None:
        """Lets go of all that no array lies over."""
        self._file = self._map = self._room = self._loans = None


class _RingCarrier:
    """The sender's side: copies into the ring and sends where it is; without room, sends all."""

    def __init__(
        self, writer: FrameWriter, sock: socket.socket, memory: mmap.mmap, room: _Descriptor
    ) -> None:
        self._writer = writer
        self._stream = StreamCarrier(writer)
        self._states = memory
        self._bytes = np.frombuffer(memory, np.uint8)
        self._room = room
        self._ranges = Ranges(len(memory) - _NUM_SLOTS)
        self._lent: dict[int, int] = {}  # slot → first byte
        self._poll = select.poll()
        self._poll.register(room.fd, select.POLLIN)
        self._poll.register(sock, select.POLLRDHUP)

    def carry(self, packet: Packet, arrays: Sequence[np.ndarray]) -> None:
        """Sends a packet; blocks while the ring is full of what was not yet received."""
        place = None
        if packet.payload_bytes > _SMALL_BYTES:
            place = self._take(packet.payload_bytes, wait=True)
        if place is None:
            self._stream.carry(packet, arrays)
            return
        self._fill(place, packet, arrays)
        self._writer.write(Kind.LOAN, packet.tag, packet.layout, slot=place[0], offset=place[1])

    def begin(self, packet: Packet, arrays: Sequence[np.ndarray]) -> bool:
        """Begins to send it so; of what finds no room at once nothing is sent."""
        if packet.payload_bytes <= _SMALL_BYTES:
            return self._stream.begin(packet, arrays)
        place = self._take(packet.payload_bytes, wait=False)
        if place is None:
            return False
        self._fill(place, packet, arrays)
        slot, offset = place
        return self._writer.begin(Kind.LOAN, packet.tag, packet.layout, slot=slot, offset=offset)

    def close(self) -> None:
        """Unmaps the ring."""
        del self._states, self._bytes, self._room

    def _fill(self, place: tuple[int, int], packet: Packet, arrays: Sequence[np.ndarray]) -> None:
        slot, offset = place
        for start, array in zip(packet.layout.starts, arrays, strict=True):
            first = offset + start
            _copy(self._bytes[first : first + array.nbytes], array)
        self._states[slot] = _SENT

    def _take(self, num_bytes: int, *, wait: bool) -> tuple[int, int] | None:
        """A free slot and its first byte.

        None if only the receiver's arrays could make room, or it is not to wait for some.
        """
        if num_bytes > self._ranges.num_bytes:
            return None
        while True:
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self._room.fd)  # before looking, so that no change is missed
            for slot in [s for s in self._lent if self._states[s] == _FREE]:
                self._ranges.give_back(self._lent.pop(slot))
            slot = next((s for s in range(_NUM_SLOTS) if s not in self._lent), None)
            if slot is not None and (start := self._ranges.take(num_bytes)) is not None:
                self._lent[slot] = start
                return slot, start + _NUM_SLOTS
            if not wait or all(self._states[s] != _SENT for s in self._lent):
                return None
            if any(fd != self._room.fd for fd, _ in self._poll.poll()):
                raise self._writer.lost()


def _copy(target: np.ndarray, array: np.ndarray) -> None:
    """Copies an array's bytes, strided or not, without the interpreter's lock."""
    if array.dtype.itemsize in (1, 2, 4, 8):  # a plain copy, where extension types have their own
        array = array.view(f"u{array.dtype.itemsize}")
    np.copyto(target.view(array.dtype).reshape(array.shape), array)


def _received(sock: socket.socket, link: str, end_s: float) -> tuple[mmap.mmap, _Descriptor]:
    sock.settimeout(max(end_s - time.monotonic(), 1e-3))
    try:
        said, fds, _, _ = socket.recv_fds(sock, len(_GREETING), 2, socket.MSG_CMSG_CLOEXEC)
    except TimeoutError as error:
        raise LinkTimeout(link, "the receiver did not hand its memory over in time") from error
    owned = [_Descriptor(fd) for fd in fds]
    if said != _GREETING or len(owned) != 2:
        raise LinkLost(link, "the receiver closed the connection before it handed its memory over")
    file, room = owned
    return mmap.mmap(file.fd, os.fstat(file.fd).st_size), room
