"""Trees of parameters as folders of safetensors: one file, or several with an index.

A tensor is called by its key path, joined by dots, unless names are given. Arrays are read, hashed
and written one by one, so that no more than one is held. Data begin at a multiple of 64 bytes,
which lets a CPU client use what is mapped.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from gimlax.errors import SpecError
from gimlax.lazy import read_all
from gimlax.models.checkpoint import INDEX_SUFFIX, SUFFIX
from gimlax.models.leaves import Progress, counting
from gimlax.models.manifest import write_manifest
from gimlax.models.replacing import replacing
from gimlax.models.safetensors import DTYPES, METADATA, PACKED

__all__ = ["SHARD_BYTES", "Named", "check_names", "write_folder"]

SHARD_BYTES = 4 << 30
ALIGNMENT = 64
NAMES: Mapping[np.dtype, str] = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Named:
    """A tensor to be written; `array` has shape and dtype, and may be a `LazyArray`."""

    name: str
    array: Any

    @property
    def num_bytes(self) -> int:
        """That it takes in a file."""
        bits = 4 if NAMES[self.array.dtype] == PACKED else 8 * self.array.dtype.itemsize
        return int(np.prod(self.array.shape, dtype=object)) * bits // 8


def write_folder(
    path: Path,
    tensors: Sequence[Named],
    *,
    beside: Mapping[str, bytes] = MappingProxyType({}),
    stem: str = "model",
    shard_bytes: int = SHARD_BYTES,
    progress: Progress | None = None,
) -> None:
    """Writes tensors and a manifest as a folder that takes the place of `path`.

    Args:
        path: of the folder.
        tensors: in the order in which they are dealt out to files.
        beside: other files by name, such as config.json.
        stem: what the names of files begin with.
        shard_bytes: a file ends before the tensor with which it would have more.
        progress: called with bytes that were written, and all, after each tensor.

    Raises:
        SpecError: two tensors have one name, one cannot be written in this format, or a folder is
            there that no save has written.
        BackendError: the disk is full, or may not be written.
    """
    _check(tensors)
    total_bytes = sum(of.num_bytes for of in tensors)
    count = counting(progress, total_bytes)
    shards = _dealt(tensors, shard_bytes)
    files = [f"{stem}-{i:05}-of-{len(shards):05}{SUFFIX}" for i in range(1, len(shards) + 1)]
    files = files if len(shards) > 1 else [f"{stem}{SUFFIX}"]
    with replacing(path) as folder:
        folder.mkdir()
        known = {
            file: _write(folder / file, shard, count)
            for file, shard in zip(files, shards, strict=True)
        }
        if len(shards) > 1:
            where = {
                of.name: file for file, shard in zip(files, shards, strict=True) for of in shard
            }
            index = {"metadata": {"total_size": total_bytes}, "weight_map": where}
            beside = {**beside, f"{stem}{INDEX_SUFFIX}": json.dumps(index, indent=1).encode()}
        for name, content in beside.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        write_manifest(folder, known)


def check_names(names: Iterable[str]) -> None:
    """Refuses names of which a file could not hold all.

    Raises:
        SpecError: one is there twice, or is none.
    """
    known: set[str] = set()
    for name in names:
        if name in known or name == METADATA:
            raise SpecError(
                f"{name!r} would be the name of two tensors, or is none; rename a key of the tree"
            )
        known.add(name)


def _check(tensors: Sequence[Named]) -> None:
    check_names(of.name for of in tensors)
    for of in tensors:
        if of.array.dtype not in NAMES:
            raise SpecError(
                f"{of.name!r} is of dtype {of.array.dtype}, which safetensors has not; it has"
                f" {', '.join(sorted(dtype.name for dtype in NAMES))}"
            )
        if NAMES[of.array.dtype] == PACKED and np.prod(of.array.shape) % 2:
            raise SpecError(f"{of.name!r} has an odd number of float4, which fill no whole bytes")


def _dealt(tensors: Sequence[Named], shard_bytes: int) -> list[list[Named]]:
    shards: list[list[Named]] = [[]]
    size = 0
    for of in tensors:
        if shards[-1] and size + of.num_bytes > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(of)
        size += of.num_bytes
    # Wide numbers first, so that each lies at a multiple of its own size.
    return [sorted(of, key=lambda t: -t.array.dtype.itemsize) for of in shards]


def _write(path: Path, tensors: Sequence[Named], count: Any) -> str:
    """One file, through to the disk; gives its sha256."""
    header: dict[str, Any] = {METADATA: {"format": "pt"}}
    end = 0
    for of in tensors:
        header[of.name] = {
            "dtype": NAMES[of.array.dtype],
            "shape": list(of.array.shape),
            "data_offsets": [end, end + of.num_bytes],
        }
        end += of.num_bytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % ALIGNMENT)
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for part in (len(text).to_bytes(8, "little"), text):
            file.write(part)
            digest.update(part)
        for of in tensors:
            raw = _bytes_of(of)
            file.write(raw)
            digest.update(raw)
            count(of.num_bytes)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


def _bytes_of(of: Named) -> Any:
    values = np.ascontiguousarray(read_all(of.array)).astype(of.array.dtype, copy=False)
    raw = values.reshape(-1).view(np.uint8)
    if NAMES[of.array.dtype] != PACKED:
        return raw.data
    return (raw[::2] & 15 | raw[1::2] << 4).data
