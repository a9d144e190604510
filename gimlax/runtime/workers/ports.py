"""The ends in this process of all links of a deployment: made, mended, sent over, closed."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax

from gimlax import fabric
from gimlax.errors import BackendError
from gimlax.fabric.frames import ALIGNMENT_BYTES, MOST_ARRAYS
from gimlax.fabric.linking import LOOPBACK
from gimlax.planning.carriers import TCP
from gimlax.runtime.workers.links import Crossing, End, Gathering, Inlet, Outlet
from gimlax.runtime.workers.orders import Orders

__all__ = ["PLACES", "Ports", "needed"]

PLACES = 2**16  # transfers of one link in a phase: a tag says which of all phases

Config = tuple[tuple[str, Any], ...]

_CONNECT_S = 10.0


class Ports:
    """Where links to and from other processes end here."""

    def __init__(
        self,
        orders: Orders,
        meshes: Mapping[str, jax.sharding.Mesh],
        config: Config,
        member: int,
        tell: Callable[..., None],
        arrive: Callable[[str, fabric.Tag, list[jax.Array]], None],
        failed: Callable[[fabric.Tag, Exception], None],
    ) -> None:
        """Makes none yet.

        Args:
            orders: say what crosses.
            meshes: live ones of this process, by name.
            config: JAX's configuration of the trace.
            member: which process of its worker this is.
            tell: sends a message (kind, fields) to the controller.
            arrive: is given the track, the tag and the values of what came in.
            failed: is told when what came in could not be put on its mesh.
        """
        self._meshes = meshes
        self._config = config
        self._member = member
        self._tell = tell
        self._arrive = arrive
        self._failed = failed
        owners = dict(orders.owners)
        ends = {name: End(axes=axes, owners=owners[name]) for name, axes in orders.axes}
        self._crossings: dict[str, dict[int, Crossing]] = {}
        for index, phase in enumerate(orders.phases):
            for order in phase.crossings:
                crossing = Crossing(order, ends[order.source], ends[order.target])
                self._crossings.setdefault(order.track, {})[PLACES * index + order.place] = crossing
        self._gatherings = {
            track: Gathering({number: of.senders(member) for number, of in crossings.items()})
            for track, crossings in self._crossings.items()
            if track.partition(" -> ")[2] in meshes
        }
        self._outlets: dict[str, Outlet] = {}
        self._inlets: dict[tuple[str, int], Inlet] = {}  # and which process sends

    def offer(self, track: str, sender: int, kind: str, host: str, made: int) -> str:
        """Makes the receiving end of a link, or a new one for one that broke; its offer.

        `sender` says which process of its worker will send.
        """
        if (old := self._inlets.pop((track, sender), None)) is not None:
            old.close()
        at = host if kind == TCP and host else LOOPBACK
        limits = needed(self._crossings[track].values(), self._member)
        receiver = fabric.listen(kind, track, host=at, limits=limits)
        gathering = self._gatherings[track]
        about = {"track": track, "from": sender, "to": self._member, "made": made}
        self._inlets[track, sender] = Inlet(
            receiver,
            self._meshes[track.partition(" -> ")[2]],
            self._crossings[track],
            lambda tag, parts: gathering.take(sender, tag, parts),
            self._config,
            lambda tag, arrays: self._arrive(track, tag, arrays),
            self._failed,
            lambda: self._tell("broken", about),
        )
        return receiver.offer.to_json()

    def connect(self, track: str, to: int, offer: str, made: int) -> None:
        """Makes the sending end of a link to a process, or a new one for one that broke."""
        if track not in self._outlets:
            about = {"track": track, "from": self._member}
            self._outlets[track] = Outlet(
                self._meshes[track.partition(" -> ")[0]],
                self._member,
                lambda to, made: self._tell("broken", {**about, "to": to, "made": made}),
            )
        outlet = self._outlets[track]
        outlet.connect(to, fabric.Offer.from_json(offer), made, timeout_s=_CONNECT_S)

    def send(self, track: str, tag: fabric.Tag, arrays: Sequence[jax.Array], *, wait: bool) -> bool:
        """Takes values to be sent; see `Outlet.send`."""
        crossing = self._crossings[track][tag.transfer]
        return self._outlets[track].send(tag, crossing, arrays, wait=wait)

    def send_again(self, track: str, to: int, number: int) -> None:
        """Sends once more what this pass sent over a link, if it is still kept."""
        if self._outlets[track].send_again(to, number):
            about = {"track": track, "from": self._member, "to": to}
            self._tell("resent", {**about, "pass": number})

    def ask_for(self, track: str, number: int) -> None:
        """Asks for what should have come over a link for this pass."""
        self._tell("missing", {"track": track, "to": self._member, "pass": number})

    def forget(self, numbers: Sequence[int]) -> None:
        """Lets go of what is kept for these passes."""
        for keeper in (*self._outlets.values(), *self._gatherings.values()):
            keeper.forget(numbers)

    def forget_all(self) -> None:
        """Lets go of all that is kept."""
        for keeper in (*self._outlets.values(), *self._gatherings.values()):
            keeper.forget_all()

    def close(self) -> None:
        """Ends the links."""
        for link in (*self._inlets.values(), *self._outlets.values()):
            link.close()


def needed(crossings: Iterable[Crossing], to: int) -> fabric.Limits:
    """What a link has to take in one message for these; no less than any link takes.

    Args:
        crossings: those of the link.
        to: the process of the target that it goes to.

    Raises:
        BackendError: a crossing has more blocks than a message can.
    """
    usual = fabric.Limits()
    payload_bytes, arrays = usual.payload_bytes, usual.arrays
    for crossing in crossings:
        sizes = [
            math.prod(block.shape) * piece.dtype.itemsize + ALIGNMENT_BYTES
            for value in crossing.values
            for piece in value.pieces
            for block in piece.blocks[to]
        ]
        if len(sizes) > MOST_ARRAYS:
            raise BackendError(
                f"{len(crossing.values)} values that cross at once are cut into {len(sizes)} blocks"
                f" by the devices of both meshes, and a message has at most {MOST_ARRAYS}; plan for"
                " smaller meshes, or with another cut"
            )
        payload_bytes, arrays = max(payload_bytes, sum(sizes)), max(arrays, len(sizes))
    return fabric.Limits(payload_bytes=payload_bytes, arrays=arrays)
