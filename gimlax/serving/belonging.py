"""What rows depend on besides their input: the bytes of the files of a model.

A folder can have other weights tomorrow, under the same names and of the same sizes. Chosen over
times of change, which are others on the machine that takes a job over with a copy of its own.
"""

import hashlib
from pathlib import Path

from gimlax.errors import SpecError

__all__ = ["digests_of"]

# What readers of models open; whatever else lies in a folder, such as outputs, is let be.
SUFFIXES = {".safetensors", ".gguf", ".json", ".txt", ".jinja", ".model"}
# A checkpoint of Orbax has files of any name, beside which outputs can lie as well.
ORBAX = "_METADATA"
OUTPUTS = {".jsonl", ".npy", ".npz", ".part", ".job", ".rows", ".new"}


def digests_of(path: Path) -> dict[str, str]:
    """The sha256 of a model's file, or of each in its folder, by path from where `path` is.

    Raises:
      SpecError: one cannot be read.
    """
    try:
        return {str(of.relative_to(path.parent)): _sha256(of) for of in _files(path)}
    except OSError as error:
        raise SpecError(f"model '{path}' cannot be read: {error}") from error


def _sha256(path: Path) -> str:
    """The sha256 of a file; raises `OSError`."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    if (path / ORBAX).is_file():
        return sorted(of for of in path.rglob("*") if of.is_file() and of.suffix not in OUTPUTS)
    modules = path.glob("[0-9]*_*/*")  # of sentence encoders, as in 1_Pooling/config.json
    found = (of for of in (*path.iterdir(), *modules) if of.is_file())
    return sorted(of for of in found if of.suffix in SUFFIXES)
