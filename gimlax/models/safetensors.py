"""A strict reader of safetensors files, for every dtype that they may hold.

The `safetensors` package gives numpy no BF16, FP8 or FP4. A file is a length, a header in JSON and
the bytes of its tensors; the header is untrusted input, so every length and offset is checked
against the file before it is used, and whatever does not hold is one `SpecError` that names the
file and the fault. Nothing is ever unpickled: what starts like a pickle or an archive is refused,
whatever it is called. Tensor data is memory-mapped and read when asked for.
"""

import json
import math
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import ml_dtypes
import numpy as np

from gimlax.errors import SpecError
from gimlax.mapped import Mapped, map_file
from gimlax.models.foreign import NUM_BYTES, refuse_foreign
from gimlax.models.pages import drop_pages

__all__ = ["Safetensors", "StoredTensor", "parse_json", "read_safetensors"]

MAX_HEADER_BYTES = 100_000_000  # what the package `safetensors` takes, too
MAX_DIMS = 32
MAX_DIM = 1 << 60
LENGTH_BYTES = 8
METADATA = "__metadata__"
FIELDS = {"dtype", "shape", "data_offsets"}

DTYPES: Mapping[str, np.dtype] = MappingProxyType(
    {
        "BOOL": np.dtype(np.bool_),
        "U8": np.dtype(np.uint8),
        "I8": np.dtype(np.int8),
        "U16": np.dtype("<u2"),
        "I16": np.dtype("<i2"),
        "U32": np.dtype("<u4"),
        "I32": np.dtype("<i4"),
        "U64": np.dtype("<u8"),
        "I64": np.dtype("<i8"),
        "F4": np.dtype(ml_dtypes.float4_e2m1fn),
        "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
        "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
        "F8_E8M0": np.dtype(ml_dtypes.float8_e8m0fnu),
        "F16": np.dtype("<f2"),
        "BF16": np.dtype(ml_dtypes.bfloat16),
        "F32": np.dtype("<f4"),
        "F64": np.dtype("<f8"),
        "C64": np.dtype("<c8"),
    }
)
PACKED = "F4"  # two in a byte, the first in its lower half


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTensor:
    """Where a tensor lies in a file and how its numbers are written."""

    shape: tuple[int, ...]
    dtype: str  # as the file calls it, a key of `DTYPES`
    offset: int  # bytes from the start of the file
    num_bytes: int

    @property
    def numpy(self) -> np.dtype:
        """What numpy calls its dtype."""
        return DTYPES[self.dtype]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Safetensors:
    """A checked header and the mapped bytes behind it."""

    path: Path
    metadata: Mapping[str, str]
    tensors: Mapping[str, StoredTensor]
    data: Mapped

    def read(self, name: str) -> np.ndarray:
        """Tensor `name`: a view of the file that cannot be written, except of FP4, which is
        unpacked to a byte each. A view is a `Mapped`: a worker reads it by itself.

        Raises:
            SpecError: the file was written into since it was opened.
        """
        stamp = self.data.stamp
        if stamp is not None and stamp.is_written_over(self.path):
            raise SpecError(
                f"'{self.path}' was changed after it was opened, and {name!r} would be read from"
                " another model; load again, and save to another path or by `gimlax.save`"
            )
        info = self.tensors[name]
        stored = self.data[info.offset : info.offset + info.num_bytes]
        dtype = DTYPES[info.dtype]
        if info.dtype != PACKED:
            return stored.view(dtype).reshape(info.shape)
        packed = np.asarray(stored)
        halves = np.stack([packed & 15, packed >> 4], axis=-1)
        return halves.reshape(info.shape).view(dtype)

    def drop(self, name: str) -> None:
        """Lets go of the pages of tensor `name`; it can be read again."""
        info, mapped = self.tensors[name], getattr(self.data, "_mmap", None)
        if mapped is not None:
            drop_pages(mapped, info.offset, info.num_bytes)


def read_safetensors(path: str | os.PathLike[str]) -> Safetensors:
    """Maps the file at `path` and reads its header.

    Raises:
        SpecError: there is no such file, or it is not a sound safetensors file.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            num_bytes = os.fstat(file.fileno()).st_size
            if num_bytes <= LENGTH_BYTES:
                raise _unsound(path, f"it has {num_bytes} bytes; download it again")
            data = map_file(file)
    except OSError as error:
        raise SpecError(
            f"weights file '{path}' cannot be read: {error.strerror or error}; give the path of a "
            "safetensors file"
        ) from error
    return _checked(path, data)


def parse_json(path: Path, what: str, text: bytes) -> Any:
    """Untrusted JSON whose objects name no key twice; `what` it is goes into messages."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
            raise ValueError(f"{twice[:200]!r} occurs twice")
        return found

    def refuse(word: str) -> None:
        raise ValueError(f"{word} is no number of JSON")

    try:
        return json.loads(text.decode(), object_pairs_hook=once, parse_constant=refuse)
    except RecursionError as error:
        raise SpecError(f"'{path}': {what} nests too deep to be one") from error
    except ValueError as error:
        raise SpecError(f"'{path}': {what} is no sound JSON: {error}") from error


def _unsound(path: Path, fault: str) -> SpecError:
    return SpecError(f"'{path}' is not a sound safetensors file: {fault}")


def _checked(path: Path, data: Mapped) -> Safetensors:
    start = data[:NUM_BYTES].tobytes()
    refuse_foreign(path, start)
    if start.startswith(b"GGUF") and start[LENGTH_BYTES : LENGTH_BYTES + 1] != b"{":
        raise SpecError(f"'{path}' is a GGUF file, no safetensors file; load it as one")
    length = int.from_bytes(data[:LENGTH_BYTES].tobytes(), "little")
    start = LENGTH_BYTES + length
    if length > MAX_HEADER_BYTES or start > len(data):
        raise _unsound(
            path,
            f"its header is announced with {length} bytes, the file has {len(data)} and a header "
            f"at most {MAX_HEADER_BYTES}; it is truncated, corrupt, or something else",
        )
    header = parse_json(path, "its header", data[LENGTH_BYTES:start].tobytes())
    if not isinstance(header, dict):
        raise _unsound(path, f"its header is a {type(header).__name__}, not an object")
    metadata = header.pop(METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise _unsound(path, f"{METADATA} holds something other than strings")
    tensors = {name: _tensor(path, name, entry, start) for name, entry in header.items()}
    _check_places(path, tensors, start, len(data))
    return Safetensors(
        path=path,
        metadata=MappingProxyType(metadata),
        tensors=MappingProxyType(tensors),
        data=data,
    )


def _tensor(path: Path, name: str, entry: Any, start: int) -> StoredTensor:
    what = f"tensor {name[:200]!r}"
    if not isinstance(entry, dict) or set(entry) != FIELDS:
        raise _unsound(path, f"{what} is not described by {', '.join(sorted(FIELDS))}")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise _unsound(
            path, f"{what} is of dtype {str(dtype)[:40]!r}; supported are {', '.join(DTYPES)}"
        )
    if not _are_sizes(shape) or len(shape) > MAX_DIMS:
        raise _unsound(path, f"{what} has shape {str(shape)[:80]}, no list of sizes")
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise _unsound(path, f"{what} has data_offsets {str(offsets)[:80]}, no start and end")
    bits = math.prod(shape) * (4 if dtype == PACKED else 8 * DTYPES[dtype].itemsize)
    num_bytes = offsets[1] - offsets[0]
    if bits != 8 * num_bytes:
        raise _unsound(
            path,
            f"{what} of {dtype} {tuple(shape)} takes {bits} bits, and {num_bytes} bytes are"
            " announced",
        )
    return StoredTensor(
        shape=tuple(shape), dtype=dtype, offset=start + offsets[0], num_bytes=num_bytes
    )


def _are_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(v) is int and 0 <= v <= MAX_DIM for v in value)


def _check_places(path: Path, tensors: Mapping[str, StoredTensor], start: int, size: int) -> None:
    """Tensors lie side by side from the end of the header to the end of the file."""
    end = start
    for name, info in sorted(tensors.items(), key=lambda item: (item[1].offset, item[1].num_bytes)):
        if info.offset != end:
            how = "overlaps what is before it" if info.offset < end else "leaves a hole before it"
            raise _unsound(path, f"tensor {name[:200]!r} at byte {info.offset} {how}, up to {end}")
        end += info.num_bytes
        if end > size:
            raise _unsound(
                path,
                f"tensor {name[:200]!r} ends at byte {end}, the file at {size}; it is truncated or"
                " corrupt",
            )
    if end != size:
        raise _unsound(path, f"its tensors end at byte {end}, the file at {size}")
