"""What was saved, by size and sha256: neither safetensors nor Orbax notices a flipped bit.

Every save of gimlax ends with a manifest, `gimlax.manifest.json`, that names each file of its
folder. Chosen over check sums in the files themselves, whose formats are those of others.
"""

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from gimlax.errors import SpecError
from gimlax.models.checkpoint import read_json
from gimlax.models.leaves import Progress, counting

__all__ = ["MANIFEST", "check_manifest", "files_of", "read_manifest", "verified", "write_manifest"]

MANIFEST = "gimlax.manifest.json"
KIND = "gimlax manifest"
VERSION = 1
MAX_LISTED = 10
CHUNK_BYTES = 1 << 22


def files_of(folder: Path) -> list[str]:
    """Every file in a folder and its folders but the manifest, by path from there, in order."""
    found = (path.relative_to(folder) for path in folder.rglob("*") if not path.is_dir())
    return sorted(path.as_posix() for path in found if str(path) != MANIFEST)


def write_manifest(folder: Path, known: Mapping[str, str] = MappingProxyType({})) -> None:
    """Writes the manifest of all files in a folder, through to the disk.

    Args:
        folder: everything in it is complete.
        known: sha256 of files by path, where it is known already.
    """
    files = {
        name: {
            "num_bytes": (folder / name).stat().st_size,
            "sha256": known.get(name) or _sha256(folder / name, lambda num_bytes: None),
        }
        for name in files_of(folder)
    }
    text = json.dumps({"kind": KIND, "version": VERSION, "files": files}, indent=1)
    with (folder / MANIFEST).open("w", encoding="utf-8") as file:
        file.write(text + "\n")
        file.flush()
        os.fsync(file.fileno())


def read_manifest(folder: Path) -> dict[str, tuple[int, str]] | None:
    """Size and sha256 of each file by path; None if a folder has no manifest.

    Raises:
        SpecError: it is not sound, or names a file outside of its folder.
    """
    path = folder / MANIFEST
    if not path.is_file():
        return None
    found = read_json(path, "manifest")
    if (found.get("kind"), found.get("version")) != (KIND, VERSION):
        raise SpecError(
            f"manifest '{path}' is of kind {str(found.get('kind'))[:40]!r}, version"
            f" {str(found.get('version'))[:40]}; this gimlax reads version {VERSION} of {KIND!r}"
        )
    files = found.get("files")
    if not isinstance(files, dict):
        raise SpecError(f"manifest '{path}' has no 'files'; save again")
    for name, of in files.items():
        plain = name and not name.startswith("/") and not set(name) & set("\\\0")
        if not plain or not {"", ".", ".."}.isdisjoint(name.split("/")):
            raise SpecError(
                f"manifest '{path}' names {name[:200]!r}, which is no file of its own folder"
            )
        if not (
            isinstance(of, dict)
            and type(of.get("num_bytes")) is int
            and isinstance(of.get("sha256"), str)
        ):
            raise SpecError(f"manifest '{path}' has no num_bytes and sha256 of {name[:200]!r}")
    return {name: (of["num_bytes"], of["sha256"]) for name, of in files.items()}


def check_manifest(folder: Path, progress: Callable[[int], None]) -> None:
    """Compares the files of a folder with its manifest, if it has one.

    Args:
        folder: what is to be read.
        progress: called with bytes that were compared.

    Raises:
        SpecError: a file is missing, or not as it was saved; names up to ten.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        return
    faults: list[str] = []
    for name, (num_bytes, sha256) in manifest.items():
        path = folder / name
        if not path.is_file():
            faults.append(f"'{path}' is missing")
        elif path.stat().st_size != num_bytes:
            faults.append(f"'{path}' has {path.stat().st_size} bytes, saved were {num_bytes}")
        elif (found := _sha256(path, progress)) != sha256:
            faults.append(f"'{path}' has sha256 {found[:12]}..., saved was {sha256[:12]}...")
    more = [name for name in files_of(folder) if name not in manifest and _holds_weights(name)]
    faults += [f"'{folder / name}' is not of this save" for name in more]
    if faults:
        rest = f"; and {len(faults) - MAX_LISTED} more" if len(faults) > MAX_LISTED else ""
        raise SpecError(
            f"'{folder}' is not as it was saved: {'; '.join(faults[:MAX_LISTED])}{rest}; take"
            " another copy, or load without verification if it was changed on purpose"
        )


def verified(folders: Sequence[Path], progress: Progress | None) -> Progress | None:
    """Compares folders with their manifests, where they have any.

    Args:
        folders: what is to be read.
        progress: called with bytes that were compared, and twice all of them: they are read again.

    Returns:
        The progress for whoever reads the same files next: it goes on where comparing ends, and is
        `progress` itself if there was nothing to compare.

    Raises:
        SpecError: a file is not as it was saved.
    """
    sizes = [of[0] for folder in folders for of in (read_manifest(folder) or {}).values()]
    total_bytes = sum(sizes)
    count = counting(progress, 2 * total_bytes)

    def read(part_bytes: int, whole_bytes: int) -> None:
        if progress is not None:
            again_bytes = total_bytes * part_bytes // max(1, whole_bytes)
            progress(total_bytes + again_bytes, 2 * total_bytes)

    for folder in folders:
        check_manifest(folder, count)
    return read if total_bytes else progress


def _holds_weights(name: str) -> bool:
    return name.endswith((".safetensors", ".safetensors.index.json"))


def _sha256(path: Path, progress: Callable[[int], None]) -> str:
    found = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            found.update(chunk)
            progress(len(chunk))
    return found.hexdigest()
