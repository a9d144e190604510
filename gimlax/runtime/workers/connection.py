"""A stream socket that carries messages, after both sides have proved that they know a secret.

Unix sockets in the abstract namespace serve on one host (nothing is left in the file system when a
process dies), TCP between hosts. A secret never travels: each side signs what the other made up.
"""

import contextlib
import hmac
import itertools
import os
import secrets
import socket
import threading
from collections import deque

import numpy as np

from gimlax.errors import BackendError
from gimlax.runtime.workers.wire import PREFIX_BYTES, Message, decode, encode, read_prefix

__all__ = ["Address", "Connection", "accept", "connect", "listen"]

Address = tuple[str, str, int]  # ('unix', name, 0) or ('tcp', host, port)

_NONCE_BYTES = 32
_BUFFER_BYTES = 1 << 16
_ALIGNMENT = 64
_SMALL_BYTES = 1 << 10
_SLAB_BYTES = 1 << 14
_MOST_BUFFERS = 512  # of one sendmsg; the system takes 1,024


def listen(host: str = "") -> tuple[socket.socket, Address]:
    """A listening socket: on this host only, or where `host` (an address of it) can be reached."""
    if not host:
        name = f"gimlax-{os.getpid()}-{secrets.token_hex(8)}"
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(f"\0{name}")
        listener.listen()
        return listener, ("unix", name, 0)
    family = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0][0]
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.bind((host, 0))
    listener.listen()
    return listener, ("tcp", host, listener.getsockname()[1])


def connect(address: Address, secret: bytes, *, timeout_s: float) -> "Connection":
    """Calls the process that listens at an address.

    Raises:
        BackendError: it does not answer, or does not know the secret.
    """
    kind, name, port = address
    try:
        if kind == "unix":
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            sock.settimeout(timeout_s)
            sock.connect(f"\0{name}")
        else:
            sock = socket.create_connection((name, port), timeout=timeout_s)
        try:
            theirs = _receive(sock, _NONCE_BYTES)
            mine = secrets.token_bytes(_NONCE_BYTES)
            sock.sendall(_sign(secret, b"caller", theirs) + mine)
            _check(_receive(sock, _NONCE_BYTES), _sign(secret, b"callee", mine))
        except BaseException:
            sock.close()
            raise
    except OSError as error:
        raise BackendError(
            f"nobody answers at {name}{f':{port}' if port else ''}: {error}"
        ) from error
    return Connection(sock)


def accept(listener: socket.socket, secret: bytes, *, timeout_s: float) -> "Connection | None":
    """The next caller that knows the secret; None if one did not, or if it fell silent.

    Raises:
        OSError: the listener is closed.
    """
    sock, _ = listener.accept()
    try:
        sock.settimeout(timeout_s)
        mine = secrets.token_bytes(_NONCE_BYTES)
        sock.sendall(mine)
        answer = _receive(sock, 2 * _NONCE_BYTES)
        _check(answer[:_NONCE_BYTES], _sign(secret, b"caller", mine))
        sock.sendall(_sign(secret, b"callee", answer[_NONCE_BYTES:]))
    except (OSError, BackendError):
        sock.close()
        return None
    return Connection(sock)


def _sign(secret: bytes, who: bytes, nonce: bytes) -> bytes:
    return hmac.digest(secret, who + nonce, "sha256")


def _check(found: bytes, expected: bytes) -> None:
    if not hmac.compare_digest(found, expected):
        raise BackendError("the other side does not know the secret of this session")


def _receive(sock: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = sock.recv(count - len(data))
        if not more:
            raise ConnectionError("the other side hung up")
        data += more
    return data


def _aligned(count: int) -> np.ndarray:
    spare = np.empty(count + _ALIGNMENT, np.uint8)
    start = -spare.ctypes.data % _ALIGNMENT
    return spare[start : start + count]


class Connection:
    """Messages both ways. Any thread may send, one may receive."""

    def __init__(self, sock: socket.socket) -> None:
        sock.settimeout(None)
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._sock = sock
        self._lock = threading.Lock()
        self._more = threading.Condition(self._lock)
        self._waiting: deque[memoryview] = deque()  # what the system would not take at once
        self._thread: threading.Thread | None = None
        self._ended = False
        self._buffer = bytearray(_BUFFER_BYTES)
        self._view = memoryview(self._buffer)
        self._first = self._last = 0  # what of the buffer is received and not read
        self._slab, self._slab_at = np.empty(0, np.uint8), 0

    def send(self, message: Message) -> None:
        """Takes a message to be sent, and never waits for the other side to read.

        What the system does not take at once is sent by a thread: two sides that send while neither
        reads would else wait for each other. The arrays of a message must not change afterwards.

        Raises:
            OSError: the other side is gone.
        """
        buffers = deque(memoryview(buffer) for buffer in encode(message))
        with self._lock:
            if self._ended:
                raise ConnectionError("the connection has ended")
            if not self._waiting:
                with contextlib.suppress(BlockingIOError):
                    while buffers:
                        self._send_some(buffers, socket.MSG_DONTWAIT)
            if buffers:
                self._waiting.extend(buffers)
                if self._thread is None:
                    self._thread = threading.Thread(
                        target=self._send_rest, name="gimlax send", daemon=True
                    )
                    self._thread.start()
                self._more.notify()

    def _send_rest(self) -> None:
        while True:
            with self._lock:
                while not self._waiting and not self._ended:
                    self._more.wait()
                if self._ended:
                    return
                batch = deque(itertools.islice(self._waiting, _MOST_BUFFERS))
            count = len(batch)
            try:
                self._send_some(batch, 0)
            except OSError:
                self.close()
                return
            with self._lock:
                if self._ended:
                    return
                for _ in range(count):
                    self._waiting.popleft()
                self._waiting.extendleft(reversed(batch))

    def _send_some(self, buffers: "deque[memoryview]", flags: int) -> None:
        """Sends some of the first buffers and takes away what was sent."""
        batch = [buffers[i] for i in range(min(len(buffers), _MOST_BUFFERS))]
        sent = self._sock.sendmsg(batch, (), flags)
        while buffers and sent >= len(buffers[0]):
            sent -= len(buffers.popleft())
        if sent:
            buffers[0] = buffers[0][sent:]

    def receive(self) -> Message | None:
        """The next message; None when the other side has hung up.

        Raises:
            BackendError: what comes is no message.
        """
        try:
            self._need(PREFIX_BYTES)
            header_bytes, payload_bytes, numbers = read_prefix(self._take(PREFIX_BYTES))
            header = self._bytes(header_bytes)
            payload = self._payload(payload_bytes)
        except OSError:
            return None
        return decode(header, payload, numbers)

    def close(self) -> None:
        """Hangs up; who receives, here or there, is told."""
        with self._lock:
            self._ended = True
            self._waiting.clear()
            self._more.notify_all()
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()

    def _need(self, count: int) -> None:
        """Receives until `count` bytes, no more than the buffer holds, can be taken."""
        if self._last - self._first >= count:
            return
        if len(self._buffer) - self._first < count:
            rest = bytes(self._view[self._first : self._last])
            self._view[: len(rest)] = rest
            self._first, self._last = 0, len(rest)
        while self._last - self._first < count:
            self._last += self._some(self._view[self._last :])

    def _take(self, count: int) -> memoryview:
        """The next bytes of the buffer, good until the next call."""
        found = self._view[self._first : self._first + count]
        self._first += count
        if self._first == self._last:
            self._first = self._last = 0
        return found

    def _bytes(self, count: int) -> bytes:
        if count <= len(self._buffer):
            self._need(count)
            return bytes(self._take(count))
        found = bytearray(count)
        self._fill(memoryview(found))
        return bytes(found)

    def _payload(self, count: int) -> np.ndarray:
        """Bytes at an aligned address; small ones share memory, kept while one of them is."""
        if count <= _SMALL_BYTES:
            if self._slab_at + count > len(self._slab):
                self._slab, self._slab_at = _aligned(_SLAB_BYTES), 0
            payload = self._slab[self._slab_at : self._slab_at + count]
            self._slab_at += count + -count % _ALIGNMENT
            if count:
                self._fill(memoryview(payload.data))
            return payload
        payload = _aligned(count)
        self._fill(memoryview(payload.data))
        return payload

    def _fill(self, target: memoryview) -> None:
        done = min(len(target), self._last - self._first)
        if done:
            target[:done] = self._take(done)
        while done < len(target):
            done += self._some(target[done:])

    def _some(self, target: memoryview) -> int:
        count = self._sock.recv_into(target)
        if count == 0:
            raise ConnectionError("the other side hung up")
        return count
