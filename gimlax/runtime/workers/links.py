"""Links between the workers of a deployment: values go out of one, come in at another, and again.

Each value that crosses is routed block by block from the shards of one mesh to those of the other.
What was sent is kept until its pass is over, so a link that broke, or a message that never came, is
made good by sending it again; what comes twice is dropped by whoever receives it.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from gimlax import _jax, fabric
from gimlax.partition import Spec, partition_spec
from gimlax.runtime.workers.orders import CrossingOrder

__all__ = ["Crossing", "Inlet", "Outlet"]

Config = tuple[tuple[str, Any], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Value:
    """A value that crosses; `key` names the generator of a typed PRNG key, which goes as data."""

    shape: tuple[int, ...]
    dtype: Any
    spec: Spec
    blocks: tuple[fabric.Block, ...]
    key: str


class Crossing:
    """One transfer of a phase: how each of its values goes from mesh to mesh."""

    def __init__(
        self,
        order: CrossingOrder,
        source_axes: Sequence[tuple[str, int]],
        target_axes: Sequence[tuple[str, int]],
    ) -> None:
        self.values: list[_Value] = []
        for value in order.values:
            shape = value.shape
            source = fabric.shards(shape, source_axes, partition_spec(value.source_spec))
            target = fabric.shards(shape, target_axes, partition_spec(value.target_spec))
            self.values.append(
                _Value(
                    shape=shape,
                    dtype=jnp.dtype(value.dtype),
                    spec=value.target_spec,
                    blocks=fabric.route(shape, source, target),
                    key=value.key,
                )
            )

    def pack(self, arrays: Sequence[jax.Array], mesh: jax.sharding.Mesh) -> list[fabric.Outgoing]:
        """The blocks that this process sends of the arrays."""
        devices = dict(enumerate(mesh.devices.flat))
        packed: list[fabric.Outgoing] = []
        for index, (array, value) in enumerate(zip(arrays, self.values, strict=True)):
            data = jax.random.key_data(array) if value.key else array
            packed += fabric.cut(data, index, value.blocks, devices)
        return packed

    def lie(self, mesh: jax.sharding.Mesh) -> list[jax.sharding.NamedSharding]:
        """How each value lies on the mesh that it comes to."""
        return [jax.sharding.NamedSharding(mesh, partition_spec(v.spec)) for v in self.values]

    def unpack(
        self, parts: Sequence[fabric.Part], lying: Sequence[jax.sharding.NamedSharding]
    ) -> list[jax.Array]:
        """The arrays of the blocks that came, where `lie` says."""
        # An array that lies over memory of the link is an input of stages, never donated.
        found = [
            fabric.assemble(
                [part for part in parts if part.index == index], v.shape, v.dtype, sharding
            ).array
            for index, (v, sharding) in enumerate(zip(self.values, lying, strict=True))
        ]
        return [
            jax.random.wrap_key_data(array, impl=v.key) if v.key else array
            for array, v in zip(found, self.values, strict=True)
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

    def send_again(self, pass_number: int) -> None:
        """Sends once more what was sent of a pass."""
        with self._lock:
            again = list(self._kept.get(pass_number, ()))
            sender, made = self._sender, self._made
        self._put(sender, made, again)

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
