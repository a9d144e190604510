"""A link between two hosts: frames over TCP, received into memory that a device can take over.

Bytes are neither hidden nor signed after the handshake, so a link belongs on a network that others
cannot write to. It listens on loopback unless it is told another address of this host.
"""

import ipaddress
import mmap
import socket
import time

import numpy as np

from gimlax.errors import SpecError
from gimlax.fabric.accepting import SocketReceiver
from gimlax.fabric.arena import Landing
from gimlax.fabric.failures import FrameError, LinkLost
from gimlax.fabric.frames import Head, Limits
from gimlax.fabric.handshake import answer, new_secret
from gimlax.fabric.seam import Offer
from gimlax.fabric.writing import FrameWriter, SocketSender, StreamCarrier

__all__ = ["connect_tcp", "listen_tcp"]

_KEEPALIVE_S = 5  # idle, between probes, and three of them: a host that vanished is noticed
_PROBES = 3


def listen_tcp(link: str, host: str, capacity_bytes: int, limits: Limits) -> SocketReceiver:
    """A receiver at an address of this host.

    Args:
        link: for messages.
        host: the address, by which the sender's host reaches this one too.
        capacity_bytes: memory kept for payloads; more is taken while arrays hold that.
        limits: of one message.

    Raises:
        SpecError: the address is none that could be offered, or none of this host.
    """
    try:
        wild = ipaddress.ip_address(host).is_unspecified
    except ValueError:
        wild = not host
    if wild:
        raise SpecError(
            f"link {link!r}: host {host!r} stands for every address of this machine; give the one "
            "by which the sender reaches it"
        )
    try:
        listener = socket.create_server((host, 0), family=_family(host), backlog=8)
    except OSError as error:
        raise SpecError(
            f"link {link!r}: host {host!r} cannot be listened on ({error.strerror or error}); "
            "give an address of this machine"
        ) from error
    offer = Offer(
        kind="tcp",
        link=link,
        address=f"{host}:{listener.getsockname()[1]}",
        secret=new_secret(),
        payload_bytes=limits.payload_bytes,
        arrays=limits.arrays,
    )
    return SocketReceiver(offer, listener, _StreamMemory(link, capacity_bytes))


def connect_tcp(offer: Offer, timeout_s: float, queue_bytes: int) -> SocketSender:
    """The sender of an offer.

    Raises:
        LinkError: nobody is there, or not the receiver that made the offer.
    """
    end_s = time.monotonic() + timeout_s
    host, _, port = offer.address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise SpecError(f"link {offer.link!r}: address {offer.address!r} is not host:port")
    try:
        sock = socket.create_connection((host, int(port)), timeout_s)
    except OSError as error:
        raise LinkLost(offer.link, f"nobody listens at {offer.address} ({error})") from error
    try:
        _tune(sock)
        answer(sock, offer.link, offer.secret, end_s)
        sock.settimeout(None)
    except BaseException:
        sock.close()
        raise
    writer = FrameWriter(offer.link, sock)
    return SocketSender(writer, offer.limits, StreamCarrier(writer), queue_bytes)


class _StreamMemory:
    """Payloads come through the socket only."""

    def __init__(self, link: str, capacity_bytes: int) -> None:
        self._link = link
        self._landing = Landing(mmap.mmap(-1, capacity_bytes))

    def greet(self, sock: socket.socket) -> None:
        _tune(sock)

    def allocate(self, num_bytes: int) -> np.ndarray:
        return self._landing.allocate(num_bytes)

    def borrow(self, head: Head) -> np.ndarray:
        raise FrameError(
            self._link, head.sequence, "its payload is said to lie in memory that is not shared"
        )

    def close(self) -> None:
        self._landing = Landing(b"")


def _tune(sock: socket.socket) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _KEEPALIVE_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _KEEPALIVE_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _PROBES)


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET
