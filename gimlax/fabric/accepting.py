"""A listening socket that lets in the one sender that has the secret, and a receiver made of it."""

import contextlib
import select
import socket
import threading
import time
from typing import Protocol, Self

import numpy as np

from gimlax import _jax
from gimlax.fabric.failures import LinkClosed, LinkError, LinkTimeout
from gimlax.fabric.frames import Frame, Head, Kind
from gimlax.fabric.handshake import ask
from gimlax.fabric.reading import FrameReader
from gimlax.fabric.seam import Message, Offer, Part

__all__ = ["Memory", "SocketReceiver"]

_HANDSHAKE_S = 5.0


class Memory(Protocol):
    """Where payloads lie on the receiving side."""

    def greet(self, sock: socket.socket) -> None:
        """Shows the memory to the sender that has just been let in."""
        ...

    def allocate(self, num_bytes: int) -> np.ndarray:
        """Memory for a payload that comes through the socket."""
        ...

    def borrow(self, head: Head) -> np.ndarray:
        """The payload of a loan; raises FrameError if there can be none."""
        ...

    def close(self) -> None:
        """Gives up what no array lies over."""
        ...


class SocketReceiver:
    """The end of a link that arrays come out at; see `Receiver`.

    A thread accepts, until one sender has shown that it has the secret; frames are read by whoever
    calls `receive`.
    """

    def __init__(self, offer: Offer, listener: socket.socket, memory: Memory) -> None:
        self.link = offer.link
        self.offer = offer
        self._listener = listener
        self._memory = memory
        self._socket: socket.socket | None = None
        self._poll = select.poll()
        self._reader = FrameReader(
            self.link, offer.limits, self._fill, memory.allocate, memory.borrow
        )
        self._end_s: float | None = None
        self._timeout_s: float | None = None
        self._closed = False
        self._connected = threading.Event()
        self._one_reader = threading.Lock()
        self._swap = threading.Lock()
        self._thread = threading.Thread(
            target=self._accept, name=f"gimlax {self.link}", daemon=True
        )
        self._thread.start()

    def receive(self, timeout_s: float | None = None) -> Message:
        """The next message; see `Receiver.receive`."""
        with self._one_reader:
            _jax.release_dropped()  # what came before may make room for what comes
            self._timeout_s = timeout_s
            self._end_s = None if timeout_s is None else time.monotonic() + timeout_s
            if not self._connected.wait(timeout_s):
                raise LinkTimeout(self.link, f"no sender connected in {timeout_s} s")
            if self._closed:
                raise self._closed_here()
            try:
                frame = self._reader.read()
            except LinkTimeout:
                raise
            except LinkError as error:
                raise (self._closed_here() if self._closed else error) from error.__cause__
            return self._message(frame)

    def close(self) -> None:
        """Closes the link and wakes whoever waits on either side; what came stays valid."""
        with self._swap:
            self._closed = True
            for sock in (self._listener, self._socket):
                if sock is not None:
                    with contextlib.suppress(OSError):
                        sock.shutdown(socket.SHUT_RDWR)
        self._connected.set()
        self._thread.join()
        with self._one_reader:
            if self._socket is not None:
                self._socket.close()
            self._memory.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failure: object) -> None:
        self.close()

    def _accept(self) -> None:
        with self._listener:
            while not self._closed:
                try:
                    sock, _ = self._listener.accept()
                except OSError:  # closed
                    return
                with self._swap:
                    if self._closed:
                        sock.close()
                        return
                    self._socket = sock
                try:
                    ask(sock, self.link, self.offer.secret, time.monotonic() + _HANDSHAKE_S)
                    self._memory.greet(sock)
                except (LinkError, OSError):  # a stranger; the sender may still come
                    with self._swap:
                        self._socket = None
                        sock.close()
                    continue
                sock.settimeout(None)
                self._poll.register(sock, select.POLLIN)
                self._connected.set()
                return

    def _fill(self, view: memoryview) -> int:
        sock = self._socket
        assert sock is not None
        if self._end_s is not None:
            rest_ms = max(self._end_s - time.monotonic(), 0.0) * 1e3
            if not self._poll.poll(rest_ms):
                raise LinkTimeout(self.link, f"no message came in {self._timeout_s} s")
        try:
            return sock.recv_into(view)
        except OSError:  # reset: as good as the end of the stream
            return 0

    def _message(self, frame: Frame) -> Message:
        head, payload = frame.head, frame.payload
        parts: list[Part] = []
        if payload is not None:
            payload.flags.writeable = False
            layout = frame.layout
            for start, block in zip(layout.starts, layout.described, strict=True):
                data = np.ndarray(block.shape, block.dtype, payload, start)
                parts.append(Part(block.index, block.whole, block.start, data))
        kind = head.kind
        return Message(head.tag, head.sequence, tuple(parts), kind is Kind.LOAN, kind is Kind.VOID)

    def _closed_here(self) -> LinkClosed:
        return LinkClosed(self.link, "it was closed at this end")
