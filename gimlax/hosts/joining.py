"""This side of Ray: whom to join and whether that is safe, its nodes, and processes on them."""

import contextlib
import importlib.metadata
import itertools
import json
import os
import re
import secrets
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from gimlax import errors
from gimlax.errors import BackendError, GimlaxError, SpecError
from gimlax.hosts.errand import marks

__all__ = ["Hosts", "Node", "Running", "join"]

_FLOOR = (2, 60)
_ENDING_S = 10.0
_LAST_LINES = 5
_TOKEN_BYTES = 32
_ADVICE = (
    "check that `ray start` has run there, and that RAY_AUTH_TOKEN or ~/.ray/auth_token is the"
    " token of that Ray"
)

# The package without its __init__: the child needs Ray and this part of gimlax, not JAX.
_CHILD = """\
import sys, types
package = types.ModuleType("gimlax")
package.__path__ = [sys.argv[1]]
sys.modules["gimlax"] = package
from gimlax.hosts.steward import main
main()
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A host of Ray: its id and address there, its name, and whether this process is on it."""

    id: str
    address: str
    name: str
    here: bool


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Running:
    """A process on a node: what its function answered, and how to end it.

    `said` gives the last lines that it wrote, where they can be read from here, else where they
    are. `watch` calls once with the reason if Ray learns that the process has ended.
    """

    pid: int
    answer: Any
    kill: Callable[[], None]
    said: Callable[[], str]
    watch: Callable[[Callable[[str], None]], None]


def join(address: str = "", *, insecure: bool = False, timeout_s: float = 60.0) -> "Hosts":
    """Joins the Ray at an address, or starts one on the loopback of this host.

    One that is started has token authentication, no dashboard, and ends with this process.

    Args:
        address: 'host:port' where this host is a node of it, 'ray://host:port' where not; empty
            starts one.
        insecure: joins without a token, so that whoever reaches Ray's ports can run anything.
        timeout_s: how long Ray may take to answer.

    Raises:
        SpecError: Ray is not installed, or there is no token to join with.
        BackendError: nobody answers at the address.
    """
    _require_ray()
    if address:
        place = re.fullmatch(r"(?:ray://)?(.+):(\d+)", address)
        if place is None:
            raise SpecError(
                f"{address!r} is no address of a Ray; give 'host:port', or 'ray://host:port'"
            )
        if not insecure:
            _require_token(address)
        try:  # Ray itself would try for a minute, and not say why
            socket.create_connection((place[1], int(place[2])), timeout_s).close()
        except OSError as error:
            raise BackendError(f"cannot join Ray at {address!r}: {error}; {_ADVICE}") from error
    return Hosts(address, insecure, timeout_s)


class Hosts:
    """The nodes of a Ray, until `close`; a context manager."""

    def __init__(self, address: str, insecure: bool, timeout_s: float) -> None:
        """See `join`."""
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self._asked: dict[int, Future[Any]] = {}
        self._ended: dict[str, Future[str]] = {}
        self._steward = subprocess.Popen(
            [sys.executable, "-c", _CHILD, str(Path(__file__).parent.parent)],
            env=_environment(address, insecure),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C in a terminal is for this process
        )
        self._complaints: list[str] = []
        self._threads = [
            threading.Thread(target=target, name="gimlax ray", daemon=True)
            for target in (self._hear, self._collect)
        ]
        for thread in self._threads:
            thread.start()
        where = f"at {address!r}" if address else "on this host"
        try:
            found = self._ask("open", {"address": address}).result(timeout_s)
        except TimeoutError:
            self.close()
            raise BackendError(
                f"Ray {where} did not answer within {timeout_s:g} s; {self._said()}"
            ) from None
        except BackendError as error:
            self.close()
            raise BackendError(
                f"cannot {'join' if address else 'start'} Ray {where}: {error}"
                f"{f'; {_ADVICE}' if address else ''}"
            ) from error
        except BaseException:
            self.close()
            raise
        self.nodes = tuple(
            Node(**node, here=node["id"] == found["here"]) for node in found["nodes"]
        )

    def node_of(self, host: str, whose: str) -> Node:
        """The node of a host: by its address or name, or the one that this process is on.

        Raises:
            SpecError: there is none; names `whose` host that should be.
        """
        for node in self.nodes:
            if node.here if not host else host in (node.address, node.name):
                return node
        had = ", ".join(f"{node.address} ({node.name})" for node in self.nodes)
        if not host:
            raise SpecError(
                f"{whose} names no host, and this one is no node of the Ray that was joined, which"
                f" has {had}; give one of them as host"
            )
        raise SpecError(
            f"{whose} is on host {host!r}, but Ray has {had}; run `ray start --address=...` there,"
            " or correct the host"
        )

    def run(
        self,
        node: Node,
        function: str,
        told: Mapping[str, Any],
        *,
        env: Mapping[str, str],
        whose: str,
        timeout_s: float,
    ) -> Running:
        """Runs a function of gimlax in a new process of a node, which stays until it is killed.

        Args:
            node: where.
            function: 'module:function', found by import there.
            told: its keyword arguments, plain data.
            env: environment variables that differ from those of Ray on that node.
            whose: how messages call the process.
            timeout_s: how long it may take until the function has answered.

        Raises:
            GimlaxError: the function raised it.
            BackendError: the process ended before, or took longer.
        """
        key = secrets.token_hex(8)
        ended: Future[str] = Future()
        self._ended[key] = ended
        asked = {
            "key": key,
            "node": node.id,
            "env": dict(env),
            "name": function,
            "told": json.dumps(dict(told)),
        }
        where = f"on host {node.address}"
        try:
            found = self._ask("errand", asked).result(timeout_s)
        except TimeoutError:
            self._ask("kill", {"key": key})
            raise BackendError(
                f"{whose} did not start {where} within {timeout_s:g} s; {self._said()}"
            ) from None
        except BackendError as error:
            self._ask("kill", {"key": key})
            raise BackendError(
                f"{whose} ended at its start {where}: {error}; is the same gimlax installed there?"
            ) from error
        except BaseException:
            self._ask("kill", {"key": key})
            raise
        process = None
        if found["marks"] == marks():
            with contextlib.suppress(ProcessLookupError):
                process = os.pidfd_open(found["pid"])
        kill = _Kill(process, lambda: self._ask("kill", {"key": key}))
        if "error" in found:
            kill()
            name, what = found["error"]
            kind = getattr(errors, name, None)
            if isinstance(kind, type) and issubclass(kind, GimlaxError):
                raise kind(what)
            raise BackendError(f"{whose} failed at its start {where}: {name}: {what}")
        log = Path(found["log"]) if found["log"] else None

        def said() -> str:
            if log is None:
                return "it wrote nothing"
            return _tail(log) if process is not None else f"what it wrote is {log} {where}"

        def watch(call: Callable[[str], None]) -> None:
            ended.add_done_callback(lambda done: call(f"ended ({done.result()})"))

        return Running(pid=found["pid"], answer=found["answer"], kill=kill, said=said, watch=watch)

    def close(self) -> None:
        """Ends all processes, and Ray if it was started here; a second time it does nothing."""
        if self._steward.stdin is not None and not self._steward.stdin.closed:
            with contextlib.suppress(OSError):
                self._steward.stdin.close()
        try:
            self._steward.wait(_ENDING_S)
        except subprocess.TimeoutExpired:
            self._steward.kill()
            self._steward.wait()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join()
        for pipe in (self._steward.stdout, self._steward.stderr):
            if pipe is not None:
                pipe.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, do: str, told: Mapping[str, Any]) -> Future[Any]:
        number = next(self._numbers)
        future: Future[Any] = Future()
        line = json.dumps({"number": number, "do": do, **told}).encode() + b"\n"
        with self._lock:
            self._asked[number] = future
            try:
                assert self._steward.stdin is not None
                self._steward.stdin.write(line)
                self._steward.stdin.flush()
            except (OSError, ValueError):  # gone, or closed here
                self._asked.pop(number, None)
                future.set_exception(BackendError(f"Ray has ended; {self._said()}"))
        return future

    def _hear(self) -> None:
        assert self._steward.stdout is not None
        for line in self._steward.stdout:
            said = json.loads(line)
            if "ended" in said:
                with contextlib.suppress(KeyError):
                    self._ended.pop(said["ended"]).set_result(said["why"])
                continue
            with self._lock:
                future = self._asked.pop(said["number"])
            if "error" in said:
                future.set_exception(BackendError(said["error"]))
            else:
                future.set_result(said["answer"])
        with self._lock:
            asked, self._asked = self._asked, {}
        for future in asked.values():
            future.set_exception(BackendError(f"Ray has ended; {self._said()}"))

    def _collect(self) -> None:
        """Drains what Ray writes, which is no concern of the user's terminal; keeps its end."""
        assert self._steward.stderr is not None
        for line in self._steward.stderr:
            text = _plain(line.decode(errors="replace"))
            if text:
                self._complaints[:] = [*self._complaints[1 - _LAST_LINES :], text]

    def _said(self) -> str:
        lines = "; ".join(self._complaints)
        return f"it wrote: {lines}" if lines else "it wrote nothing"


class _Kill:
    """Ends a process: at once where it is a process of this host, in Ray's time elsewhere."""

    def __init__(self, process: int | None, tell: Callable[[], Any]) -> None:
        self._process = process
        self._tell = tell
        self._lock = threading.Lock()

    def __call__(self) -> None:
        with self._lock:
            process, self._process = self._process, None
            if process is not None:
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(process, signal.SIGKILL)
                ended = select.poll()  # unlike `select`, for descriptors past 1,023 too
                ended.register(process, select.POLLIN)
                ended.poll(_ENDING_S * 1000)
                os.close(process)
        self._tell()


def _environment(address: str, insecure: bool) -> dict[str, str]:
    """Of the steward, and with it of a Ray that it starts."""
    env = dict(os.environ)
    if not address:
        for name in ("RAY_ADDRESS", "RAY_AUTH_TOKEN_PATH"):
            env.pop(name, None)
        env["RAY_AUTH_TOKEN"] = secrets.token_hex(_TOKEN_BYTES)
        env["RAY_USAGE_STATS_ENABLED"] = "0"
        env["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # so Ray takes 127.0.0.1 at its word
    if not address or not insecure:
        env["RAY_AUTH_MODE"] = "token"
    return env


def _require_ray() -> None:
    """Raises a `SpecError` that says what to install unless Ray is there."""
    floor = ".".join(map(str, _FLOOR))
    try:
        version = importlib.metadata.version("ray")
    except importlib.metadata.PackageNotFoundError:
        version = ""
    if tuple(map(int, re.findall(r"\d+", version)[:2])) < _FLOOR:
        raise SpecError(
            f"processes on other hosts need the package 'ray', {floor} or newer, and"
            f" {f'{version} is' if version else 'it is not'} installed; run"
            " `pip install 'gimlax[ray]'`"
        )


def _require_token(address: str) -> None:
    """Raises a `SpecError` unless Ray will find a token where it looks for one."""
    path = os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token"
    found = os.environ.get("RAY_AUTH_TOKEN") or Path(path).is_file()
    if not found or os.environ.get("RAY_AUTH_MODE", "token").lower() != "token":
        why = "RAY_AUTH_MODE turns tokens off" if found else "there is no token here"
        raise SpecError(
            f"Ray at {address!r} would be joined without authentication, as {why}: whoever reaches"
            " its ports can run anything on all hosts; copy the token that"
            " `ray get-auth-token --generate` makes to ~/.ray/auth_token of every host and start"
            " Ray with RAY_AUTH_MODE=token, or insist with insecure=True"
        )


def _tail(log: Path) -> str:
    """The last lines of a log of a process of Ray, before the stack that Ray appends to a crash."""
    try:
        text = log.read_text(errors="replace")
    except OSError as error:
        return f"what it wrote cannot be read ({error})"
    lines = [_plain(line) for line in text.partition("*** SIG")[0].splitlines()]
    lines = [line for line in lines if line and not re.match(r":[a-z_]+:", line)]
    return f"it wrote: {'; '.join(lines[-_LAST_LINES:])}" if lines else "it wrote nothing"


def _plain(line: str) -> str:
    """A line without colours."""
    return re.sub(r"\x1b\[[0-9;]*m", "", line).strip()
