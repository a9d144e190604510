"""The workers of a cluster, started: `gx.start_workers` gives them, `gx.compile` uses them."""

import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Self

from gimlax.checking import check_seconds, shown
from gimlax.devices import Cluster, WorkerSpec
from gimlax.errors import BackendError, SpecError
from gimlax.hosts import asked_address, join
from gimlax.runtime.workers.groups import join_up
from gimlax.runtime.workers.joining import Detour
from gimlax.runtime.workers.launching import ChildProcesses, Launcher
from gimlax.runtime.workers.on_ray import RayProcesses
from gimlax.runtime.workers.peers import Member, Peer

__all__ = ["Workers", "start_workers"]


class Workers:
    """Running workers; a context manager that ends them.

    `detour`, if set, gives for the name of a link and the offer of its receiver the offer that its
    sender gets: links then go over TCP, by way of whatever listens there.
    """

    def __init__(
        self,
        cluster: Cluster,
        launcher: Launcher,
        peers: Mapping[str, Peer],
        *,
        timeout_s: float,
    ) -> None:
        """`timeout_s` is how long a worker may take until it answers."""
        self._cluster = cluster
        self._launcher = launcher
        self._peers = dict(peers)
        self._timeout_s = timeout_s
        self._locks = {worker.name: threading.Lock() for worker in cluster.workers}
        self._closed = False
        self.detour: Detour | None = None

    @property
    def cluster(self) -> Cluster:
        """What they were started for."""
        return self._cluster

    @property
    def peers(self) -> Mapping[str, Peer]:
        """The controller's side of each, by name."""
        return self._peers

    @property
    def lost(self) -> tuple[str, ...]:
        """Names of those that have been given up."""
        return tuple(name for name, peer in self._peers.items() if peer.lost is not None)

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    def start_again(self, name: str) -> None:
        """Starts a lost worker anew, from its description; one that lives stays as it is.

        Raises:
            GimlaxError: it does not start.
        """
        (spec,) = (worker for worker in self._cluster.workers if worker.name == name)
        with self._locks[name]:
            if self._peers[name].lost is None:
                return
            if not self._closed:
                self._peers[name] = _start(spec, self._launcher, self._timeout_s)
            if self._closed:
                self._peers[name].close()
                raise BackendError(f"worker {name!r} was closed")

    def close(self) -> None:
        """Ends all processes; a second time it does nothing."""
        self._closed = True
        for peer in self._peers.values():
            peer.close()
        self._launcher.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        lost = f", lost: {', '.join(map(repr, self.lost))}" if self.lost else ""
        return f"Workers({', '.join(map(repr, self._peers))}{lost})"


def start_workers(
    cluster: Cluster,
    *,
    ray: bool | str = False,
    insecure: bool = False,
    timeout_s: float = 60.0,
) -> Workers:
    """Starts the workers of a cluster: as children of this process, or through Ray.

    Args:
        cluster: describes them as `workers`.
        ray: True starts a Ray that only this host can reach, and ends it with the workers; an
            address joins one, 'host:port' where this host is a node of it and 'ray://host:port'
            where not.
        insecure: joins a Ray without a token, where whoever reaches its ports can run anything.
        timeout_s: how long Ray, and then each worker, may take until it answers.

    Returns:
        What `gx.compile(..., workers=...)` takes; close it, or use it in a `with` block.

    Raises:
        SpecError: the cluster has no workers, or one that cannot be started so; Ray is not
            installed, or would be joined without a token.
        BackendError: a worker does not start; says what it wrote.
    """
    if not isinstance(cluster, Cluster) or not cluster.workers:
        raise SpecError(
            f"{shown(cluster) if not isinstance(cluster, Cluster) else 'the cluster'} describes no"
            " workers; give a Cluster whose meshes name workers"
        )
    check_seconds("timeout_s", timeout_s)
    launcher = _launcher(cluster, ray, insecure, timeout_s)
    try:
        with ThreadPoolExecutor(len(cluster.workers), "gimlax start") as pool:
            peers = pool.map(
                lambda spec: _start(spec, launcher, timeout_s),
                cluster.workers,
            )
            return Workers(
                cluster,
                launcher,
                dict(zip((w.name for w in cluster.workers), peers, strict=True)),
                timeout_s=timeout_s,
            )
    except BaseException:
        launcher.close()
        raise


def _launcher(cluster: Cluster, ray: bool | str, insecure: bool, timeout_s: float) -> Launcher:
    address = asked_address(ray, insecure)
    if address is None:
        return ChildProcesses()
    hosts = join(address, insecure=insecure, timeout_s=timeout_s)
    try:
        return RayProcesses(hosts, cluster.workers)
    except BaseException:
        hosts.close()
        raise


def _start(spec: WorkerSpec, launcher: Launcher, timeout_s: float) -> Peer:
    places = range(len(spec.places))
    names = [f"{spec.name}[{place}]" if spec.hosts else spec.name for place in places]
    started: list[Member] = []

    def start(place: int) -> None:
        launched = launcher.start(spec, place, timeout_s=timeout_s)
        member = Member(names[place], launched)
        started.append(member)
        launched.watch(member.give_up)

    try:
        with ThreadPoolExecutor(len(places), "gimlax start") as pool:
            for future in [pool.submit(start, place) for place in places]:
                future.result()
        started.sort(key=lambda member: names.index(member.name))
        return join_up(spec.name, started) if spec.hosts else started[0]
    except BaseException:
        for member in started:
            member.close()
        raise
