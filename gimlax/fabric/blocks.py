"""Resharding on the way: which block of an array goes from which shard to which, each byte once.

Two meshes may differ in size and axes. The shards of either side cut an array into boxes; what is
common to a box of the source and a box of the target is one block. Where several devices of the
source hold a box, the one that has sent least so far sends a block; where several devices of the
target need a box, it crosses once and is put on each of them there. Nothing is gathered: a device
sends slices of its own shard, and a shard of the target is put together on its own host.

Devices are known by keys, such as their position in their mesh, since neither side has the other's.
"""

import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import PartitionSpec, Sharding

from gimlax import _jax
from gimlax.errors import SpecError
from gimlax.fabric.arena import fresh
from gimlax.fabric.landing import Landed, keep_dtype
from gimlax.fabric.seam import Outgoing, Part

__all__ = ["Block", "assemble", "cut", "route", "shards"]

Index = tuple[slice, ...]
Box = tuple[tuple[int, int], ...]  # by dim the first element and the one after the last


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """`shape` elements from `start` on of an array, from one device to all that need them."""

    source: Any
    targets: tuple[Any, ...]
    start: tuple[int, ...]
    shape: tuple[int, ...]


def shards(
    shape: Sequence[int], axes: Sequence[tuple[str, int]], spec: PartitionSpec
) -> dict[int, Index]:
    """What each device of a mesh holds of an array, by its position in the mesh.

    The same as `NamedSharding.devices_indices_map`, for a mesh whose devices are elsewhere.

    Args:
        shape: of the array.
        axes: names and sizes of the mesh's axes, in its order.
        spec: of the array.

    Raises:
        SpecError: the spec does not fit the mesh or the shape.
    """
    sizes = dict(axes)
    by_dim: list[tuple[str, ...]] = []
    for entry in spec:
        names = () if entry is None else (entry,) if isinstance(entry, str) else entry
        if not isinstance(names, tuple) or any(name not in sizes for name in names):
            raise SpecError(f"spec {spec} has {entry!r}, and the mesh has axes {dict(axes)}")
        by_dim.append(names)
    if len(by_dim) > len(shape):
        raise SpecError(f"spec {spec} has {len(by_dim)} entries, and shape {tuple(shape)} fewer")
    by_dim += [()] * (len(shape) - len(by_dim))
    for dim, (size, names) in enumerate(zip(shape, by_dim, strict=True)):
        if size % (num := math.prod(sizes[name] for name in names)):
            raise SpecError(
                f"dim {dim} of shape {tuple(shape)} is not a multiple of {num} ({spec})"
            )
    found: dict[int, Index] = {}
    for position, places in enumerate(itertools.product(*(range(size) for _, size in axes))):
        place = dict(zip(sizes, places, strict=True))
        index = []
        for size, names in zip(shape, by_dim, strict=True):
            number, num = 0, 1
            for name in names:
                number, num = number * sizes[name] + place[name], num * sizes[name]
            width = size // num
            index.append(slice(number * width, (number + 1) * width))
        found[position] = tuple(index)
    return found


def route(
    shape: Sequence[int], source: Mapping[Any, Index], target: Mapping[Any, Index]
) -> tuple[Block, ...]:
    """The blocks that have to cross.

    Args:
        shape: of the array.
        source: what each device of the source holds, as `shards` or `devices_indices_map` says.
        target: what each device of the target has to hold.

    Raises:
        SpecError: the source does not hold all of it.
    """
    senders, receivers = _by_box(shape, source), _by_box(shape, target)
    sent_bytes = dict.fromkeys(source, 0)
    blocks = []
    for needed, targets in receivers.items():
        covered = 0
        for held, sources in senders.items():
            common = _common(needed, held)
            if not (size := _volume(common)):
                continue
            covered += size
            sender = min(sources, key=sent_bytes.__getitem__)  # the first of equals
            sent_bytes[sender] += size
            blocks.append(
                Block(
                    source=sender,
                    targets=targets,
                    start=tuple(start for start, _ in common),
                    shape=tuple(end - start for start, end in common),
                )
            )
        if covered != _volume(needed):
            raise SpecError(
                f"an array {tuple(shape)}: the source holds {covered} of the {_volume(needed)} "
                f"elements that {targets[0]!r} needs, or holds some in shards that overlap; give "
                "shards that cut all of it"
            )
    return tuple(blocks)


def cut(
    array: jax.Array, index: int, blocks: Sequence[Block], devices: Mapping[Any, Any]
) -> list[Outgoing]:
    """The blocks that devices of this process send, as slices of their shards.

    Args:
        array: that is sent; its values need not be there yet.
        index: its number in the message.
        blocks: of `route`.
        devices: by the keys that `route` was given.
    """
    found = []
    held = _held(array)
    for block in blocks:
        if devices[block.source] not in held:  # another process of this mesh sends it
            continue
        data, firsts = held[devices[block.source]]
        take = None
        if block.shape != data.shape:
            take = tuple(
                slice(start - first, start - first + size)
                for start, size, first in zip(block.start, block.shape, firsts, strict=True)
            )
        found.append(
            Outgoing(data=data, index=index, whole=array.shape, start=block.start, take=take)
        )
    return found


def _held(array: jax.Array) -> dict[Any, tuple[jax.Array, tuple[int, ...]]]:
    """By device of this process its shard, and where in the array that begins."""
    devices = array.sharding.device_set
    if len(devices) == 1:
        return dict.fromkeys(devices, (array, (0,) * array.ndim))
    return {
        shard.device: (shard.data, tuple(first for first, _ in _box(array.shape, shard.index)))
        for shard in array.addressable_shards
    }


def assemble(parts: Sequence[Part], shape: Sequence[int], dtype: Any, sharding: Sharding) -> Landed:
    """An array from the blocks of it that came, put on the devices of this process.

    A shard that came as one block is landed as it lies; others are put together on the host first.

    Raises:
        SpecError: they are not the blocks of such an array, or not all of them.
    """
    shape, dtype = tuple(shape), np.dtype(dtype)
    for part in parts:
        if part.whole != shape or part.data.dtype != dtype:
            raise SpecError(
                f"array {part.index}: a block of {part.data.dtype} {part.whole} came, and "
                f"{dtype} {shape} is expected; both sides have to agree on them beforehand"
            )
    keep_dtype(dtype)
    if len(parts) == 1 and parts[0].data.shape == shape and len(sharding.device_set) == 1:
        host = dict.fromkeys(sharding.device_set, parts[0].data)
        return Landed(_jax.put_shards(shape, sharding, host), host)
    boxes = [
        tuple((s, s + size) for s, size in zip(part.start, part.data.shape, strict=True))
        for part in parts
    ]
    for one, other in itertools.combinations(boxes, 2):
        if _volume(_common(one, other)):
            raise SpecError(f"an array {shape}: two of its blocks, {one} and {other}, overlap")
    host: dict[Any, np.ndarray] = {}
    for box, devices in _boxes_here(shape, sharding).items():
        host |= dict.fromkeys(devices, _put_together(box, boxes, parts, dtype))
    return Landed(_jax.put_shards(shape, sharding, host), host)


def _put_together(
    box: Box, boxes: Sequence[Box], parts: Sequence[Part], dtype: np.dtype
) -> np.ndarray:
    shape = tuple(end - start for start, end in box)
    data, covered = None, 0
    for there, part in zip(boxes, parts, strict=True):
        if there == box:
            return part.data
        common = _common(box, there)
        if not (size := _volume(common)):
            continue
        if data is None:
            data = fresh(_volume(box) * dtype.itemsize).view(dtype).reshape(shape)
        data[_within(common, box)] = part.data[_within(common, there)]
        covered += size
    if covered != _volume(box):
        raise SpecError(
            f"a shard {box} of {dtype}: {covered} of its {_volume(box)} elements came; send the "
            "blocks that gimlax.fabric.route says"
        )
    return np.empty(shape, dtype) if data is None else data


@functools.lru_cache(maxsize=1024)
def _boxes_here(shape: tuple[int, ...], sharding: Sharding) -> dict[Box, tuple[Any, ...]]:
    """Devices of this process by what they hold."""
    return _by_box(shape, sharding.addressable_devices_indices_map(shape))


def _by_box(shape: Sequence[int], indices: Mapping[Any, Any]) -> dict[Box, tuple[Any, ...]]:
    """Devices by what they hold, in the order in which they were given."""
    found: dict[Box, tuple[Any, ...]] = {}
    for device, index in indices.items():
        box = _box(shape, index)
        found[box] = (*found.get(box, ()), device)
    return found


def _box(shape: Sequence[int], index: Index) -> Box:
    return tuple(cut.indices(size)[:2] for cut, size in zip(index, shape, strict=True))


def _common(one: Box, other: Box) -> Box:
    return tuple((max(a, c), min(b, d)) for (a, b), (c, d) in zip(one, other, strict=True))


def _volume(box: Box) -> int:
    return math.prod(max(end - start, 0) for start, end in box)


def _within(box: Box, outer: Box) -> Index:
    return tuple(
        slice(start - first, end - first)
        for (start, end), (first, _) in zip(box, outer, strict=True)
    )
