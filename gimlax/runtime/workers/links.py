"""Links between the workers of a deployment: values go out of one, come in at another, and again.

Each value that crosses is routed block by block from the shards of one mesh to those of the other.
Of a worker of several processes each sends what it has, and each is sent what it has to have.
What goes narrowed is narrowed on the mesh that it leaves and widened on the one that it comes to.
What was sent is kept until its pass is over, so a link that broke, or a message that never came, is
made good by sending it again; what comes twice is dropped by whoever receives it.
"""

import functools
import itertools
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from gimlax import _jax, fabric
from gimlax.partition import partition_spec
from gimlax.runtime.workers.orders import CrossingOrder, ValueOrder

__all__ = ["Crossing", "End", "Gathering", "Inlet", "Outlet"]

Config = tuple[tuple[str, Any], ...]
Axes = Sequence[tuple[str, int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Piece:
    """An array that crosses, and how its blocks go to each process of the target's worker."""

    shape: tuple[int, ...]
    dtype: Any
    blocks: Mapping[int, tuple[fabric.Block, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Value:
    """A value that crosses, as itself in one piece or narrowed.

    `key` names the generator of a typed PRNG key, which goes as data.
    """

    pieces: tuple[_Piece, ...]
    source: jax.sharding.PartitionSpec
    target: jax.sharding.PartitionSpec
    key: str
    narrowing: str

    @classmethod
    def of(cls, order: ValueOrder, source: "End", target: "End") -> Self:
        from_spec, to_spec = map(partition_spec, (order.source_spec, order.target_spec))
        whole = ((order.shape, order.dtype),)
        return cls(
            pieces=tuple(
                _Piece(
                    shape=shape,
                    dtype=jnp.dtype(dtype),
                    blocks=_route(
                        shape,
                        fabric.shards(shape, source.axes, from_spec),
                        fabric.shards(shape, target.axes, to_spec),
                        target.owners,
                    ),
                )
                for shape, dtype in (
                    fabric.forms(order.shape, order.narrowing) if order.narrowing else whole
                )
            ),
            source=from_spec,
            target=to_spec,
            key=order.key,
            narrowing=order.narrowing,
        )

    def travelling(self, array: jax.Array, mesh: jax.sharding.Mesh) -> Sequence[jax.Array]:
        """What of it is cut into blocks on the mesh that it comes from."""
        if self.narrowing:
            return _narrow(self.narrowing, NamedSharding(mesh, self.source))(array)
        return (jax.random.key_data(array) if self.key else array,)

    def arrived(self, arrays: Sequence[jax.Array], sharding: NamedSharding) -> jax.Array:
        """The value again, on the mesh that it came to."""
        if self.narrowing:
            return _widen(self.narrowing, sharding)(arrays)
        return jax.random.wrap_key_data(arrays[0], impl=self.key) if self.key else arrays[0]


@functools.lru_cache(maxsize=1024)
def _narrow(to: str, sharding: NamedSharding) -> Callable[[jax.Array], Sequence[jax.Array]]:
    """`fabric.narrow`, whose scales lie as the array does: no block is cut."""
    return jax.jit(functools.partial(fabric.narrow, to=to), out_shardings=sharding)


@functools.lru_cache(maxsize=1024)
def _widen(to: str, sharding: NamedSharding) -> Callable[[Sequence[jax.Array]], jax.Array]:
    return jax.jit(functools.partial(fabric.widen, to=to), out_shardings=sharding)


def _route(
    shape: Sequence[int],
    source: Mapping[int, Any],
    target: Mapping[int, Any],
    owners: Sequence[int],
) -> dict[int, tuple[fabric.Block, ...]]:
    """The blocks for each process of the target."""
    return {
        owner: fabric.route(
            shape, source, {number: of for number, of in target.items() if owners[number] == owner}
        )
        for owner in dict.fromkeys(owners)
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """A mesh at an end of a link: its axes, and which process of its worker has each device."""

    axes: Axes
    owners: Sequence[int]


class Crossing:
    """One transfer of a phase: how each of its values goes from mesh to mesh."""

    def __init__(self, order: CrossingOrder, source: "End", target: "End") -> None:
        self.values = [_Value.of(value, source, target) for value in order.values]
        # By process of the target, those of the source that send it something: one at least, so
        # that values without elements come too.
        self._senders = {
            to: frozenset(
                source.owners[block.source]
                for value in self.values
                for piece in value.pieces
                for block in piece.blocks[to]
            )
            or frozenset((source.owners[0],))
            for to in dict.fromkeys(target.owners)
        }

    def senders(self, to: int) -> frozenset[int]:
        """The processes of the source that send this process of the target something."""
        return self._senders[to]

    def pack(
        self, arrays: Sequence[jax.Array], mesh: jax.sharding.Mesh, member: int
    ) -> dict[int, list[fabric.Outgoing]]:
        """The blocks that this process, a member of its worker, sends, by process of the target."""
        devices = dict(enumerate(mesh.devices.flat))
        numbers = itertools.count()
        packed: dict[int, list[fabric.Outgoing]] = {
            to: [] for to, senders in self._senders.items() if member in senders
        }
        for array, value in zip(arrays, self.values, strict=True):
            for data, piece in zip(value.travelling(array, mesh), value.pieces, strict=True):
                number = next(numbers)
                for owner, blocks in piece.blocks.items():
                    if owner in packed:
                        packed[owner] += fabric.cut(data, number, blocks, devices)
        return packed

    def lie(self, mesh: jax.sharding.Mesh) -> list[NamedSharding]:
        """How each value lies on the mesh that it comes to."""
        return [NamedSharding(mesh, value.target) for value in self.values]

    def unpack(
        self, parts: Sequence[fabric.Part], lying: Sequence[NamedSharding]
    ) -> list[jax.Array]:
        """The arrays of the blocks that came, where `lie` says."""
        by_number: dict[int, list[fabric.Part]] = {}
        for part in parts:
            by_number.setdefault(part.index, []).append(part)
        numbers = itertools.count()

        def whole(piece: _Piece, sharding: NamedSharding) -> jax.Array:
            mine = by_number.get(next(numbers), ())
            # An array that lies over memory of the link is an input of stages, never donated.
            return fabric.assemble(mine, piece.shape, piece.dtype, sharding).array

        return [
            value.arrived([whole(piece, sharding) for piece in value.pieces], sharding)
            for value, sharding in zip(self.values, lying, strict=True)
        ]


class Outlet:
    """Where values of one link go; keeps them until they are known to have come."""

    def __init__(
        self, mesh: jax.sharding.Mesh, member: int, broken: Callable[[int, int], None]
    ) -> None:
        """Sends nothing yet.

        Args:
            mesh: that values leave.
            member: which process of its worker this is.
            broken: is told when the link to a process that was made as this number fails; it is to
                bring another.
        """
        self._mesh = mesh
        self._member = member
        self._broken = broken
        self._senders: dict[int, tuple[fabric.Sender, int]] = {}
        self._lock = threading.Lock()
        self._kept: dict[int, list[tuple[fabric.Tag, dict[int, list[fabric.Outgoing]]]]] = {}

    def connect(self, to: int, offer: fabric.Offer, made: int, *, timeout_s: float) -> None:
        """Makes the link, or a new one for one that broke, and sends again what is kept."""
        sender = fabric.connect(offer, timeout_s=timeout_s)
        with self._lock:
            old, _ = self._senders.get(to, (None, 0))
            self._senders[to] = sender, made
            again = [item for number in sorted(self._kept) for item in self._kept[number]]
        if old is not None:
            old.close()
        self._put(to, again)

    def send(
        self, tag: fabric.Tag, crossing: Crossing, arrays: Sequence[jax.Array], *, wait: bool = True
    ) -> bool:
        """Takes values to be sent; waits while too many bytes are on their way.

        Without `wait` it returns False instead, and has taken nothing; so it does of what goes to
        several processes.
        """
        item = tag, crossing.pack(arrays, self._mesh, self._member)
        if not wait and len(item[1]) > 1:
            return False
        with self._lock:
            self._kept.setdefault(tag.pass_number, []).append(item)
        if all([self._put(to, [item], wait=wait) for to in item[1]]):  # noqa: C419
            return True
        with self._lock:
            kept = self._kept.get(tag.pass_number)
            if kept and kept[-1] is item:  # else it is forgotten already
                kept.pop()
        return False

    def send_again(self, to: int, pass_number: int) -> bool:
        """Sends once more what was sent of a pass to a process; whether there was anything."""
        with self._lock:
            again = list(self._kept.get(pass_number, ()))
        return self._put(to, again)

    def forget(self, numbers: Sequence[int]) -> None:
        """Lets go of what was kept for these passes."""
        with self._lock:
            for number in numbers:
                self._kept.pop(number, None)

    def forget_all(self) -> None:
        """Lets go of everything that was kept."""
        with self._lock:
            self._kept.clear()

    def close(self) -> None:
        """Ends the link."""
        for sender, _ in self._senders.values():
            sender.close()

    def _put(
        self,
        to: int,
        items: Sequence[tuple[fabric.Tag, dict[int, list[fabric.Outgoing]]]],
        *,
        wait: bool = True,
    ) -> bool:
        """Whether any of it was for this process, and was taken."""
        sender, made = self._senders[to]  # every link is made before the first pass
        mine = [(tag, packed[to]) for tag, packed in items if to in packed]
        try:
            for tag, packed in mine:
                if not sender.send(tag, packed, wait=wait):
                    return False
        except fabric.LinkError:
            if self._senders[to] == (sender, made):
                self._broken(to, made)
        return bool(mine)


class Gathering:
    """What processes of one worker have sent of the transfers of a link, until all have."""

    def __init__(self, senders: Mapping[int, frozenset[int]]) -> None:
        """`senders` are those that send this process any, by the transfer's number in a tag."""
        self._senders = senders
        self._lock = threading.Lock()
        self._came: dict[fabric.Tag, dict[int, Sequence[fabric.Part]]] = {}

    def take(
        self, sender: int, tag: fabric.Tag, parts: Sequence[fabric.Part]
    ) -> Sequence[fabric.Part] | None:
        """All parts of a transfer, None while there are more to come."""
        wanted = self._senders[tag.transfer]
        if len(wanted) == 1:
            return parts
        with self._lock:
            came = self._came.setdefault(tag, {})
            came[sender] = parts
            if len(came) < len(wanted):
                return None
            del self._came[tag]
        return [part for of in came.values() for part in of]

    def forget(self, numbers: Sequence[int]) -> None:
        """Lets go of what has come of these passes."""
        with self._lock:
            for tag in [tag for tag in self._came if tag.pass_number in numbers]:
                del self._came[tag]

    def forget_all(self) -> None:
        """Lets go of everything that has come."""
        with self._lock:
            self._came.clear()


class Inlet:
    """Where values of one link come in from one process: a thread that puts them on their mesh."""

    def __init__(
        self,
        receiver: fabric.Receiver,
        mesh: jax.sharding.Mesh,
        crossings: Mapping[int, Crossing],
        gather: Callable[[fabric.Tag, Sequence[fabric.Part]], Sequence[fabric.Part] | None],
        config: Config,
        arrive: Callable[[fabric.Tag, list[jax.Array]], None],
        failed: Callable[[fabric.Tag, Exception], None],
        broken: Callable[[], None],
    ) -> None:
        """Begins to receive.

        Args:
            receiver: of the link.
            mesh: of this process.
            crossings: by the transfer's number in a tag.
            gather: gives all parts of a transfer once they have come, from others too.
            config: JAX's configuration of the trace.
            arrive: is given what came.
            failed: is told when what came could not be put on the mesh.
            broken: is told when the link fails; it is to bring a new one.
        """
        self._receiver = receiver
        self._crossings = {
            number: (crossing, crossing.lie(mesh)) for number, crossing in crossings.items()
        }
        self._gather = gather
        self._config = config
        self._arrive = arrive
        self._failed = failed
        self._broken = broken
        self._closed = False
        self._thread = threading.Thread(
            target=self._receive, name=f"gimlax {receiver.link}", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Ends the link and its thread."""
        self._closed = True
        self._receiver.close()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _take(self, message: fabric.Message) -> None:
        try:
            crossing, lying = self._crossings[message.tag.transfer]
            if (parts := self._gather(message.tag, message.parts)) is not None:
                self._arrive(message.tag, crossing.unpack(parts, lying))
        except Exception as error:  # the device has no room; the thread must live on
            self._failed(message.tag, error)

    def _receive(self) -> None:
        with _jax.using_config(self._config):
            while not self._closed:
                try:
                    message = self._receiver.receive()
                except fabric.LinkError:
                    break
                if not message.void:  # else the worker that sends tells why there is nothing
                    self._take(message)
                del message
        if not self._closed:
            self._receiver.close()
            self._broken()
