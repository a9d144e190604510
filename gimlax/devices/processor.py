"""What the processor of this machine is called: PJRT says no more than "cpu"."""

import os
import platform
from pathlib import Path

__all__ = ["processor_name"]


def processor_name() -> str:
    """The model of the processor and how many of its cores this process may use, as far as the
    system says."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        lines = []
    said = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    name = said.get("model name") or platform.processor() or platform.machine()
    family = " ".join(f"{k} {said[k]}" for k in ("cpu family", "model") if k in said)
    return f"{name} ({family}), {_num_cores()} cores" if family else name


def _num_cores() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # no Linux
        return os.cpu_count() or 1
