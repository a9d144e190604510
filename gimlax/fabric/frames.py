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
import math
import struct
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from gimlax.errors import SpecError
from gimlax.fabric.checksums import crc32c
from gimlax.fabric.dtypes import code_of, dtype_of_code
from gimlax.fabric.failures import FrameError

__all__ = [
    "ALIGNMENT_BYTES",
    "HEAD_BYTES",
    "MOST_ARRAYS",
    "Described",
    "Frame",
    "Head",
    "Kind",
    "Limits",
    "Tag",
    "decode_description",
    "decode_head",
    "encode",
    "spans",
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Tag:
    """What a message belongs to, for the layer above; a link only carries it."""

    pass_number: int
    transfer: int = 0
    attempt: int = 0

    def __post_init__(self) -> None:
        for name, bits in (("pass_number", 64), ("transfer", 32), ("attempt", 32)):
            value = getattr(self, name)
            if not isinstance(value, int) or not 0 <= value < 2**bits:
                raise SpecError(f"tag: {name} is {value!r}; give 0 to 2**{bits} - 1")


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
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
class Frame:
    """A whole frame; a void has no payload."""

    head: Head
    described: tuple[Described, ...] = ()
    payload: np.ndarray | None = None


def spans(described: Sequence[Described]) -> tuple[tuple[int, ...], int]:
    """Where in the payload each block begins, and the bytes of the payload."""
    if len(described) == 1:
        return (0,), described[0].nbytes
    starts, end = [], 0
    for block in described:
        start = -(-end // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
        starts.append(start)
        end = start + block.nbytes
    return tuple(starts), end


def encode(
    kind: Kind,
    sequence: int,
    tag: Tag,
    described: Sequence[Described] = (),
    *,
    slot: int = 0,
    offset: int = 0,
) -> bytes:
    """Head and description of a frame, as they go on the wire.

    Raises:
        SpecError: an array cannot be described.
    """
    parts = []
    for block in described:
        code = code_of(block.dtype, f"array {block.index}")
        if len(block.shape) > _MOST_DIMS:
            raise SpecError(
                f"array {block.index} has {len(block.shape)} dimensions; give up to {_MOST_DIMS}"
            )
        parts.append(_ARRAY.pack(code, len(block.shape), 0, block.index))
        parts += map(_DIM.pack, block.whole, block.start, block.shape)
    description = b"".join(parts)
    head = _HEAD.pack(
        _MAGIC,
        _VERSION,
        kind,
        len(described),
        sequence,
        tag.pass_number,
        tag.transfer,
        tag.attempt,
        len(description),
        spans(described)[1],
        slot,
        offset,
    )
    head += _CRC.pack(crc32c(head))
    return head + description + _CRC.pack(crc32c(description)) if described else head


def decode_head(data: bytes, link: str, expected: int, limits: Limits) -> Head:
    """The head of the frame that has to be number `expected`.

    Raises:
        FrameError: it is corrupt, of another version, out of turn or beyond the limits.
    """

    def wrong(said: str) -> FrameError:
        return FrameError(link, expected, said)

    fields, (crc,) = data[: _HEAD.size], _CRC.unpack_from(data, _HEAD.size)
    if not fields.startswith(_MAGIC):
        raise wrong(f"its head begins with {fields[:4]!r} instead of {_MAGIC!r}")
    if (found := crc32c(fields)) != crc:
        raise wrong(f"the checksum of its head is {found:#010x}, and {crc:#010x} was sent with it")
    values = _HEAD.unpack(fields)
    _, version, kind, arrays, sequence, number, transfer, attempt, described, payload = values[:10]
    if version != _VERSION:
        raise wrong(f"it is of version {version}, and this gimlax reads {_VERSION}")
    if kind not in _KINDS:
        raise wrong(f"it is of kind {kind}, which is not known")
    if sequence != expected:
        how = "it came before" if sequence < expected else "what lies between is missing"
        raise wrong(f"number {sequence} came instead; {how}")
    if arrays > limits.arrays:
        raise wrong(f"it has {arrays} arrays, and at most {limits.arrays} are taken")
    if payload > limits.payload_bytes:
        raise wrong(f"it has {payload} bytes, and at most {limits.payload_bytes} are taken")
    if kind in (Kind.FAREWELL, Kind.VOID) and arrays:
        raise wrong(f"it has {arrays} arrays, and its kind {Kind(kind).name} has none")
    least, most = arrays * _ARRAY.size, arrays * (_ARRAY.size + _MOST_DIMS * _DIM.size)
    if not least <= described <= most:
        raise wrong(
            f"its description has {described} bytes, where {arrays} arrays need {least} to {most}"
        )
    return Head(
        kind=_KINDS[kind],
        sequence=sequence,
        tag=Tag(pass_number=number, transfer=transfer, attempt=attempt),
        arrays=arrays,
        description_bytes=described + _CRC.size if arrays else 0,
        payload_bytes=payload,
        slot=values[10],
        offset=values[11],
    )


def decode_description(data: bytes, head: Head, link: str) -> tuple[Described, ...]:
    """The blocks of a frame from its description and the checksum behind it.

    Raises:
        FrameError: it is corrupt, describes what cannot be, or adds up to another payload.
    """

    def wrong(said: str) -> FrameError:
        return FrameError(link, head.sequence, said)

    if not head.arrays:
        if head.payload_bytes:
            raise wrong(f"it has {head.payload_bytes} bytes of no array")
        return ()
    end = len(data) - _CRC.size
    (crc,) = _CRC.unpack_from(data, end)
    if (found := crc32c(data[:end])) != crc:
        raise wrong(
            f"the checksum of its description is {found:#010x}, and {crc:#010x} was sent with it"
        )
    described, at = [], 0
    for number in range(head.arrays):
        if at + _ARRAY.size > end:
            raise wrong(f"its description ends before array {number}")
        code, num_dims, zero, index = _ARRAY.unpack_from(data, at)
        at += _ARRAY.size
        dtype = dtype_of_code(code)
        if dtype is None or zero or num_dims > _MOST_DIMS:
            raise wrong(
                f"array {number} has dtype {code} and {num_dims} dimensions, not known here"
            )
        if at + num_dims * _DIM.size > end:
            raise wrong(f"its description ends inside array {number}")
        dims = [_DIM.unpack_from(data, at + k * _DIM.size) for k in range(num_dims)]
        at += num_dims * _DIM.size
        for whole, start, size in dims:
            if not start + size <= whole <= _LARGEST:
                raise wrong(f"array {number} has a block of {size} from {start} of {whole}")
        whole, start, shape = zip(*dims, strict=True) if dims else ((), (), ())
        described.append(Described(index=index, dtype=dtype, whole=whole, start=start, shape=shape))
    if at != end:
        raise wrong(f"its description has {end - at} bytes too many")
    if (total := spans(described)[1]) != head.payload_bytes:
        raise wrong(f"its arrays have {total} bytes, and its head says {head.payload_bytes}")
    return tuple(described)
