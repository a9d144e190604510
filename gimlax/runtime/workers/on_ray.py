"""Workers that Ray places, starts and watches: on this host or others, a process for each.

Ray is asked to start and to end them, which takes it milliseconds; everything else goes over
gimlax's own sockets, as with child processes.
"""

import os
import secrets
import threading
from collections.abc import Sequence
from typing import Any

from gimlax.devices import WorkerSpec
from gimlax.errors import SpecError
from gimlax.hosts import Hosts, Running
from gimlax.runtime.workers.connection import listen
from gimlax.runtime.workers.launching import (
    SECRET_BYTES,
    Launched,
    environment_of,
)
from gimlax.runtime.workers.server import serve

__all__ = ["RayProcesses", "begin"]

_BEGIN = "gimlax.runtime.workers.on_ray:begin"
_ENDING_S = 10.0  # Ray forces a process that does not react after half of that


class RayProcesses:
    """Starts workers through Ray; `close` ends them, and Ray if it was started for them."""

    def __init__(self, hosts: Hosts, specs: Sequence[WorkerSpec]) -> None:
        """`specs` are of all workers that will be started, since they may call each other."""
        self._hosts = hosts
        self._running: list[Running] = []
        self._ended: dict[tuple[str, int], threading.Event] = {}
        self._nodes = {
            (spec.name, place): hosts.node_of(host, f"worker {spec.name!r}")
            for spec in specs
            for place, host in enumerate(spec.places)
        }
        # Sockets in the abstract namespace are quicker, but no other host can call them.
        self._alone = all(node.here for node in self._nodes.values())

    def start(self, spec: WorkerSpec, place: int = 0, *, timeout_s: float) -> Launched:
        """See `Launcher`."""
        node = self._nodes[spec.name, place]
        if (before := self._ended.get((spec.name, place))) is not None:
            before.wait(_ENDING_S)  # it may hold the devices of the one that takes its place
        host = "" if self._alone else node.address
        secret = secrets.token_bytes(SECRET_BYTES)
        running = self._hosts.run(
            node,
            _BEGIN,
            {
                "secret": secret.hex(),
                "host": host,
                "cores": spec.cores,
                "worker": spec.name,
            },
            env=environment_of(spec),
            whose=f"worker {spec.name!r}",
            timeout_s=timeout_s,
        )
        self._running.append(running)
        ended = self._ended[spec.name, place] = threading.Event()
        running.watch(lambda _: ended.set())
        kind, name, port = running.answer["address"]
        return Launched(
            address=(kind, name, port),
            host=host,
            secret=secret,
            kill=running.kill,
            said=running.said,
            watch=running.watch,
        )

    def close(self) -> None:
        """See `Launcher`."""
        for running in self._running:
            running.kill()
        self._hosts.close()


def begin(secret: str, host: str, cores: Sequence[int], worker: str) -> dict[str, Any]:
    """Serves in this process, which ends when the controller hangs up; says where it listens.

    Args:
        secret: of this worker, in hexadecimal.
        host: address of this host that others call; empty if only this host does.
        cores: CPUs that the process may use; all if empty.
        worker: its name, for messages.

    Raises:
        SpecError: the process may not use those cores.
    """
    if cores:
        allowed = sorted(os.sched_getaffinity(0))
        try:
            for thread in os.listdir("/proc/self/task"):  # those of Ray, too
                os.sched_setaffinity(int(thread), cores)
        except (OSError, OverflowError) as error:
            raise SpecError(
                f"worker {worker!r} wants cores {list(cores)}, a process there may use {allowed};"
                " correct its cores"
            ) from error
    listener, address = listen(host)

    def serve_and_end() -> None:
        serve(listener, bytes.fromhex(secret), host)
        os._exit(0)  # threads of a backend that hangs must not keep the process

    threading.Thread(target=serve_and_end, name="gimlax serve", daemon=True).start()
    return {"address": address}
