"""Mapped files whose pages the kernel may take back once they have been read.

Pages of a mapping count as memory of the process until it drops them, so that a model that was read
once would seem to be held twice. What is dropped is read from the file again when it is touched.
"""

import mmap

__all__ = ["drop_pages"]


def drop_pages(mapped: mmap.mmap, offset: int, num_bytes: int) -> None:
    """Drops pages that lie in this part of a mapping that cannot be written."""
    advice = getattr(mmap, "MADV_DONTNEED", None)
    start = offset - offset % mmap.PAGESIZE
    if advice is not None and num_bytes:
        mapped.madvise(advice, start, num_bytes + offset - start)
