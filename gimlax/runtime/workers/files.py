"""Parameters that lie in a file: a worker that can read the very same one reads them itself.

Only an array over a whole mapping of a file (`np.memmap`, or a view of one) says where it lies.
The worker checks that the file has the size and the time of change that it has here; if not, the
bytes are sent to it. So they are if another file lies there by now than the one that is mapped.
"""

import mmap
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from gimlax.errors import BackendError
from gimlax.mapped import Mapped, stamp_of
from gimlax.runtime.workers.wire import dtype_named, name_of

__all__ = ["read_filed", "where_filed"]


def where_filed(array: Any) -> list[Any] | None:
    """Where an array lies: path, offset, dtype, shape, bytes of the file and when it was changed.

    None if it lies in no file, not in one piece, or if this process may have changed its copy.
    """
    if type(array) not in (np.memmap, Mapped) or array.mode == "c" or not array.flags.c_contiguous:
        return None
    mapped, path = getattr(array, "_mmap", None), array.filename
    name = name_of(array.dtype)
    if mapped is None or path is None or name is None or not array.size:
        return None
    begins = array.offset - array.offset % mmap.ALLOCATIONGRANULARITY
    inside = array.ctypes.data - np.frombuffer(mapped, np.uint8).ctypes.data
    if not 0 <= inside <= len(mapped) - array.nbytes:
        return None
    try:
        found = os.stat(path)
    except OSError:
        return None
    if isinstance(array, Mapped) and array.stamp != stamp_of(found):
        return None
    where = os.path.abspath(path)
    return [where, begins + inside, name, list(array.shape), found.st_size, found.st_mtime_ns]


def read_filed(where: Sequence[Any]) -> np.ndarray:
    """The array that lies there.

    Raises:
        BackendError: there is no such file here, or it is another one.
    """
    path, offset, name, shape, num_bytes, changed_ns = where
    dtype = dtype_named(name)
    try:
        found = os.stat(path)
        if (found.st_size, found.st_mtime_ns) != (num_bytes, changed_ns):
            raise BackendError(
                f"file {path!r} has {found.st_size} bytes here and was changed at"
                f" {found.st_mtime_ns} ns; the controller has {num_bytes}, changed at {changed_ns}"
            )
        return np.memmap(path, dtype, "r", offset, tuple(shape))
    except (OSError, ValueError) as error:
        raise BackendError(f"file {path!r} cannot be read here: {error}") from error
