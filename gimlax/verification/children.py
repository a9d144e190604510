"""A child process that compiles one stage: started, watched, and ended, whatever happens in it.

Compilers for other hardware are large libraries that abort, hang, print and disturb each other, so
each stage has a process of its own, with a time limit. What it prints is kept out of the terminal;
the end of it is in the error if it fails. Units: seconds, bytes.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path

from gimlax.devices.reading import read_text
from gimlax.errors import BackendError
from gimlax.records import from_json
from gimlax.runtime.exporting import ExportedStage
from gimlax.verification.answers import ANSWER_VERSION, Answer
from gimlax.verification.child import ANSWER, REQUEST, write_stage
from gimlax.verification.targets import Target
from gimlax.verification.toolchains import Toolchain

__all__ = ["Children"]

_MOST_ANSWERED = 2**20
_MOST_KEPT = 64 * 2**10
_SHOWN_LINES = 3
# The package without its __init__, from the parent's folder: the child's environment needs JAX, no
# gimlax. Only the parent's own interpreter looks where the parent looks.
_CHILD = """\
import os, sys, threading, types
# The end of the parent is the end of its standard input.
threading.Thread(target=lambda: (os.read(0, 1), os._exit(1)), daemon=True).start()
package, folder, *path = sys.argv[1:]
sys.path[:] = path or sys.path[1:]
module = types.ModuleType("gimlax")
module.__path__ = [package]
sys.modules["gimlax"] = module
from pathlib import Path
from gimlax.verification.child import main
main(Path(folder))
os._exit(0)  # it has answered; what libraries do at their end is of no interest
"""
# What the parent's backends are told is none of the child's business, and flags of one XLA end
# the process of another.
_NOT_INHERITED = ("XLA_FLAGS", "PJRT_NAMES_AND_LIBRARY_PATHS", "PYTHONPATH", "PYTHONHOME")


class Children:
    """All child processes of one verification, so that none outlives it."""

    def __init__(self, time_limit_s: float) -> None:
        """Starts none yet; each may take `time_limit_s`."""
        self._time_limit_s = time_limit_s
        self._alive: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()
        self._closed = False

    def compile(self, stage: ExportedStage, target: Target, toolchain: Toolchain) -> Answer:
        """Compiles a stage in a child.

        Raises:
            BackendError: the child did not answer in time, ended before it answered, or answered
                something that is no answer; with the end of what it printed.
        """
        folder = Path(tempfile.mkdtemp(prefix="gimlax-verify-"))
        try:
            write_stage(stage, folder)
            request = {
                "platform": target.platform,
                "topology": target.topology,
                "options": target.options,
            }
            (folder / REQUEST).write_text(json.dumps(request), "utf-8")
            num_devices = 1
            for _, size in stage.axes:
                num_devices *= size
            self._run(toolchain, folder, _environment(target, num_devices), stage.description)
            text = read_text(
                folder / ANSWER,
                f"answer of {toolchain}",
                most_bytes=_MOST_ANSWERED,
                advice="report it, with the versions that it ran under",
                error=BackendError,
            )
            return from_json(
                Answer,
                text,
                ANSWER_VERSION,
                f"answer of {toolchain}",
                error=BackendError,
                advice="report it, with the versions that it ran under",
            )
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def close(self) -> None:
        """Ends every child that still runs and starts no other."""
        with self._lock:
            self._closed = True
            alive = list(self._alive)
        for child in alive:
            _kill(child)

    def _run(
        self, toolchain: Toolchain, folder: Path, environment: Mapping[str, str], what: str
    ) -> None:
        package = str(Path(__file__).parent.parent)
        own = sys.path if toolchain.is_own else ()
        start_s = time.monotonic()
        with self._lock:
            if self._closed:
                raise BackendError(f"{what} was not compiled: the verification was ended")
            child = subprocess.Popen(
                [toolchain.python, "-c", _CHILD, package, str(folder), *own],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=dict(environment),
                cwd=folder,
                start_new_session=True,
            )
            self._alive.add(child)
        said: deque[bytes] = deque()
        listener = threading.Thread(target=_listen, args=(child, said), daemon=True)
        listener.start()
        late = False
        try:
            child.wait(self._time_limit_s)
        except subprocess.TimeoutExpired:
            late = True
        finally:
            _kill(child)
            listener.join()
            with self._lock:
                self._alive.discard(child)
        if late or child.returncode or not (folder / ANSWER).is_file():
            raise BackendError(
                f"{toolchain} {_ending(child, late, time.monotonic() - start_s)} while it compiled"
                f" {what}{_last(said)}"
            )


def _ending(child: subprocess.Popen[bytes], late: bool, seconds: float) -> str:
    if late:
        return f"gave no answer within {seconds:.0f} s"
    if child.returncode < 0:
        try:
            name = signal.Signals(-child.returncode).name
        except ValueError:
            name = f"signal {-child.returncode}"
        return f"was ended by {name} after {seconds:.0f} s"
    if child.returncode:
        return f"ended with status {child.returncode} after {seconds:.0f} s"
    return f"ended without an answer after {seconds:.0f} s"


def _last(said: deque[bytes]) -> str:
    text = b"".join(said).decode("utf-8", "replace")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    shown = " / ".join(
        "".join(letter if letter.isprintable() else "?" for letter in line)[:300]
        for line in lines[-_SHOWN_LINES:]
    )
    return f"; it said last: {shown}" if shown else "; it said nothing"


def _listen(child: subprocess.Popen[bytes], said: deque[bytes]) -> None:
    """Keeps the end of what a child prints, however much that is."""
    assert child.stdout is not None and child.stdin is not None
    kept = 0
    with child.stdin, child.stdout as stream:
        while chunk := os.read(stream.fileno(), 2**14):
            said.append(chunk)
            kept += len(chunk)
            while kept - len(said[0]) > _MOST_KEPT:
                kept -= len(said.popleft())


def _kill(child: subprocess.Popen[bytes]) -> None:
    """Ends a child and whatever it started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def _environment(target: Target, num_devices: int) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if key not in _NOT_INHERITED}
    kept["JAX_PLATFORMS"] = "cpu"  # no live device is wanted, and looking for some may hang
    kept["TPU_SKIP_MDS_QUERY"] = "1"
    kept["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"
    if target.platform == "cpu":
        kept["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={num_devices}"
    return kept
