"""Messages between a controller and its workers: a kind, plain fields, and arrays as raw bytes.

A message is a prefix (magic, bytes of the header, bytes of the payload, how many numbers), a JSON
header and the payload: integers of 64 bits, and the arrays, each at a multiple of 64 bytes so that
XLA can use them where they were received. Nothing is pickled. What a header says is checked before
memory is made for it. Chosen over a serialisation library because the arrays must not be copied,
and the rest is a few numbers.

What differs from pass to pass goes as numbers. Without them headers repeat, so that each is written
and read once.
"""

import functools
import json
import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from gimlax.errors import BackendError

__all__ = [
    "PREFIX_BYTES",
    "Message",
    "decode",
    "dtype_named",
    "encode",
    "from_wire",
    "name_of",
    "read_prefix",
    "to_wire",
]

_PREFIX = struct.Struct("<4sIQI")
PREFIX_BYTES = _PREFIX.size
_MAGIC = b"gmx2"
_ALIGNMENT = 64
_MOST_HEADER_BYTES = 2**28
_MOST_PAYLOAD_BYTES = 2**42
_MOST_DIMS = 64
_SMALL_BYTES = 4096  # of an array that is copied, so that its message is one piece
_NUMBERS = np.dtype("<i8")
_KEY = "key<"  # a typed PRNG key travels as its data

_DTYPES: Mapping[str, np.dtype[Any]] = {
    dtype.name: dtype
    for dtype in map(
        np.dtype,
        (
            *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
            *("float16", "float32", "float64", "complex64", "complex128"),
            *(
                getattr(ml_dtypes, name)
                for name in (
                    *("bfloat16", "int2", "int4", "uint2", "uint4", "float4_e2m1fn"),
                    *("float8_e3m4", "float8_e4m3", "float8_e4m3b11fnuz", "float8_e4m3fn"),
                    *("float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu"),
                )
                if hasattr(ml_dtypes, name)
            ),
        ),
    )
}

_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_write = json.JSONEncoder(separators=(",", ":")).encode


def name_of(dtype: np.dtype[Any]) -> str | None:
    """What a dtype is called on the wire, None if it cannot be sent."""
    return _NAMES.get(dtype)


def dtype_named(name: str) -> np.dtype[Any]:
    """The dtype of this name.

    Raises:
        BackendError: there is none.
    """
    if name not in _DTYPES:
        raise BackendError(f"there is no dtype {name!r} on the wire")
    return _DTYPES[name]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Message:
    """What is sent: `kind` says what is wanted, `fields` are plain data, `arrays` numpy arrays.

    An array may stand for a typed PRNG key: `keys` holds the names of the generators by index. With
    `numbers`, `fields` are names, integers and the like that are often the same; they are shared
    by the messages that are received.
    """

    kind: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    arrays: Sequence[np.ndarray] = ()
    keys: Mapping[int, str] = field(default_factory=dict)
    numbers: Sequence[int] = ()


def to_wire(
    kind: str, fields: Mapping[str, Any], arrays: Sequence[Any] = (), numbers: Sequence[int] = ()
) -> Message:
    """A message of arrays of any sort; waits for those that are still being computed."""
    host: list[np.ndarray] = []
    keys: dict[int, str] = {}
    for index, array in enumerate(arrays):
        if isinstance(array, jax.Array) and jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
            keys[index] = str(jax.random.key_impl(array))
            array = jax.random.key_data(array)
        host.append(np.ascontiguousarray(array).reshape(np.shape(array)))
    return Message(kind=kind, fields=fields, arrays=host, keys=keys, numbers=numbers)


def from_wire(message: Message) -> list[Any]:
    """The arrays of a message; PRNG keys as typed `jax.Array`s of the default device."""
    if not message.keys:
        return list(message.arrays)
    return [
        jax.random.wrap_key_data(jnp.asarray(array), impl=message.keys[index])
        if index in message.keys
        else array
        for index, array in enumerate(message.arrays)
    ]


def encode(message: Message) -> list[Any]:
    """The message as buffers to be written one after another."""
    arrays, keys, numbers = message.arrays, message.keys, message.numbers
    described = tuple(
        [(array.dtype, array.shape, keys.get(index, "")) for index, array in enumerate(arrays)]
    )
    about = message.kind, tuple(message.fields.items()), described, len(numbers)
    try:
        head = _repeated(*about) if numbers else _header(*about)
    except TypeError:  # of a list among the fields
        head = _header(*about)
    buffers: list[Any] = []
    small = [head, struct.pack(f"<{len(numbers)}q", *numbers), _padding(8 * len(numbers))]
    for array in arrays:
        if array.nbytes > _SMALL_BYTES:
            buffers += [b"".join(small), array.reshape(-1).view(np.uint8)]
            small = []
        else:
            small.append(array.tobytes())
        small.append(_padding(array.nbytes))
    buffers.append(b"".join(small))
    return [buffer for buffer in buffers if len(buffer)]


def _padding(nbytes: int) -> bytes:
    return bytes(-nbytes % _ALIGNMENT)


def _header(kind: str, fields: Iterable[Any], described: Iterable[Any], num_numbers: int) -> bytes:
    """Prefix and header of a message.

    Args:
        kind: of it.
        fields: names and values.
        described: of each array dtype, shape and generator.
        num_numbers: how many numbers it has.

    Raises:
        BackendError: an array cannot be sent.
    """
    arrays: list[Any] = []
    size = 8 * num_numbers + -8 * num_numbers % _ALIGNMENT
    for dtype, shape, key in described:
        name = _NAMES.get(dtype)
        if name is None:
            raise BackendError(
                f"an array of dtype {dtype} cannot be sent to another process; those that can are"
                f" {', '.join(_DTYPES)}"
            )
        arrays.append([name, list(shape), key])
        nbytes = math.prod(shape) * dtype.itemsize
        size += nbytes + -nbytes % _ALIGNMENT
    text = _write({"kind": kind, "arrays": arrays, "fields": dict(fields)}).encode()
    return _PREFIX.pack(_MAGIC, len(text), size, num_numbers) + text


_repeated = functools.lru_cache(maxsize=1024)(_header)


def read_prefix(
    prefix: bytes | memoryview, most_bytes: int = _MOST_PAYLOAD_BYTES
) -> tuple[int, int, int]:
    """Bytes of the header and of the payload that follow a prefix, and how many numbers that has.

    Raises:
        BackendError: it is none, or says more than can be meant.
    """
    magic, header_bytes, payload_bytes, num_numbers = _PREFIX.unpack(prefix)
    if magic != _MAGIC:
        raise BackendError(
            f"a message begins with {bytes(magic)!r} instead of {_MAGIC!r}: the other side is no"
            " gimlax of this version"
        )
    if header_bytes > min(_MOST_HEADER_BYTES, most_bytes) or payload_bytes > most_bytes:
        raise BackendError(
            f"a message of {header_bytes} and {payload_bytes} bytes was announced, more than the"
            f" {most_bytes} that can be meant"
        )
    return header_bytes, payload_bytes, num_numbers


def decode(header: bytes, payload: np.ndarray, num_numbers: int = 0) -> Message:
    """The message of a header and its payload, which the arrays are views of.

    Args:
        header: JSON as `encode` wrote it.
        payload: bytes, at an address that is a multiple of 64.
        num_numbers: how many numbers the payload begins with.

    Raises:
        BackendError: they do not belong together.
    """
    try:
        read = _read_repeated if num_numbers else _read
        kind, fields, described, keys, size = read(header, num_numbers)
        if size != payload.size:
            raise ValueError(f"{size} bytes described of {payload.size}")
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise BackendError(f"a message cannot be read: {type(error).__name__}: {error}") from error
    return Message(
        kind=kind,
        fields=fields,
        arrays=[
            payload[start:stop].view(dtype).reshape(shape)
            for start, stop, dtype, shape in described
        ],
        keys=keys,
        numbers=payload[: 8 * num_numbers].view(_NUMBERS).tolist() if num_numbers else (),
    )


def _read(header: bytes, num_numbers: int) -> tuple[str, Any, Any, Any, int]:
    """What a header says: kind, fields, where each array lies and what it is, keys, and bytes."""
    data = json.loads(header)
    arrays: list[tuple[int, int, Any, tuple[int, ...]]] = []
    keys: dict[int, str] = {}
    start = 8 * num_numbers + -8 * num_numbers % _ALIGNMENT
    for index, (name, shape, key) in enumerate(data["arrays"]):
        dtype = _DTYPES[name]
        if len(shape) > _MOST_DIMS or any(type(n) is not int or n < 0 for n in shape):
            raise ValueError(f"shape {shape}")
        nbytes = math.prod(shape) * dtype.itemsize
        arrays.append((start, start + nbytes, dtype, tuple(shape)))
        if key:
            keys[index] = str(key)
        start += nbytes + -nbytes % _ALIGNMENT
    fields = data["fields"]
    if not isinstance(fields, dict):
        raise ValueError(f"fields {fields!r}")
    return str(data["kind"]), fields, arrays, keys, start


_read_repeated = functools.lru_cache(maxsize=1024)(_read)
