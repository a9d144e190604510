"""Links by kind: `listen` makes the receiver, `connect` the sender of its offer."""

from gimlax.errors import SpecError
from gimlax.fabric.frames import Limits
from gimlax.fabric.ring import connect_ring, listen_ring
from gimlax.fabric.seam import Offer, Receiver, Sender
from gimlax.fabric.tcp import connect_tcp, listen_tcp

__all__ = ["LOOPBACK", "connect", "listen"]

LOOPBACK = "127.0.0.1"
_CAPACITY_BYTES = 2**28
_QUEUE_BYTES = 2**28
_TIMEOUT_S = 10.0


def listen(
    kind: str,
    link: str,
    *,
    host: str = LOOPBACK,
    capacity_bytes: int = _CAPACITY_BYTES,
    limits: Limits | None = None,
) -> Receiver:
    """The receiving end of a new link; its `offer` goes to whoever shall send.

    Args:
        kind: 'ring' for two processes of one host, 'tcp' for two hosts.
        link: its name in messages, such as 'tpu -> gpu'.
        host: for 'tcp', the address of this host by which the other one reaches it.
        capacity_bytes: memory that payloads take turns in. Only what was used takes any.
        limits: of one message.

    Raises:
        SpecError: there is no such kind, or the host cannot be listened on.
    """
    limits = Limits() if limits is None else limits
    if kind == "ring":
        if host != LOOPBACK:
            raise SpecError(f"link {link!r}: a ring is inside one host; host {host!r} is for 'tcp'")
        return listen_ring(link, capacity_bytes, limits)
    if kind == "tcp":
        return listen_tcp(link, host, capacity_bytes, limits)
    raise SpecError(f"link {link!r}: kind is {kind!r}; give 'ring' or 'tcp'")


def connect(
    offer: Offer, *, timeout_s: float = _TIMEOUT_S, queue_bytes: int = _QUEUE_BYTES
) -> Sender:
    """The sending end of a link.

    Args:
        offer: of its receiver.
        timeout_s: for the handshake.
        queue_bytes: payloads that may wait at this end.

    Raises:
        LinkError: nobody is there, or not the receiver that made the offer.
    """
    make = connect_ring if offer.kind == "ring" else connect_tcp
    return make(offer, timeout_s, queue_bytes)
