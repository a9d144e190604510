"""Trying a candidate in a process of its own: what hangs, aborts or lies there does no harm here.

The child loads just that candidate, starts its client and asks what it can do, reporting each step
as a line of JSON; so when it dies, the last line says at what. The parent waits with a time limit.
"""

import dataclasses
import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from gimlax import _jax
from gimlax.devices.asking import QUESTIONS, Finding, ask
from gimlax.devices.backends import Capabilities
from gimlax.devices.candidates import Candidate
from gimlax.devices.trouble import explain

__all__ = ["Answer", "answer", "load", "probe", "understand"]

# The package without its __init__: the child needs JAX and this part of gimlax, not all of it.
_CHILD = """\
import json, sys, types
request = json.loads(sys.argv[1])
sys.path[:] = request["sys_path"]
package = types.ModuleType("gimlax")
package.__path__ = [request["package"]]
sys.modules["gimlax"] = package
from gimlax.devices.probe import answer
answer(request)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What became of a candidate: `names` are the backends that it registered and that started.

    `reason` says what went wrong, empty if nothing did. `capabilities` has one for each name.
    """

    candidate: Candidate
    names: tuple[str, ...] = ()
    reason: str = ""
    capabilities: tuple[Capabilities, ...] = ()


def probe(candidate: Candidate, allowed: tuple[str, ...] | None, timeout_s: float) -> Answer:
    """Tries a candidate in a child process.

    Args:
        candidate: what to try.
        allowed: names that may be started, None for all.
        timeout_s: after so long the child is ended.
    """
    request = {
        "candidate": dataclasses.asdict(candidate),
        "allowed": allowed,
        "sys_path": sys.path,
        "package": str(Path(__file__).parent.parent),
    }
    child = subprocess.Popen(
        [sys.executable, "-c", _CHILD, json.dumps(request)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # The child leaves at once; memory that it claimed for good would fail it on a busy device.
        env={**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"},
        start_new_session=True,
        text=True,
        errors="replace",
    )
    try:
        said, complaints = child.communicate(timeout=timeout_s)
        late = False
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        said, complaints = child.communicate()
        late = True
    return understand(candidate, said, complaints, child.returncode, timeout_s if late else None)


def understand(
    candidate: Candidate, said: str, complaints: str, returncode: int, limit_s: float | None
) -> Answer:
    """The answer in what a child said before it ended."""
    doing = "starting Python and JAX"
    names: list[str] = []
    findings: dict[str, list[Finding]] = {}
    reason = ""
    done = False
    for line in said.splitlines():
        report = json.loads(line)
        doing = report.get("doing", doing)
        reason = report.get("reason", reason)
        done = done or "done" in report
        if "started" in report:
            names.append(report["started"])
        if "finding" in report:
            findings.setdefault(names[-1], []).append(tuple(report["finding"]))
    if not done:
        if limit_s is not None:
            end = f"no answer within {limit_s:g} s while {doing}"
        else:
            how = signal.Signals(-returncode).name if returncode < 0 else f"status {returncode}"
            last = [line.strip() for line in complaints.splitlines() if line.strip()][-1:]
            end = f"its process ended with {how} while {doing}" + "".join(f": {x}" for x in last)
        if names and doing.startswith("asking"):
            # It started, so it is usable; what it was asked last is what it cannot do.
            findings.setdefault(names[-1], []).append((doing.split()[-1], False, end))
        else:
            reason, names = end, []
    return Answer(
        candidate=candidate,
        names=tuple(names),
        reason=explain(reason),
        capabilities=tuple(Capabilities.of(findings.get(name, ())) for name in names),
    )


def answer(request: dict[str, Any]) -> None:
    """The child's part: loads, starts and asks, and says so on what was standard output."""
    reports = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # a plugin may print

    def say(**report: Any) -> None:
        print(json.dumps(report), file=reports)

    allowed: list[str] | None = request["allowed"]
    candidate = Candidate(**request["candidate"])
    try:
        say(doing="loading it")
        names = load(candidate)
        wanted = [name for name in names if name in (allowed or names)]
        if not names:
            say(reason="it registered no backend with JAX")
        elif not wanted:
            say(reason=f"left out by JAX_PLATFORMS={','.join(allowed or ())}")
        else:
            say(doing="starting its client")
            # JAX passes over some backends in silence where it sees no hardware, and cannot do
            # without any, so its own stands behind.
            _jax.initialise_backends([*wanted, "cpu"])
        for name in wanted:
            if name not in _jax.backend_names():
                say(reason="JAX skipped it: it sees no such hardware")
                continue
            say(started=name)
            device = jax.local_devices(backend=name)[0]
            for capability in QUESTIONS:
                say(doing=f"asking for {capability}")
                say(finding=ask(capability, device))
    except Exception as error:
        cause = error.__context__ or error
        say(reason=(str(cause) or type(cause).__name__).splitlines()[0])
    say(done=True)


def load(candidate: Candidate) -> tuple[str, ...]:
    """Makes JAX know a candidate, and returns the names under which it can be started."""
    if candidate.module:
        return _jax.register_module(candidate.module)
    if candidate.library:
        _jax.register_plugin(
            candidate.name,
            candidate.library,
            dict(candidate.options),
            priority=candidate.priority,
        )
    return (candidate.name,)
