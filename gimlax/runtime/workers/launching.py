"""Starting workers: the seam, and child processes of this host behind it.

A launcher starts a process with an environment of its own, hands it a secret and learns its
address. It also ends it, whatever state it is in: a worker that was stopped does not react to being
asked.
"""

import contextlib
import json
import os
import queue
import secrets
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol

from gimlax.devices import WorkerSpec
from gimlax.errors import BackendError, SpecError
from gimlax.runtime.workers.connection import Address

__all__ = [
    "SECRET_BYTES",
    "ChildProcesses",
    "Launched",
    "Launcher",
    "environment_of",
]

SECRET_BYTES = 32
_LAST_LINES = 5


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Launched:
    """A process that was started: where it listens, what it has to know, and how to end it.

    `host` is the address by which others reach its host, empty for this one. `said` gives the last
    lines that it wrote, for messages about its end. `watch` calls with the reason when the launcher
    itself learns that the process has ended, if it does.
    """

    address: Address
    host: str
    secret: bytes
    kill: Callable[[], None]
    said: Callable[[], str]
    watch: Callable[[Callable[[str], None]], None] = lambda call: None


class Launcher(Protocol):
    """Starts and ends the processes of workers."""

    def start(self, spec: WorkerSpec, place: int = 0, *, timeout_s: float) -> Launched:
        """Starts the process of a worker on one of its places, and waits until it listens.

        Raises:
            BackendError: it ended before, or took longer; says what it wrote.
        """
        ...

    def close(self) -> None:
        """Ends all that it started."""
        ...


def environment_of(spec: WorkerSpec) -> dict[str, str]:
    """The environment variables that make a worker's process differ from this one."""
    changed = {"XLA_FLAGS": spec.flags}
    if spec.platforms:
        changed["JAX_PLATFORMS"] = spec.platforms
    return changed


class ChildProcesses:
    """Workers of this host as children of this process, which the system ends with it."""

    def __init__(self) -> None:
        self._children: list[subprocess.Popen[bytes]] = []
        self._wanted: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._closed = False
        # The system kills a child when the *thread* that started it ends, so one thread starts all
        # and lives as long as this launcher. It also has the affinity that a child inherits.
        self._thread = threading.Thread(target=self._spawn_all, name="gimlax spawn", daemon=True)
        self._thread.start()

    def start(self, spec: WorkerSpec, place: int = 0, *, timeout_s: float) -> Launched:
        """See `Launcher`."""
        if host := spec.places[place]:
            raise SpecError(
                f"worker {spec.name!r} is on host {host!r}: only Ray starts workers on other"
                " hosts; call gimlax.start_workers(cluster, ray=True)"
            )
        return self.launch(spec, [], listen="", timeout_s=timeout_s)

    def close(self) -> None:
        """See `Launcher`."""
        with self._lock:
            self._closed = True
            self._wanted.put(None)
        self._thread.join()
        for child in self._children:
            _kill(child)

    def launch(
        self, spec: WorkerSpec, prefix: Sequence[str], *, listen: str, timeout_s: float
    ) -> Launched:
        """The same behind a command that runs what follows it, as `ip netns exec NAME` does.

        Args:
            spec: of the worker.
            prefix: the command, to which Python and its arguments are added.
            listen: address that it listens at for others too; empty for this host only.
            timeout_s: how long it may take.
        """
        spawned: Future[subprocess.Popen[bytes]] = Future()
        with self._lock:
            if self._closed:
                raise BackendError(
                    f"worker {spec.name!r} cannot be started: its workers were closed"
                )
            self._wanted.put((spec, prefix, spawned))
        child = spawned.result()
        said = _Said(child)
        secret = secrets.token_bytes(SECRET_BYTES)
        assert child.stdin is not None and child.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            child.stdin.write(
                json.dumps({"secret": secret.hex(), "listen": listen}).encode() + b"\n"
            )
            child.stdin.flush()
        answer: Future[bytes] = Future()
        output = child.stdout
        threading.Thread(target=lambda: answer.set_result(output.readline()), daemon=True).start()
        try:
            line = answer.result(timeout_s)
        except TimeoutError:
            _kill(child)
            raise BackendError(
                f"worker {spec.name!r} did not start within {timeout_s:g} s; {said()}"
            ) from None
        if not line:
            code = child.wait()
            raise BackendError(
                f"worker {spec.name!r} ended at its start with exit code {code}; {said()}"
            )
        kind, name, port = json.loads(line)["address"]
        return Launched(
            address=(kind, name, port),
            host=listen,
            secret=secret,
            kill=lambda: _kill(child),
            said=said,
        )

    def _spawn_all(self) -> None:
        while (item := self._wanted.get()) is not None:
            spec, prefix, spawned = item
            try:
                spawned.set_result(self._spawn(spec, prefix))
            except BaseException as error:
                spawned.set_exception(error)

    def _spawn(self, spec: WorkerSpec, prefix: Sequence[str]) -> subprocess.Popen[bytes]:
        cores = os.sched_getaffinity(0)
        if spec.cores:
            try:
                os.sched_setaffinity(0, spec.cores)
            except (OSError, OverflowError) as error:
                raise SpecError(
                    f"worker {spec.name!r} wants cores {list(spec.cores)}, this process may use"
                    f" {sorted(cores)}; correct its cores"
                ) from error
        try:
            child = subprocess.Popen(
                [*prefix, sys.executable, "-m", "gimlax.runtime.workers.process"],
                env=os.environ | environment_of(spec),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,  # Ctrl-C in a terminal is for the controller
            )
        finally:
            os.sched_setaffinity(0, cores)
        self._children.append(child)
        return child


class _Said:
    """The last lines that a child wrote to standard error; also drains the pipe."""

    def __init__(self, child: subprocess.Popen[bytes]) -> None:
        self._lines: list[str] = []
        self._thread = threading.Thread(target=self._read, args=(child,), daemon=True)
        self._thread.start()

    def __call__(self) -> str:
        self._thread.join(1.0)
        lines = "; ".join(self._lines)
        return f"it wrote: {lines}" if lines else "it wrote nothing"

    def _read(self, child: subprocess.Popen[bytes]) -> None:
        assert child.stderr is not None
        for line in child.stderr:
            text = line.decode(errors="replace").strip()
            if text:
                self._lines[:] = [*self._lines[1 - _LAST_LINES :], text]
        child.stderr.close()


def _kill(child: subprocess.Popen[bytes]) -> None:
    """Ends a child in whatever state it is, stopped included."""
    with contextlib.suppress(ProcessLookupError):
        child.send_signal(signal.SIGKILL)
    child.wait()
    for pipe in (child.stdin, child.stdout):
        with contextlib.suppress(OSError):
            if pipe is not None:
                pipe.close()
