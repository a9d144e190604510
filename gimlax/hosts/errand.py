"""What runs in a process that Ray started: one function of gimlax, named by where it is found.

Ray's other side finds this class, and the class the function, by import: gimlax is installed on
every host, and no code travels. What goes in and out is JSON.
"""

import importlib
import json
import os
import threading
from pathlib import Path
from typing import Any

__all__ = ["Errand", "marks"]

_OURS = "gimlax."


class Errand:
    """An actor of Ray: `run` once, then `stay` as long as the process shall be watched."""

    def run(self, name: str, told: str) -> str:
        """Calls a function of gimlax.

        Args:
            name: 'module:function'.
            told: its keyword arguments as JSON.

        Returns:
            JSON: `pid`, `log` (the file that standard error goes to), `marks` of the host, and
            either the `answer` or the `error` (class, sentence) of the function.
        """
        found: dict[str, Any] = {"pid": os.getpid(), "log": _log(), "marks": marks()}
        try:
            module, _, function = name.partition(":")
            if not module.startswith(_OURS):
                raise ValueError(f"{name!r} is no function of gimlax")
            call = getattr(importlib.import_module(module), function)
            found["answer"] = call(**json.loads(told))
        except Exception as error:  # told, not raised: Ray would pickle it
            found["error"] = [type(error).__name__, str(error)]
        return json.dumps(found)

    def stay(self) -> None:
        """Never returns."""
        threading.Event().wait()


def marks() -> list[str]:
    """What two processes have in common that can see each other's numbers and sockets."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return [boot, *(os.readlink(f"/proc/self/ns/{space}") for space in ("pid", "net"))]


def _log() -> str:
    """The file behind standard error, if it is one."""
    target = os.readlink("/proc/self/fd/2")
    return target if target.startswith("/") else ""
