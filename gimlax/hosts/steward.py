"""A process that speaks Ray for this one: starts or joins it, and runs errands on its hosts.

Started as a child, so that Ray changes nothing in the user's process: no signal handler, log line,
environment variable or session of it. When its parent ends, in whatever way, it ends all that it
started; processes that Ray would leave behind are given to it by the system (it is their
subreaper), and end with it. Requests and answers are lines of JSON.
"""

import contextlib
import ctypes
import importlib
import json
import logging
import os
import select
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["main"]

_PR_SET_CHILD_SUBREAPER = 36
_STORE_BYTES = 80 * 2**20  # nothing goes through Ray's object store; it wants so much at least
_LEAVING_S = 5.0


class _Steward:
    def __init__(self, answers: Any, errand: type) -> None:
        self._ray = importlib.import_module("ray")
        self._errand = errand
        self._answers = answers
        self._lock = threading.Lock()
        self._actors: dict[str, Any] = {}
        self._folder = ""  # of a Ray that was started here

    def open(self, address: str) -> dict[str, Any]:
        """Joins the Ray at an address, or starts one that only this host can reach."""
        quiet: dict[str, Any] = {
            "log_to_driver": False,
            "logging_level": logging.ERROR,
            "namespace": "gimlax",
        }
        if address:
            self._ray.init(address, **quiet)
        else:
            self._folder = tempfile.mkdtemp(prefix="gimlax-ray-")
            self._ray.init(
                "local",
                num_cpus=0,
                num_gpus=0,
                include_dashboard=False,
                object_store_memory=_STORE_BYTES,
                _node_ip_address="127.0.0.1",
                _temp_dir=self._folder,
                **quiet,
            )
        here = "" if address.startswith("ray://") else self._context().get_node_id()
        return {"nodes": self._nodes(), "here": here}

    def errand(
        self, key: str, node: str, env: dict[str, str], name: str, told: str
    ) -> dict[str, Any]:
        """Runs a function in a new process of a node, which then stays and is watched."""
        placed = importlib.import_module("ray.util.scheduling_strategies")
        actor = (
            self._ray.remote(self._errand)
            .options(
                num_cpus=0,
                max_restarts=0,
                runtime_env={"env_vars": env},
                scheduling_strategy=placed.NodeAffinitySchedulingStrategy(node, soft=False),
            )
            .remote()
        )
        self._actors[key] = actor
        found = json.loads(self._ray.get(actor.run.remote(name, told)))
        threading.Thread(target=self._watch, args=(key, actor.stay.remote()), daemon=True).start()
        return found

    def kill(self, key: str) -> dict[str, Any]:
        """Ends a process, stopped or not (Ray waits seconds before it forces a stopped one)."""
        actor = self._actors.pop(key, None)
        if actor is not None:
            self._ray.kill(actor)
        return {}

    def close(self) -> None:
        """Ends everything that was started here."""
        if self._folder:
            _end_descendants()
            shutil.rmtree(self._folder, ignore_errors=True)
            return
        for key in tuple(self._actors):
            with contextlib.suppress(Exception):
                self.kill(key)
        with contextlib.suppress(Exception):
            self._ray.shutdown()
        _end_descendants()

    def answer(self, request: dict[str, Any]) -> None:
        """Does what is asked, and says what came of it."""
        number, do = request.pop("number"), request.pop("do")
        try:
            asked = {"open": self.open, "errand": self.errand, "kill": self.kill}[do]
            self.say({"number": number, "answer": asked(**request)})
        except Exception as error:
            self.say({"number": number, "error": _sentence(error)})

    def say(self, what: dict[str, Any]) -> None:
        """Writes a line; a parent that has gone is noticed elsewhere."""
        with self._lock, contextlib.suppress(OSError):
            print(json.dumps(what), file=self._answers, flush=True)

    def _watch(self, key: str, stays: Any) -> None:
        try:
            self._ray.get(stays)
        except Exception as error:
            self.say({"ended": key, "why": _sentence(error)})

    def _nodes(self) -> list[dict[str, str]]:
        return [
            {
                "id": node["NodeID"],
                "address": node["NodeManagerAddress"],
                "name": node["NodeManagerHostname"],
            }
            for node in self._ray.nodes()
            if node["Alive"]
        ]

    def _context(self) -> Any:
        return self._ray.get_runtime_context()


def _sentence(error: Exception) -> str:
    """What Ray says, without its advice: the last cause that it gives, on one line."""
    text = str(error)
    for begins in ("Worker exit detail: ", "The actor is dead because "):
        if begins in text:
            text = text.partition(begins)[2].partition("Some common causes")[0]
            break
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines[-3:])}" if lines else type(error).__name__


def _end_descendants() -> None:
    """Kills children and children's children until there are none; they come here when orphaned."""
    while found := list(_children(os.getpid())):
        for child in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        for child in found:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(child, 0)


def _children(parent: int) -> Iterator[int]:
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                # pid (name) state ppid ...; a name may have spaces and brackets
                if int((folder / "stat").read_text().rpartition(")")[2].split()[1]) == parent:
                    yield int(folder.name)


def _wait_for_the_end(parent: int) -> None:
    """Returns when the parent has ended or closed the pipe of requests."""
    hung_up = select.poll()
    hung_up.register(0, select.POLLHUP)
    hung_up.register(parent, select.POLLIN)
    hung_up.poll()


def main() -> None:
    """Serves requests until the parent hangs up or ends."""
    parent = os.pidfd_open(os.getppid())
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)
    # Answers go to the real standard output; nothing that Ray prints may get among them.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    from gimlax.hosts.errand import Errand

    steward = _Steward(answers, Errand)

    def serve() -> None:
        for line in sys.stdin:
            threading.Thread(target=steward.answer, args=(json.loads(line),), daemon=True).start()

    # Ray ends what it starts when the thread that started it ends, so one thread is kept for that.
    opened = json.loads(sys.stdin.readline())
    steward.answer(opened)
    threading.Thread(target=serve, daemon=True).start()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    try:
        _wait_for_the_end(parent)
    finally:
        leaving = threading.Timer(_LEAVING_S, _leave)  # Ray may wait for what does not answer
        leaving.daemon = True
        leaving.start()
        steward.close()
        os._exit(0)


def _leave() -> None:
    _end_descendants()
    os._exit(1)


if __name__ == "__main__":
    main()
