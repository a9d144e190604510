"""The workers of a cluster, started: `gx.start_workers` gives them, `gx.compile` uses them."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Self

from gimlax.checking import is_number, shown
from gimlax.devices import Cluster
from gimlax.errors import SpecError
from gimlax.runtime.workers.launching import ChildProcesses, Launcher
from gimlax.runtime.workers.peers import Peer

__all__ = ["Workers", "start_workers"]


class Workers:
    """Running workers; a context manager that ends them."""

    def __init__(self, cluster: Cluster, launcher: Launcher, peers: Mapping[str, Peer]) -> None:
        self._cluster = cluster
        self._launcher = launcher
        self._peers = dict(peers)

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

    def close(self) -> None:
        """Ends all processes; a second time it does nothing."""
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


def start_workers(cluster: Cluster, *, timeout_s: float = 60.0) -> Workers:
    """Starts the workers of a cluster as processes of this host.

    Args:
        cluster: describes them as `workers`.
        timeout_s: how long each may take until it answers.

    Returns:
        What `gx.compile(..., workers=...)` takes; close it, or use it in a `with` block.

    Raises:
        SpecError: the cluster has no workers, or one that cannot be started so.
        BackendError: a worker does not start; says what it wrote.
    """
    if not isinstance(cluster, Cluster) or not cluster.workers:
        raise SpecError(
            f"{shown(cluster) if not isinstance(cluster, Cluster) else 'the cluster'} describes no"
            " workers; give a Cluster whose meshes name workers"
        )
    if not is_number(timeout_s) or timeout_s <= 0:
        raise SpecError(f"timeout_s is {shown(timeout_s)}; give a positive number of seconds")
    launcher = ChildProcesses()
    try:
        with ThreadPoolExecutor(len(cluster.workers), "gimlax start") as pool:
            peers = pool.map(
                lambda spec: Peer(spec.name, launcher.start(spec, timeout_s=timeout_s)),
                cluster.workers,
            )
            return Workers(
                cluster, launcher, dict(zip((w.name for w in cluster.workers), peers, strict=True))
            )
    except BaseException:
        launcher.close()
        raise
