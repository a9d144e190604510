"""What is handed to a sender, brought into the form that goes on the wire."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from gimlax.errors import SpecError
from gimlax.fabric.dtypes import code_of
from gimlax.fabric.frames import Described, Layout, Limits, Tag, layout_of
from gimlax.fabric.seam import Outgoing

__all__ = ["Packet", "as_bytes", "host_array", "pack"]


class Packet(NamedTuple):
    """A message to be sent: its blocks, whose values need not be there yet, and how they lie."""

    tag: Tag
    blocks: tuple[Outgoing, ...]
    layout: Layout

    @property
    def payload_bytes(self) -> int:
        """Bytes of the blocks and of what is between them."""
        return self.layout.payload_bytes

    @property
    def ready(self) -> bool:
        """Whether all values are there, so that nothing has to be waited for."""
        for block in self.blocks:
            data: Any = block.data
            if not (isinstance(data, np.ndarray) or data.is_ready()):
                return False
        return True


def pack(
    tag: Tag, arrays: Sequence[jax.Array | np.ndarray | Outgoing], limits: Limits, link: str
) -> Packet:
    """Describes whole arrays, numbered in their order, or blocks, without waiting for a value.

    Raises:
        SpecError: one of them cannot be sent, or together they are beyond the receiver's limits.
    """
    blocks = tuple(
        [
            array if isinstance(array, Outgoing) else Outgoing(data=array, index=number)
            for number, array in enumerate(arrays)
        ]
    )
    layout = layout_of(tuple([_describe(block, link) for block in blocks]))
    if len(blocks) > limits.arrays:
        raise SpecError(
            f"link {link!r}: a message has {len(blocks)} arrays, and its receiver takes "
            f"{limits.arrays}; send several messages"
        )
    if layout.payload_bytes > limits.payload_bytes:
        raise SpecError(
            f"link {link!r}: a message has {layout.payload_bytes} bytes, and its receiver takes "
            f"{limits.payload_bytes}; send several messages, or let it take more"
        )
    return Packet(tag=tag, blocks=blocks, layout=layout)


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
    data = block.data
    if not isinstance(data, np.ndarray):
        what = f"link {link!r}: array {block.index}"
        if not isinstance(data, jax.Array):
            raise SpecError(f"{what} is a {type(data).__name__}; give an array of JAX or NumPy")
        if data.is_deleted():
            raise SpecError(f"{what} was deleted or donated before it was sent; send it first")
        if len(data.sharding.device_set) > 1:
            raise SpecError(
                f"{what} lies on {len(data.sharding.device_set)} devices; send its blocks, as "
                "gimlax.fabric.cut makes them"
            )
    shape = data.shape
    if block.take is not None:
        shape = tuple(
            len(range(*cut.indices(size))) for cut, size in zip(block.take, shape, strict=True)
        )
    return _described(link, block.index, data.dtype, shape, block.whole, block.start)


@functools.lru_cache(maxsize=4096)
def _described(
    link: str,
    index: int,
    dtype: Any,
    shape: tuple[int, ...],
    whole: tuple[int, ...] | None,
    start: tuple[int, ...] | None,
) -> Described:
    what = f"link {link!r}: array {index}"
    code_of(dtype, what)
    whole = shape if whole is None else whole
    start = (0,) * len(shape) if start is None else start
    fits = len(whole) == len(start) == len(shape) and all(
        0 <= first <= first + size <= full
        for first, size, full in zip(start, shape, whole, strict=True)
    )
    if not fits:
        raise SpecError(f"{what} has a block {shape} from {start}, which is not inside {whole}")
    return Described(index=index, dtype=np.dtype(dtype), whole=whole, start=start, shape=shape)
