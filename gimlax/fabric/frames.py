"""The wire format: what stands before, in and behind a frame, and nothing of how it gets there.

    head        72 bytes: magic, version, kind, sequence number, tag, sizes, CRC32C of the head
    description one record per array: dtype, shape of the whole, which block of it; CRC32C
    payload     the blocks, each from a multiple of 64 bytes on, zeros between
    trailer     CRC32C of the payload

The payload's checksum comes last so that each piece is summed while it is in the cache, by either
side. A *loan* has its payload in shared memory instead, and neither payload nor trailer here. A
*farewell* and a *void* are a head alone. Integers are little-endian and unsigned.

Nothing is believed before its checksum holds, and no size before it is within the limits: a payload
has exactly the bytes that the blocks described add up to, so memory is taken for no other amount.
There is no tolerance: what is corrupt, repeated, missing or out of turn is an error, and sending
again is for the layer above.
"""

import enum
import functools
import math
import struct
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np

from gimlax.errors import SpecError
from gimlax.fabric.checksums import crc32c
from gimlax.fabric.dtypes import code_of, dtype_of_code
from gimlax.fabric.failures import FrameError

__all__ = [
    "ALIGNMENT_BYTES",
    "HEAD_BYTES",
    "MOST_ARRAYS",
    "NOTHING",
    "Described",
    "Frame",
    "Head",
    "Kind",
    "Layout",
    "Limits",
    "Tag",
    "decode_description",
    "decode_head",
    "encode",
    "layout_of",
]

ALIGNMENT_BYTES = 64  # what XLA's CPU clients ask of memory that they take over as it is

_MAGIC = b"GXF1"
_VERSION = 1
# magic, version, kind, arrays, sequence, pass, transfer, attempt, description, payload, slot, at
_HEAD = struct.Struct("<4sBBHQQIIIQIQ")
_CRC = struct.Struct("<I")
_ARRAY = struct.Struct("<BBHI")  # dtype, dims, zero, index
_DIM = struct.Struct("<QQQ")  # of the whole, first of the block, of the block

HEAD_BYTES = _HEAD.size + _CRC.size
MOST_ARRAYS = 2**16 - 1  # that a head can count
_MOST_DIMS = 32
_LARGEST = 2**48  # of a dimension


class Kind(enum.IntEnum):
    """What a frame is."""

    DATA = 1  # payload and trailer follow
    LOAN = 2  # the payload lies in shared memory
    FAREWELL = 3  # the sender closes the link in order
    VOID = 4  # the values of this message could not be computed


_KINDS: Mapping[int, Kind] = types.MappingProxyType({int(kind): kind for kind in Kind})


class _Tag(NamedTuple):
    pass_number: int
    transfer: int
    attempt: int


class Tag(_Tag):
    """What a message belongs to, for the layer above; a link only carries it."""

    __slots__ = ()

    def __new__(cls, pass_number: int, transfer: int = 0, attempt: int = 0) -> Self:
        """Raises `SpecError` if a number is out of its range."""
        made = super().__new__(cls, pass_number, transfer, attempt)
        for name, value, bits in zip(cls._fields, made, (64, 32, 32), strict=True):
            if not isinstance(value, int) or not 0 <= value < 2**bits:
                raise SpecError(f"tag: {name} is {value!r}; give 0 to 2**{bits} - 1")
        return made


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a receiver takes in one frame."""

    payload_bytes: int = 2**30
    arrays: int = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Described:
    """One block of one array: `shape` elements from `start` on, of an array of shape `whole`."""

    index: int
    dtype: np.dtype
    whole: tuple[int, ...]
    start: tuple[int, ...]
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the block on the wire."""
        return math.prod(self.shape) * self.dtype.itemsize


class Head(NamedTuple):
    """The fixed part of a frame; `slot` and `offset` are of a loan."""

    kind: Kind
    sequence: int
    tag: Tag
    arrays: int = 0
    description_bytes: int = 0
    payload_bytes: int = 0
    slot: int = 0
    offset: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How blocks lie in a payload; messages over one link have few, again and again.

    Attributes:
        described: the blocks.
        starts: by block its first byte.
        payload_bytes: of all, with what is between them.
        record: the description as it goes on the wire, with its checksum.
    """

    described: tuple[Described, ...]
    starts: tuple[int, ...]
    payload_bytes: int
    record: bytes


class Frame(NamedTuple):
    """A whole frame; a void has no payload."""

    head: Head
    layout: Layout
    payload: np.ndarray | None = None


@functools.lru_cache(maxsize=1024)
def layout_of(described: tuple[Described, ...]) -> Layout:
    """Where each block begins in the payload, and what says so.

    Raises:
        SpecError: an array cannot be described.
    """
    starts, end, parts = [], 0, []
    for block in described:
        start = -(-end // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
        starts.append(start)
        end = start + block.nbytes
        code = code_of(block.dtype, f"array {block.index}")
        if len(block.shape) > _MOST_DIMS:
            raise SpecError(
                f"array {block.index} has {len(block.shape)} dimensions; give up to {_MOST_DIMS}"
            )
        parts.append(_ARRAY.pack(code, len(block.shape), 0, block.index))
        parts += map(_DIM.pack, block.whole, block.start, block.shape)
    description = b"".join(parts)
    return Layout(
        described=described,
        starts=tuple(starts),
        payload_bytes=end,
        record=description + _CRC.pack(crc32c(description)) if described else b"",
    )


NOTHING = layout_of(())  # of a frame without blocks


def encode(
    kind: Kind, sequence: int, tag: Tag, layout: Layout = NOTHING, *, slot: int = 0, offset: int = 0
) -> bytes:
    """Head and description of a frame, as they go on the wire."""
    record = layout.record
    head = _HEAD.pack(
        _MAGIC,
        _VERSION,
        kind,
        len(layout.described),
        sequence,
        tag.pass_number,
        tag.transfer,
        tag.attempt,
        len(record) - _CRC.size if record else 0,
        layout.payload_bytes,
        slot,
        offset,
    )
    return head + _CRC.pack(crc32c(head)) + record


def decode_head(data: bytes, link: str, expected: int, limits: Limits) -> Head:
    """The head of the frame that has to be number `expected`.

    Raises:
        FrameError: it is corrupt, of another version, out of turn or beyond the limits.
    """

    fields, (crc,) = data[: _HEAD.size], _CRC.unpack_from(data, _HEAD.size)
    if (found := crc32c(fields)) != crc or not fields.startswith(_MAGIC):
        said = f"the checksum of its head is {found:#010x}, and {crc:#010x} was sent with it"
        if not fields.startswith(_MAGIC):
            said = f"its head begins with {fields[:4]!r} instead of {_MAGIC!r}"
        raise FrameError(link, expected, said)
    values = _HEAD.unpack(fields)
    _, version, kind, arrays, sequence, number, transfer, attempt, described, payload, *at = values
    least, most = arrays * _ARRAY.size, arrays * (_ARRAY.size + _MOST_DIMS * _DIM.size)
    if (
        version != _VERSION
        or kind not in _KINDS
        or sequence != expected
        or arrays > limits.arrays
        or payload > limits.payload_bytes
        or (arrays and kind in (Kind.FAREWELL, Kind.VOID))
        or not least <= described <= most
    ):
        raise FrameError(link, expected, _wrong(values, expected, limits))
    return Head(
        _KINDS[kind],
        sequence,
        Tag._make((number, transfer, attempt)),
        arrays,
        described + _CRC.size if arrays else 0,
        payload,
        *at,
    )


def _wrong(values: Sequence[Any], expected: int, limits: Limits) -> str:
    """What is wrong with a head, whose checksum is right."""
    _, version, kind, arrays, sequence, *_, described, payload, _, _ = values
    if version != _VERSION:
        return f"it is of version {version}, and this gimlax reads {_VERSION}"
    if kind not in _KINDS:
        return f"it is of kind {kind}, which is not known"
    if sequence != expected:
        how = "it came before" if sequence < expected else "what lies between is missing"
        return f"number {sequence} came instead; {how}"
    if arrays > limits.arrays:
        return f"it has {arrays} arrays, and at most {limits.arrays} are taken"
    if payload > limits.payload_bytes:
        return f"it has {payload} bytes, and at most {limits.payload_bytes} are taken"
    if kind in (Kind.FAREWELL, Kind.VOID) and arrays:
        return f"it has {arrays} arrays, and its kind {Kind(kind).name} has none"
    least, most = arrays * _ARRAY.size, arrays * (_ARRAY.size + _MOST_DIMS * _DIM.size)
    return f"its description has {described} bytes, where {arrays} arrays need {least} to {most}"


def decode_description(data: bytes, head: Head, link: str) -> Layout:
    """The blocks of a frame from its description and the checksum behind it.

    Raises:
        FrameError: it is corrupt, describes what cannot be, or adds up to another payload.
    """
    if not head.arrays:
        if head.payload_bytes:
            raise FrameError(link, head.sequence, f"it has {head.payload_bytes} bytes of no array")
        return NOTHING
    try:
        layout = _read(data, head.arrays)
    except _Unreadable as error:
        raise FrameError(link, head.sequence, str(error)) from None
    if layout.payload_bytes != head.payload_bytes:
        raise FrameError(
            link,
            head.sequence,
            f"its arrays have {layout.payload_bytes} bytes, and its head says {head.payload_bytes}",
        )
    return layout


class _Unreadable(Exception):
    """Says what is wrong with a description."""


@functools.lru_cache(maxsize=1024)
def _read(data: bytes, num_arrays: int) -> Layout:
    """The layout that a description of so many arrays says; checks everything."""
    end = len(data) - _CRC.size
    (crc,) = _CRC.unpack_from(data, end)
    if (found := crc32c(data[:end])) != crc:
        raise _Unreadable(
            f"the checksum of its description is {found:#010x}, and {crc:#010x} was sent with it"
        )
    described, at = [], 0
    for number in range(num_arrays):
        if at + _ARRAY.size > end:
            raise _Unreadable(f"its description ends before array {number}")
        code, num_dims, zero, index = _ARRAY.unpack_from(data, at)
        at += _ARRAY.size
        dtype = dtype_of_code(code)
        if dtype is None or zero or num_dims > _MOST_DIMS:
            raise _Unreadable(
                f"array {number} has dtype {code} and {num_dims} dimensions, not known here"
            )
        if at + num_dims * _DIM.size > end:
            raise _Unreadable(f"its description ends inside array {number}")
        dims = [_DIM.unpack_from(data, at + k * _DIM.size) for k in range(num_dims)]
        at += num_dims * _DIM.size
        for whole, start, size in dims:
            if not start + size <= whole <= _LARGEST:
                raise _Unreadable(f"array {number} has a block of {size} from {start} of {whole}")
        whole, start, shape = zip(*dims, strict=True) if dims else ((), (), ())
        described.append(Described(index=index, dtype=dtype, whole=whole, start=start, shape=shape))
    if at != end:
        raise _Unreadable(f"its description has {end - at} bytes too many")
    return layout_of(tuple(described))
