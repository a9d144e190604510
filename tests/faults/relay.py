"""A relay between workers that does harm by seed: it knows frames, and spoils those it is told to.

It stands where a sender would reach the receiver of its link. What it did is counted when it is
done, so a test can tell a fault that happened from one that was only meant to.
"""

import contextlib
import dataclasses
import random
import socket
import threading
from collections import Counter

from gimlax.fabric.frames import _CRC, _HEAD, HEAD_BYTES, Kind

LINK_FAULTS = ("drop", "duplicate", "reorder", "corrupt", "delay", "cut", "swallow")

_GREETING_BYTES = 64  # of a sender, before its first frame
_DELAY_S = 0.3


class Relay:
    """Passes on the links of all workers that are sent by way of it."""

    def __init__(self, seed):
        self.done = Counter()
        self._random = random.Random(seed)
        self._armed = []
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._sockets = []
        self._ending = threading.Event()

    def detour(self, track, offer):
        """The offer of a listener of this relay, which passes on to the receiver."""
        listener = socket.create_server(("127.0.0.1", 0))
        self._sockets.append(listener)
        host, _, port = offer.address.rpartition(":")
        self._thread(self._accept, listener, (host, int(port)))
        return dataclasses.replace(offer, address=f"127.0.0.1:{listener.getsockname()[1]}")

    def arm(self, fault):
        """Does this to the next frame that comes, of whatever link."""
        with self._lock:
            self._armed.append(fault)

    def disarm(self):
        """Forgets what could not be done; how many that were."""
        with self._lock:
            left, self._armed = len(self._armed), []
            return left

    def close(self):
        self._ending.set()
        for sock in self._sockets:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()

    def _thread(self, target, *args):
        threading.Thread(target=target, args=args, name="relay", daemon=True).start()

    def _accept(self, listener, address):
        with contextlib.suppress(OSError):
            sender, _ = listener.accept()
            receiver = socket.create_connection(address)
            self._sockets += [sender, receiver]
            for sock in (sender, receiver):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._thread(self._pass_back, receiver, sender)
            try:
                receiver.sendall(_exactly(sender, _GREETING_BYTES))
                self._pass_frames(sender, receiver)
            finally:
                for sock in (sender, receiver):
                    with contextlib.suppress(OSError):
                        sock.shutdown(socket.SHUT_RDWR)

    def _pass_back(self, receiver, sender):
        with contextlib.suppress(OSError):
            while data := receiver.recv(1 << 16):
                sender.sendall(data)
        with contextlib.suppress(OSError):
            sender.shutdown(socket.SHUT_RDWR)

    def _pass_frames(self, sender, receiver):
        held = None
        while True:
            frame = _read_frame(sender)
            fault = self._take()
            if fault == "drop":
                continue
            if fault == "corrupt":
                place = self._random.randrange(len(frame))
                frame[place] ^= 1 << self._random.randrange(8)
            elif fault == "delay":
                self._ending.wait(_DELAY_S)
            elif fault == "cut":
                receiver.sendall(frame[: len(frame) // 2])
                return
            elif fault == "swallow":  # the link stays, and nothing comes through it any more
                while sender.recv(1 << 16):
                    pass
                return
            elif fault == "reorder":
                held = frame
                continue
            receiver.sendall(frame)
            if fault == "duplicate":
                receiver.sendall(frame)
            if held is not None:
                receiver.sendall(held)
                held = None

    def _take(self):
        with self._lock:
            if not self._armed:
                return None
            fault = self._armed.pop(0)
            self.done[fault] += 1
            return fault


def _read_frame(sock):
    head = _exactly(sock, HEAD_BYTES)
    _, _, kind, arrays, _, _, _, _, described, payload, _, _ = _HEAD.unpack(head[: _HEAD.size])
    rest = described + _CRC.size if arrays else 0
    if kind == Kind.DATA:
        rest += payload + _CRC.size
    return bytearray(head + _exactly(sock, rest))


def _exactly(sock, count):
    data = bytearray()
    while len(data) < count:
        more = sock.recv(count - len(data))
        if not more:
            raise ConnectionError("the other side hung up")
        data += more
    return bytes(data)
