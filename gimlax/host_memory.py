"""How much memory this host has."""

import os
from pathlib import Path

__all__ = ["host_memory_bytes"]


def host_memory_bytes() -> int:
    """Memory of this machine, or what its control group leaves of it."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for file in ("memory.max", "memory/memory.limit_in_bytes"):
        try:
            limits.append(int(Path("/sys/fs/cgroup", file).read_text()))
        except (OSError, ValueError):
            continue  # no such file, or "max"
    return min(limits)
