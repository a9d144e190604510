"""What is handed to a sender, brought into the form that goes on the wire."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from gimlax.errors import SpecError
from gimlax.fabric.dtypes import code_of
from gimlax.fabric.frames import Described, Limits, Tag, spans
from gimlax.fabric.seam import Outgoing

__all__ = ["Packet", "as_bytes", "host_array", "pack"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Packet:
    """A message to be sent: its blocks, whose values need not be there yet, and their sizes."""

    tag: Tag
    blocks: tuple[Outgoing, ...]
    described: tuple[Described, ...]
    payload_bytes: int

    @property
    def ready(self) -> bool:
        """Whether all values are there, so that nothing has to be waited for."""
        values: list[Any] = [block.data for block in self.blocks]
        return all(isinstance(value, np.ndarray) or value.is_ready() for value in values)


def pack(
    tag: Tag, arrays: Sequence[jax.Array | np.ndarray | Outgoing], limits: Limits, link: str
) -> Packet:
    """Describes whole arrays, numbered in their order, or blocks, without waiting for a value.

    Raises:
        SpecError: one of them cannot be sent, or together they are beyond the receiver's limits.
    """
    blocks = tuple(
        array if isinstance(array, Outgoing) else Outgoing(data=array, index=number)
        for number, array in enumerate(arrays)
    )
    described = tuple(_describe(block, link) for block in blocks)
    payload_bytes = spans(described)[1]
    if len(described) > limits.arrays:
        raise SpecError(
            f"link {link!r}: a message has {len(described)} arrays, and its receiver takes "
            f"{limits.arrays}; send several messages"
        )
    if payload_bytes > limits.payload_bytes:
        raise SpecError(
            f"link {link!r}: a message has {payload_bytes} bytes, and its receiver takes "
            f"{limits.payload_bytes}; send several messages, or let it take more"
        )
    return Packet(tag=tag, blocks=blocks, described=described, payload_bytes=payload_bytes)


def host_array(block: Outgoing) -> np.ndarray:
    """A block in host memory, not necessarily contiguous; waits for its values.

    Raises whatever the computation of the values failed with.
    """
    data = np.asarray(block.data)
    return data if block.take is None else data[block.take]


def as_bytes(array: np.ndarray) -> np.ndarray:
    """The bytes of an array, copied only if it is not contiguous."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def _describe(block: Outgoing, link: str) -> Described:
    data, what = block.data, f"link {link!r}: array {block.index}"
    if not isinstance(data, np.ndarray):
        if not isinstance(data, jax.Array):
            raise SpecError(f"{what} is a {type(data).__name__}; give an array of JAX or NumPy")
        if data.is_deleted():
            raise SpecError(f"{what} was deleted or donated before it was sent; send it first")
        if len(data.sharding.device_set) > 1:
            raise SpecError(
                f"{what} lies on {len(data.sharding.device_set)} devices; send its blocks, as "
                "gimlax.fabric.cut makes them"
            )
    code_of(data.dtype, what)
    shape = data.shape
    if block.take is not None:
        shape = tuple(
            len(range(*cut.indices(size))) for cut, size in zip(block.take, shape, strict=True)
        )
    whole = shape if block.whole is None else block.whole
    start = (0,) * len(shape) if block.start is None else block.start
    fits = len(whole) == len(start) == len(shape) and all(
        0 <= first <= first + size <= full
        for first, size, full in zip(start, shape, whole, strict=True)
    )
    if not fits:
        raise SpecError(f"{what} has a block {shape} from {start}, which is not inside {whole}")
    return Described(
        index=block.index, dtype=np.dtype(data.dtype), whole=whole, start=start, shape=shape
    )
