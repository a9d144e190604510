"""A folder that is there as a whole, or is what it was before: how a save survives being killed.

A save writes a folder beside the one that it replaces, through to the disk, and only then swaps
the two by name. Between the two renames the earlier one lies beside under a name that readers know
(`standing`), so that at every moment a whole folder can be found. One save at a time per path.
"""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from gimlax.errors import BackendError, SpecError
from gimlax.models.manifest import MANIFEST, files_of, read_manifest

__all__ = ["replacing", "standing"]

MAX_LISTED = 4


def standing(path: Path) -> Path:
    """Where the folder of `path` is: there, or beside if a save was killed as it swapped them."""
    previous = _beside(path, "previous")
    return previous if not path.exists() and (previous / MANIFEST).is_file() else path


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A block that makes a folder, which takes the place of `path` when the block ends well.

    The block gets a path where nothing is, and has written a manifest there when it ends.

    Raises:
        SpecError: there is something that no save has written, and would be lost.
        BackendError: the disk is full, or may not be written.
    """
    path = path.resolve()  # a link stays one
    work, previous = _beside(path, "saving"), _beside(path, "previous")
    new = work / path.name
    try:
        _check_replaceable(path)
        if not path.exists() and previous.exists():
            previous.rename(path)
        for rest in (work, previous):
            if rest.exists():
                shutil.rmtree(rest)
        work.mkdir()
        try:
            yield new
            _sync(new)
            if path.exists():
                path.rename(previous)
            new.rename(path)
        except BaseException:
            shutil.rmtree(work, ignore_errors=True)
            if not path.exists() and previous.exists():
                previous.rename(path)
            raise
    except OSError as error:
        raise BackendError(
            f"'{path}' could not be saved: {error.strerror or error}; what was there before still"
            " is"
        ) from error
    try:
        _sync_folder(path.parent)
        for rest in (work, previous):
            if rest.exists():
                shutil.rmtree(rest)
    except OSError as error:
        raise BackendError(
            f"'{path}' is saved as a whole, but '{error.filename or path.parent}', which the save"
            f" made, could not be removed or brought to the disk: {error.strerror or error}; remove"
            f" '{work}' and '{previous}'"
        ) from error


def _beside(path: Path, what: str) -> Path:
    path = path.resolve()
    return path.with_name(f".{path.name}.{what}")


def _check_replaceable(path: Path) -> None:
    """Only an empty folder, or what a save has written, may be replaced."""
    if not path.parent.is_dir():
        raise SpecError(f"'{path}' lies in no folder that exists; create '{path.parent}'")
    if not path.exists():
        return
    if not path.is_dir():
        raise SpecError(f"'{path}' is a file, and a save is a folder; give another path")
    others = set(files_of(path)) - set(read_manifest(path) or ())
    if others:
        names = ", ".join(map(repr, sorted(others)[:MAX_LISTED]))
        raise SpecError(
            f"'{path}' has {len(others)} files that no save has written ({names}"
            f"{', ...' if len(others) > MAX_LISTED else ''}), which would be lost; give another"
            " path"
        )


def _sync(folder: Path) -> None:
    """Everything in a folder, through to the disk."""
    for root, _, names in os.walk(folder):
        for name in names:
            descriptor = os.open(os.path.join(root, name), os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        _sync_folder(Path(root))


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
