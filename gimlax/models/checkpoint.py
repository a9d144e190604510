"""The tensors of a folder of safetensors files, one file or many with an index.

An index (`model.safetensors.index.json`) says which file has which tensor. It is untrusted as the
files are: it may name no file outside of its folder, and index and files have to agree.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np

from gimlax.errors import SpecError
from gimlax.models.foreign import HOW, NUM_BYTES, recognise
from gimlax.models.leaves import Held
from gimlax.models.safetensors import (
    Safetensors,
    StoredTensor,
    parse_json,
    read_safetensors,
)

__all__ = ["Checkpoint", "read_checkpoint", "read_json"]

MAX_JSON_BYTES = 100_000_000
SUFFIX = ".safetensors"
INDEX_SUFFIX = ".safetensors.index.json"
UNSAFE = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Checkpoint:
    """Tensors by name, each with the file that has it; nothing is read."""

    path: Path
    files: Mapping[str, Safetensors]  # by the name of the tensor

    def __getitem__(self, name: str) -> StoredTensor:
        return self.files[name].tensors[name]

    def read(self, name: str, index: tuple[slice, ...] = ()) -> np.ndarray:
        """Tensor `name`, or the part of it at an index; see `Safetensors.read`."""
        return self.files[name].read(name)[index]

    def num_bytes(self, name: str) -> int:
        """That tensor `name` takes in its file."""
        return self[name].num_bytes

    def drop(self, name: str) -> None:
        """See `Safetensors.drop`."""
        self.files[name].drop(name)

    def held(self) -> dict[str, Held]:
        """Shapes and dtypes of all tensors."""
        stored = {name: self[name] for name in self.files}
        return {
            name: Held(shape=info.shape, dtype=info.dtype, numpy=info.numpy)
            for name, info in stored.items()
        }


def read_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Opens the safetensors file at `path`, or those of the folder there.

    Raises:
        SpecError: there is none, one is not sound, or index and files do not agree.
    """
    path = Path(path)
    if not path.is_dir():
        file = read_safetensors(path)
        return _of(path, [file])
    indexes = sorted(path.glob(f"*{INDEX_SUFFIX}"))
    if len(indexes) > 1:
        names = ", ".join(repr(index.name) for index in indexes)
        raise SpecError(f"'{path}' has several indexes, {names}; leave one there")
    if indexes:
        return _indexed(path, indexes[0])
    files = sorted(path.glob(f"*{SUFFIX}"))
    if len(files) > 1:
        files = [file for file in files if _has_variants(file, files)] or files
    if len(files) > 1:
        names = ", ".join(repr(file.name) for file in files[:4])
        raise SpecError(
            f"'{path}' has {len(files)} safetensors files ({names}) and no index that says which"
            " belong together; add the index, or give the path of one file"
        )
    if not files:
        raise SpecError(f"'{path}' has no safetensors file; {_instead(path)}")
    return _of(path, [read_safetensors(files[0])])


def read_json(path: Path, what: str) -> dict:
    """The object in a JSON file of moderate size.

    Raises:
        SpecError: it cannot be read, is too large, or holds something else.
    """
    try:
        with path.open("rb") as file:
            text = file.read(MAX_JSON_BYTES + 1)
    except OSError as error:
        raise SpecError(f"{what} '{path}' cannot be read: {error.strerror or error}") from error
    if len(text) > MAX_JSON_BYTES:
        raise SpecError(f"{what} '{path}' has more than {MAX_JSON_BYTES} bytes")
    found = parse_json(path, what, text)
    if not isinstance(found, dict):
        raise SpecError(f"{what} '{path}' holds a {type(found).__name__}, not an object")
    return found


def _indexed(path: Path, index: Path) -> Checkpoint:
    """All files that an index names, checked against it."""
    where = read_json(index, "index").get("weight_map")
    if not isinstance(where, dict) or not all(isinstance(name, str) for name in where.values()):
        raise SpecError(f"index '{index}' has no 'weight_map' from tensors to files")
    names = sorted(set(where.values()))
    for name in names:
        if not _is_plain(name):
            raise SpecError(
                f"index '{index}' names {name!r}, which is no file of its own folder; download the"
                " model again from where you trust it"
            )
    missing = [name for name in names if not (path / name).is_file()]
    if missing:
        raise SpecError(
            f"'{path}' lacks {len(missing)} of the {len(names)} files that '{index.name}' names: "
            f"{', '.join(map(repr, missing[:4]))}{', ...' if len(missing) > 4 else ''}; download"
            " them again"
        )
    files = {name: read_safetensors(path / name) for name in names}
    found = _of(path, list(files.values()))
    absent = [tensor for tensor, name in where.items() if tensor not in files[name].tensors]
    if absent:
        raise SpecError(
            f"file '{path / where[absent[0]]}' has no tensor {absent[0]!r}, which '{index.name}'"
            f" says is there, and {len(absent) - 1} more are amiss; download it again"
        )
    extra = [tensor for tensor in found.files if tensor not in where]
    if extra:
        raise SpecError(
            f"file '{found.files[extra[0]].path}' has tensor {extra[0]!r}, which '{index.name}'"
            f" does not name, and {len(extra) - 1} more are amiss; download both again"
        )
    return found


def _has_variants(file: Path, files: list[Path]) -> bool:
    """Whether all others are the same in another form: `model.fp16.safetensors` beside
    `model.safetensors`, as Stable Diffusion is published."""
    stem = file.name.removesuffix(SUFFIX)
    return all(other == file or other.name.startswith(f"{stem}.") for other in files)


def _is_plain(name: str) -> bool:
    return bool(name) and name not in (".", "..") and not set(name) & set("/\\\0")


def _of(path: Path, files: list[Safetensors]) -> Checkpoint:
    """Files whose tensors are all different."""
    found: dict[str, Safetensors] = {}
    for file in files:
        for name in file.tensors:
            if name in found:
                raise SpecError(
                    f"tensor {name[:200]!r} is in '{found[name].path}' and in '{file.path}';"
                    " download both again"
                )
            found[name] = file
    return Checkpoint(path=path, files=MappingProxyType(found))


def _instead(path: Path) -> str:
    """What to do about a folder without safetensors, by what else is there."""
    for file in sorted(path.iterdir()):
        if file.suffix in UNSAFE and file.is_file():
            with file.open("rb") as opened:
                what = recognise(opened.read(NUM_BYTES)) or "not known to gimlax"
            return f"'{file.name}' is {what}; {HOW}"
    return "give a folder that `save_pretrained` of transformers wrote"
