"""Files that are mapped, and what they were at that moment: weights are read long after.

A mapping shows whatever is in its file now. A file that was replaced by name does no harm, for the
mapping keeps the earlier one; one that was written into gives numbers that nobody loaded, which
shows in its size or time of change alone.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

__all__ = ["Mapped", "Stamp", "map_file", "stamp_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stamp:
    """Which file it is, and what tells whether it was changed."""

    device: int
    inode: int
    num_bytes: int
    changed_ns: int

    def is_written_over(self, path: Path) -> bool:
        """Whether the very file at `path` was changed since; not so if another took its place."""
        try:
            now = stamp_of(os.stat(path))
        except OSError:
            return False
        return now != self and (now.device, now.inode) == (self.device, self.inode)


def stamp_of(found: os.stat_result) -> Stamp:
    """The stamp of a file with this status."""
    return Stamp(
        device=found.st_dev,
        inode=found.st_ino,
        num_bytes=found.st_size,
        changed_ns=found.st_mtime_ns,
    )


class Mapped(np.memmap):
    """A mapped file, or a view of one; `stamp` is of when it was mapped."""

    stamp: Stamp | None = None

    def __array_finalize__(self, obj: Any) -> None:
        super().__array_finalize__(obj)
        self.stamp = getattr(obj, "stamp", None)


def map_file(file: BinaryIO) -> Mapped:
    """All bytes of an open file, which cannot be written."""
    stamp = stamp_of(os.fstat(file.fileno()))
    data = np.memmap(file, np.uint8, mode="r").view(Mapped)
    data.stamp = stamp
    return data
