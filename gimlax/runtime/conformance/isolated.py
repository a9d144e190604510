"""All cases in a child process, so that what aborts there is one crashed case and no more.

The child says before each case what it is about to do and after it what came out, a line of JSON
each. If it ends in between, the case that it was at has crashed, and another child goes on with the
rest.
"""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

import jax

from gimlax import _jax
from gimlax.devices.candidates import find_candidates
from gimlax.devices.probe import load
from gimlax.errors import BackendError, SpecError
from gimlax.runtime.conformance.operations import Case, cases, operations
from gimlax.runtime.conformance.report import CRASHED, Conformance, Outcome
from gimlax.runtime.conformance.running import run_case
from gimlax.runtime.probing.reference import Reference

__all__ = ["check_platform", "child"]

_CHILD = """\
import json, sys
request = json.loads(sys.argv[1])
sys.path[:] = request["sys_path"]
from gimlax.runtime.conformance.isolated import child
child(request)
"""
_SILENT_S = 300.0  # a case that takes longer hangs


def check_platform(
    platform: str,
    progress: Callable[[float, float, str], None] | None = None,
    *,
    only: Sequence[str] | None = None,
) -> Conformance:
    """Runs every case on a backend and on the reference.

    Args:
        platform: registered name of the backend.
        progress: told how many cases are done, of how many, and which is next.
        only: names of the operations to run; by default all of the list.

    Raises:
        SpecError: `only` names what is not in the list.
        BackendError: there is no such backend, or it does not start.
    """
    names = [of.name for of in operations()]
    if unknown := [name for name in only or () if name not in names]:
        raise SpecError(
            f"no operation is called {', '.join(map(repr, unknown))}; there are {', '.join(names)}"
        )
    todo = [case for case in cases() if only is None or case.operation in only]
    total = len(todo)
    outcomes: list[Outcome] = []
    about: dict[str, str] = {}
    while todo:
        at: Case | None = None
        with _Child(platform, todo) as running:
            for line in running.lines():
                if "backend" in line:
                    about = line["backend"]
                elif "begin" in line:
                    at = Case(*line["begin"])
                    if progress is not None:
                        progress(len(outcomes), total, f"{at.operation} {at.dtype}")
                elif "outcome" in line:
                    outcomes.append(Outcome(**line["outcome"]))
                    todo.remove(Case(outcomes[-1].operation, outcomes[-1].dtype))
                    at = None
            end = running.end()
        if todo:
            if at is None:
                raise BackendError(
                    f"backend {platform!r} does not start: {end}; `scripts/devices.py` lists what"
                    " there is"
                )
            todo.remove(at)
            outcomes.append(
                Outcome(operation=at.operation, dtype=at.dtype, status=CRASHED, why=end)
            )
    order = {case: k for k, case in enumerate(cases())}
    outcomes.sort(key=lambda of: order[Case(of.operation, of.dtype)])
    return Conformance(platform=platform, outcomes=tuple(outcomes), **about)


class _Child:
    """A child process at work on cases."""

    def __init__(self, platform: str, todo: Sequence[Case]) -> None:
        request = {
            "platform": platform,
            "cases": [[case.operation, case.dtype] for case in todo],
            "sys_path": sys.path,
        }
        self._process = subprocess.Popen(
            [sys.executable, "-c", _CHILD, json.dumps(request)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            text=True,
            errors="replace",
        )
        self._complaints: list[str] = []
        self._late = False
        self._reader = threading.Thread(target=self._read_complaints, daemon=True)
        self._reader.start()

    def __enter__(self) -> "_Child":
        return self

    def __exit__(self, *_: object) -> None:
        self._kill()
        self._process.wait()
        self._reader.join()
        for pipe in (self._process.stdout, self._process.stderr):
            if pipe is not None:
                pipe.close()

    def lines(self) -> Iterator[dict[str, Any]]:
        """What it says, until it ends or hangs."""
        assert self._process.stdout is not None
        while True:
            timer = threading.Timer(_SILENT_S, self._give_up)
            timer.start()
            try:
                line = self._process.stdout.readline()
            finally:
                timer.cancel()
            if not line:
                return
            yield json.loads(line)

    def end(self) -> str:
        """How it ended, in words."""
        code = self._process.wait()
        self._reader.join()
        if self._late:
            return f"nothing came within {_SILENT_S:g} s"
        how = signal.Signals(-code).name if code < 0 else f"status {code}"
        last = [line.strip() for line in self._complaints if line.strip()][-1:]
        return f"its process ended with {how}" + "".join(f": {x[:200]}" for x in last)

    def _give_up(self) -> None:
        self._late = True
        self._kill()

    def _kill(self) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)

    def _read_complaints(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self._complaints = [*self._complaints[-20:], line]


def child(request: dict[str, Any]) -> None:
    """The child's part: starts the backend and the reference's, and runs the cases."""
    reports = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # a plugin may print

    def say(**report: Any) -> None:
        print(json.dumps(report), file=reports)

    platform = request["platform"]
    device = _start(platform)
    version = getattr(device.client, "platform_version", "").splitlines()
    say(
        backend={
            "device_kind": device.device_kind,
            "version": version[0] if version else "",
            "jax": jax.__version__,
        }
    )
    reference = Reference(_jax.read_config())
    for operation, dtype in request["cases"]:
        say(begin=[operation, dtype])
        say(outcome=asdict(run_case(Case(operation, dtype), device, reference)))


def _start(platform: str) -> Any:
    """The first device of a backend, which is started beside the CPU client and nothing else."""
    if platform not in _jax.registered_backends():
        for candidate in find_candidates():
            if candidate.name == platform and not candidate.fault:
                load(candidate)
    if platform not in _jax.registered_backends():
        known = ", ".join(c.name for c in find_candidates())
        raise BackendError(f"nothing installed provides {platform!r} (there are cpu, {known})")
    _jax.initialise_backends(list(dict.fromkeys([platform, "cpu"])))
    return jax.local_devices(backend=platform)[0]
