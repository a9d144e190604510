"""Links between the workers of a deployment: values go out of one, come in at another, and again.

Each value that crosses is routed block by block from the shards of one mesh to those of the other.
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

__all__ = ["Crossing", "Inlet", "Outlet"]

Config = tuple[tuple[str, Any], ...]
Axes = Sequence[tuple[str, int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Piece:
    """An array that crosses, and how its blocks go."""

    shape: tuple[int, ...]
    dtype: Any
    blocks: tuple[fabric.Block, ...]


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
    def of(cls, order: ValueOrder, source_axes: Axes, target_axes: Axes) -> Self:
        source, target = map(partition_spec, (order.source_spec, order.target_spec))
        whole = ((order.shape, order.dtype),)
        return cls(
            pieces=tuple(
                _Piece(
                    shape=shape,
                    dtype=jnp.dtype(dtype),
                    blocks=fabric.route(
                        shape,
                        fabric.shards(shape, source_axes, source),
                        fabric.shards(shape, target_axes, target),
                    ),
                )
                for shape, dtype in (
                    fabric.forms(order.shape, order.narrowing) if order.narrowing else whole
                )
            ),
            source=source,
            target=target,
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


class Crossing:
    """One transfer of a phase: how each of its values goes from mesh to mesh."""

    def __init__(self, order: CrossingOrder, source_axes: Axes, target_axes: Axes) -> None:
        self.values = [_Value.of(value, source_axes, target_axes) for value in order.values]

    def pack(self, arrays: Sequence[jax.Array], mesh: jax.sharding.Mesh) -> list[fabric.Outgoing]:
        """The blocks that this process sends of the arrays."""
        devices = dict(enumerate(mesh.devices.flat))
        numbers = itertools.count()
        return [
            outgoing
            for array, value in zip(arrays, self.values, strict=True)
            for data, piece in zip(value.travelling(array, mesh), value.pieces, strict=True)
            for outgoing in fabric.cut(data, next(numbers), piece.blocks, devices)
        ]

    def lie(self, mesh: jax.sharding.Mesh) -> list[NamedSharding]:
        """How each value lies on the mesh that it comes to."""
        return [NamedSharding(mesh, value.target) for value in self.values]

    def unpack(
        self, parts: Sequence[fabric.Part], lying: Sequence[NamedSharding]
    ) -> list[jax.Array]:
        """The arrays of the blocks that came, where `lie` says."""
        numbers = itertools.count()

        def whole(piece: _Piece, sharding: NamedSharding) -> jax.Array:
            number = next(numbers)
            mine = [part for part in parts if part.index == number]
            # An array that lies over memory of the link is an input of stages, never donated.
            return fabric.assemble(mine, piece.shape, piece.dtype, sharding).array

        return [
            value.arrived([whole(piece, sharding) for piece in value.pieces], sharding)
            for value, sharding in zip(self.values, lying, strict=True)
        ]


class Outlet:
    """Where values of one link go; keeps them until they are known to have come."""

    def __init__(self, mesh: jax.sharding.Mesh, broken: Callable[[int], None]) -> None:
        """`broken` is told when the link that was made as this number fails; it brings another."""
        self._mesh = mesh
        self._broken = broken
        self._sender: fabric.Sender | None = None
        self._made = 0
        self._lock = threading.Lock()
        self._kept: dict[int, list[tuple[fabric.Tag, list[fabric.Outgoing]]]] = {}

    def connect(self, offer: fabric.Offer, made: int, *, timeout_s: float) -> None:
        """Makes the link, or a new one for one that broke, and sends again what is kept."""
        sender = fabric.connect(offer, timeout_s=timeout_s)
        with self._lock:
            old, self._sender, self._made = self._sender, sender, made
            again = [item for number in sorted(self._kept) for item in self._kept[number]]
        if old is not None:
            old.close()
        self._put(sender, made, again)

    def send(self, tag: fabric.Tag, crossing: Crossing, arrays: Sequence[jax.Array]) -> None:
        """Takes values to be sent; waits while too many bytes are on their way."""
        item = tag, crossing.pack(arrays, self._mesh)
        with self._lock:
            self._kept.setdefault(tag.pass_number, []).append(item)
            sender, made = self._sender, self._made
        self._put(sender, made, [item])

    def send_again(self, pass_number: int) -> bool:
        """Sends once more what was sent of a pass; whether there was anything."""
        with self._lock:
            again = list(self._kept.get(pass_number, ()))
            sender, made = self._sender, self._made
        self._put(sender, made, again)
        return bool(again)

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
        if self._sender is not None:
            self._sender.close()

    def _put(
        self,
        sender: fabric.Sender | None,
        made: int,
        items: Sequence[tuple[fabric.Tag, list[fabric.Outgoing]]],
    ) -> None:
        assert sender is not None  # every link is made before the first pass
        try:
            for tag, packed in items:
                sender.send(tag, packed)
        except fabric.LinkError:
            if sender is self._sender:
                self._broken(made)


class Inlet:
    """Where values of one link come in: a thread that puts them on their mesh."""

    def __init__(
        self,
        receiver: fabric.Receiver,
        mesh: jax.sharding.Mesh,
        crossings: Mapping[int, Crossing],
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
            config: JAX's configuration of the trace.
            arrive: is given what came.
            failed: is told when what came could not be put on the mesh.
            broken: is told when the link fails; it is to bring a new one.
        """
        self._receiver = receiver
        self._crossings = {
            number: (crossing, crossing.lie(mesh)) for number, crossing in crossings.items()
        }
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
            self._arrive(message.tag, crossing.unpack(message.parts, lying))
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
