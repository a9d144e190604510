"""A strict reader of GGUF files (versions 2 and 3, little-endian).

A model file comes from the internet, so its header is untrusted input: every count, length and
offset is checked against the bytes that are left before it is used, and whatever does not hold is
one `SpecError` that names the file and the fault. Time and memory are proportional to the size of
the file, never to a number written in it. The reader of the `gguf` package does not promise that;
its dequantisers are used as they are.

Tensor data is memory-mapped and read when asked for.
"""

import functools
import math
import mmap
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from gimlax.errors import SpecError
from gimlax.mapped import Stamp, stamp_of
from gimlax.models.extras import require
from gimlax.models.foreign import NUM_BYTES, refuse_foreign
from gimlax.models.pages import drop_pages

PURPOSE = "reading a GGUF file"
MAGIC = b"GGUF"
VERSIONS = (2, 3)
CHUNK = 1 << 20  # numbers that are dequantised at once
MAX_KEY_BYTES = 65535
MAX_NAME_BYTES = 256
MAX_DIMS = 4
MAX_SHOWN = 200  # characters of a key in a message
MAX_ARRAY_DEPTH = 4
DEFAULT_ALIGNMENT = 32
MAX_ALIGNMENT = 1 << 20

SCALARS = {  # value type in the file -> little-endian numpy type
    0: np.dtype("<u1"),
    1: np.dtype("<i1"),
    2: np.dtype("<u2"),
    3: np.dtype("<i2"),
    4: np.dtype("<u4"),
    5: np.dtype("<i4"),
    6: np.dtype("<f4"),
    7: np.dtype("?"),
    10: np.dtype("<u8"),
    11: np.dtype("<i8"),
    12: np.dtype("<f8"),
}
STRING, ARRAY = 8, 9
UINT32, UINT64 = SCALARS[4], SCALARS[10]
MIN_TENSOR_BYTES = 8 + 4 + 8 + 4 + 8  # empty name, one dim
MIN_KEY_BYTES = 8 + 4 + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorInfo:
    """Where a tensor lies in the file and how its numbers are written."""

    name: str
    shape: tuple[int, ...]  # row-major, as numpy has it: the reverse of the order in the file
    quantization: str  # e.g. 'Q4_1', 'F32'
    offset: int  # bytes from the start of the file
    num_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Gguf:
    """A checked header and the mapped bytes behind it.

    Values of `metadata` are int, float, bool, str, a numpy array (arrays of numbers) or a tuple
    (arrays of strings or of arrays).
    """

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, TensorInfo]
    data: mmap.mmap
    stamp: Stamp

    def field(self, key: str, kind: type, default: Any = None) -> Any:
        """The value of `key`, of type `kind` (an int passes as a float).

        Raises `SpecError` if it has another type, or is absent and there is no `default`.
        """
        value = self.metadata.get(key, default)
        if value is None:
            raise SpecError(f"'{self.path}' has no metadata key '{key}', which is needed")
        if kind is float and type(value) is int:
            return float(value)
        if not isinstance(value, kind) or (kind is int and type(value) is bool):
            raise SpecError(
                f"'{self.path}': metadata key '{key}' is a {type(value).__name__}, "
                f"needed is a {kind.__name__}"
            )
        return value

    def check_quantization(self, name: str) -> None:
        """Raises `SpecError` if no dequantiser exists for tensor `name`."""
        quantization = self.tensors[name].quantization
        if not readable(quantization):
            kinds = require("gguf", PURPOSE).GGMLQuantizationType
            supported = ", ".join(sorted(kind.name for kind in kinds if readable(kind.name)))
            raise SpecError(
                f"'{self.path}': tensor '{name}' is quantised as {quantization}, "
                f"which cannot be read; supported are {supported}"
            )

    def dequantize(
        self, name: str, dtype: str = "float32", rows: slice | np.ndarray | None = None
    ) -> np.ndarray:
        """Tensor `name` as numbers of `dtype`, or some of its rows, in the order that is asked for.

        Rows count through all dims but the last; `rows` gives [row, last dim]. Besides the result a
        few MB are needed.

        Raises `SpecError` for an unsupported quantisation, for values that are not finite, and if
        the file was written into since it was opened.
        """
        if self.stamp.is_written_over(self.path):
            raise SpecError(
                f"'{self.path}' was changed after it was opened, and {name!r} would be read from"
                " another model; load again"
            )
        self.check_quantization(name)
        info = self.tensors[name]
        stored = np.frombuffer(self.data, np.uint8, info.num_bytes, info.offset)
        stored = stored.reshape(math.prod(info.shape[:-1]), -1)
        package = require("gguf", PURPOSE)
        kind = package.GGMLQuantizationType[info.quantization]
        order = np.arange(len(stored))[slice(None) if rows is None else rows]
        values = np.empty((len(order), info.shape[-1]), dtype)
        step = max(1, CHUNK // info.shape[-1])
        for start in range(0, len(order), step):
            part = values[start : start + step]
            with np.errstate(all="ignore"):
                part[...] = package.dequantize(stored[order[start : start + step]], kind)
            if not np.isfinite(part).all():
                raise SpecError(
                    f"'{self.path}': tensor '{name}' ({info.quantization}) holds values that are "
                    f"not finite in {dtype}; the file is corrupt or needs a wider dtype"
                )
        return values.reshape(info.shape) if rows is None else values

    def drop(self, name: str) -> None:
        """Lets go of the pages of tensor `name`; it can be read again."""
        drop_pages(self.data, self.tensors[name].offset, self.tensors[name].num_bytes)


@functools.cache
def readable(quantization: str) -> bool:
    """Whether the `gguf` package has a dequantiser of this name."""
    package = require("gguf", PURPOSE)
    kind = package.GGMLQuantizationType[quantization]
    block_bytes = package.GGML_QUANT_SIZES[kind][1]
    try:
        package.dequantize(np.zeros((1, block_bytes), np.uint8), kind)
    except NotImplementedError:
        return False
    return True


def read_gguf(path: str | os.PathLike[str]) -> Gguf:
    """Maps the file at `path` and reads its header.

    Raises:
      SpecError: there is no such file, or it is not a sound GGUF file.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            stamp = stamp_of(os.fstat(file.fileno()))
            if stamp.num_bytes == 0:
                raise SpecError(f"'{path}' is empty, not a GGUF file; download it again")
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise SpecError(
            f"model file '{path}' cannot be read: {error.strerror or error}; "
            "give the path of a GGUF file"
        ) from error
    return HeaderReader(path, data).read(stamp)


class HeaderReader:
    """A cursor over the mapped file that never steps beyond its end."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path = path
        self.data = data
        self.at = 0

    def fail(self, fault: str) -> SpecError:
        return SpecError(f"'{self.path}' is not a sound GGUF file: {fault}")

    def claim(self, num_bytes: int, what: str) -> int:
        """Steps over `num_bytes` and returns where they start; the only way to move the cursor."""
        left = len(self.data) - self.at
        if num_bytes > left:
            raise self.fail(
                f"{what} at byte {self.at} needs {num_bytes} bytes and {left} are left; "
                "the file is truncated or corrupt"
            )
        start = self.at
        self.at += num_bytes
        return start

    def scalar(self, dtype: np.dtype, what: str) -> Any:
        start = self.claim(dtype.itemsize, what)
        raw = self.data[start : start + dtype.itemsize]
        if dtype.kind == "b" and raw not in (b"\0", b"\1"):
            raise self.fail(f"{what} at byte {start} is {raw[0]}, not a bool (0 or 1)")
        return np.frombuffer(raw, dtype)[0].item()

    def count(self, least_bytes: int, what: str) -> int:
        """A number of things that take at least `least_bytes` each and must fit in what is left."""
        number = self.scalar(UINT64, f"number of {what}")
        left = len(self.data) - self.at
        if number * least_bytes > left:
            raise self.fail(
                f"it announces {number} {what} of at least {least_bytes} bytes each at byte "
                f"{self.at}, and {left} bytes are left; the file is truncated or corrupt"
            )
        return number

    def string(self, what: str, limit: int | None = None) -> str:
        length = self.scalar(UINT64, f"length of {what}")
        if limit is not None and length > limit:
            raise self.fail(f"{what} at byte {self.at} has {length} bytes, at most {limit} may be")
        start = self.claim(length, what)
        try:
            return self.data[start : start + length].decode()
        except UnicodeDecodeError as error:
            raise self.fail(f"{what} at byte {start} is not UTF-8 ({error.reason})") from error

    def value(self, kind: int, what: str, depth: int = 0) -> Any:
        if kind == STRING:
            return self.string(what)
        if kind == ARRAY:
            return self.array(what, depth + 1)
        if kind not in SCALARS:
            raise self.fail(f"{what} has value type {kind}, which does not exist")
        return self.scalar(SCALARS[kind], what)

    def array(self, what: str, depth: int) -> np.ndarray | tuple[Any, ...]:
        if depth > MAX_ARRAY_DEPTH:
            raise self.fail(f"{what} nests arrays more than {MAX_ARRAY_DEPTH} deep")
        kind = self.scalar(UINT32, f"element type of {what}")
        if kind in SCALARS:
            dtype = SCALARS[kind]
            length = self.count(dtype.itemsize, f"elements of {what}")
            start = self.claim(length * dtype.itemsize, what)
            numbers = np.frombuffer(self.data, dtype, length, start)
            if dtype.kind == "b" and (numbers.view(np.uint8) > 1).any():
                raise self.fail(f"{what} at byte {start} holds bools other than 0 and 1")
            return numbers
        least_bytes = 12 if kind == ARRAY else 8
        length = self.count(least_bytes, f"elements of {what}")
        return tuple(self.value(kind, what, depth) for _ in range(length))

    def read(self, stamp: Stamp) -> Gguf:
        start = self.claim(len(MAGIC), "magic")
        magic = self.data[start : self.at]
        refuse_foreign(self.path, self.data[:NUM_BYTES])
        if magic != MAGIC:
            raise self.fail(f"it starts with {magic!r}, not with {MAGIC!r}")
        version = self.scalar(UINT32, "version")
        if version not in VERSIONS:
            raise self.fail(
                f"its version is {version}, supported are 2 and 3 in little-endian order; "
                "convert the model again"
            )
        num_tensors = self.count(MIN_TENSOR_BYTES, "tensors")
        num_keys = self.count(MIN_KEY_BYTES, "metadata keys")
        metadata: dict[str, Any] = {}
        for index in range(num_keys):
            key = self.string(f"metadata key {index}", MAX_KEY_BYTES)
            if key in metadata:
                raise self.fail(f"metadata key '{key[:MAX_SHOWN]}' occurs twice")
            kind = self.scalar(UINT32, f"type of metadata key '{key[:MAX_SHOWN]}'")
            metadata[key] = self.value(kind, f"metadata key '{key[:MAX_SHOWN]}'")
        alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
        if not (
            type(alignment) is int
            and 8 <= alignment <= MAX_ALIGNMENT
            and alignment & (alignment - 1) == 0
        ):
            raise self.fail(
                f"general.alignment is {alignment!r}, it must be a power of two from 8 to "
                f"{MAX_ALIGNMENT}"
            )
        infos = self.tensor_infos(num_tensors, alignment)
        return Gguf(
            path=self.path,
            metadata=MappingProxyType(metadata),
            tensors=MappingProxyType(infos),
            data=self.data,
            stamp=stamp,
        )

    def tensor_infos(self, num_tensors: int, alignment: int) -> dict[str, TensorInfo]:
        """Reads the table of tensors; their data starts at the next multiple of `alignment`."""
        sizes = {
            kind.value: (kind.name, block_size, block_bytes)
            for kind, (block_size, block_bytes) in require("gguf", PURPOSE).GGML_QUANT_SIZES.items()
        }
        infos: dict[str, TensorInfo] = {}
        for index in range(num_tensors):
            name = self.string(f"name of tensor {index}", MAX_NAME_BYTES)
            what = f"tensor '{name}'"
            if name in infos:
                raise self.fail(f"{what} occurs twice")
            num_dims = self.scalar(UINT32, f"number of dims of {what}")
            if not 1 <= num_dims <= MAX_DIMS:
                raise self.fail(f"{what} has {num_dims} dims, 1 to {MAX_DIMS} may be")
            dims = tuple(self.scalar(UINT64, f"dim of {what}") for _ in range(num_dims))
            kind = self.scalar(UINT32, f"quantisation of {what}")
            offset = self.scalar(UINT64, f"offset of {what}")
            if kind not in sizes:
                raise self.fail(f"{what} has the unsupported quantisation type {kind}")
            quantization, block_size, block_bytes = sizes[kind]
            if 0 in dims:
                raise self.fail(f"{what} has shape {dims[::-1]}, which is empty")
            if dims[0] % block_size:
                raise self.fail(
                    f"{what} has rows of {dims[0]} numbers, no multiple of the {block_size} that "
                    f"a block of {quantization} holds"
                )
            if offset % alignment:
                raise self.fail(f"{what} lies at offset {offset}, no multiple of {alignment}")
            infos[name] = TensorInfo(
                name=name,
                shape=dims[::-1],
                quantization=quantization,
                offset=offset,
                num_bytes=math.prod(dims) // block_size * block_bytes,
            )
        return self.placed(infos, -(-self.at // alignment) * alignment)

    def placed(self, infos: dict[str, TensorInfo], start: int) -> dict[str, TensorInfo]:
        """Turns offsets into places in the file, and checks that tensors lie inside and apart."""
        placed = {
            name: TensorInfo(
                name=name,
                shape=info.shape,
                quantization=info.quantization,
                offset=start + info.offset,
                num_bytes=info.num_bytes,
            )
            for name, info in infos.items()
        }
        end, before = start, ""
        for info in sorted(placed.values(), key=lambda info: info.offset):
            if info.offset < end:
                raise self.fail(f"tensors '{before}' and '{info.name}' overlap")
            end, before = info.offset + info.num_bytes, info.name
            if end > len(self.data):
                raise self.fail(
                    f"tensor '{info.name}' ends at byte {end}, the file at {len(self.data)}; "
                    "it is truncated or corrupt"
                )
        return placed
