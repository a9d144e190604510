"""Processes that own backends which do not fit into this one, described.

A backend and a host make a worker: its process has environment variables of its own, so that a
TPU, a CUDA and a second CPU client each get the JAX that suits them. A worker of several hosts has
a process on each, which together are one mesh, such as a TPU slice.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from gimlax.checking import mistakes_of_fields, shown
from gimlax.devices.mesh import MeshSpec
from gimlax.devices.naming import name_mistakes
from gimlax.errors import SpecError

__all__ = ["WorkerSpec", "mistakes_of_workers"]

_MOST_HOSTS = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSpec:
    """A worker, described.

    Attributes:
        name: how meshes, plans and errors call it.
        host: address of its host as Ray knows it, empty for this one.
        hosts: of a worker of several processes, the host of each instead; the first coordinates.
        platforms: what JAX_PLATFORMS is in its process, such as 'cuda,cpu'; empty leaves the choice
            to JAX.
        flags: what XLA_FLAGS is there; a flag that some backend of the process does not know ends
            the process.
        cores: CPUs that the process may use, as their numbers; all if empty.
    """

    name: str
    host: str = ""
    hosts: tuple[str, ...] = ()
    platforms: str = ""
    flags: str = ""
    cores: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if mistakes := mistakes_of_fields(self) or list(self._mistakes()):
            raise SpecError(f"worker {shown(self.name)}: {'; '.join(mistakes)}")

    @property
    def places(self) -> tuple[str, ...]:
        """The host of each of its processes."""
        return self.hosts or (self.host,)

    def _mistakes(self) -> Iterator[str]:
        yield from name_mistakes(self.name)
        for key in ("host", "hosts", "platforms", "flags"):
            if not "".join(getattr(self, key)).isprintable():
                yield f"its {key} has control characters; give text of one line"
        if self.hosts and self.host:
            yield "it has a host and hosts; give one of them"
        if self.hosts and not 2 <= len(self.hosts) <= _MOST_HOSTS:
            yield f"it has {len(self.hosts)} hosts; give 2 to {_MOST_HOSTS}, or one as host"
        if any(core < 0 for core in self.cores) or len(set(self.cores)) < len(self.cores):
            yield f"its cores are {list(self.cores)}; give each number from 0 once"


def mistakes_of_workers(
    workers: Sequence[WorkerSpec], meshes: Sequence[MeshSpec], refused: Collection[str] = ()
) -> Iterator[str]:
    """Names that repeat, and meshes of workers that are not there, one sentence each.

    Args:
        workers, meshes: of the cluster.
        refused: names of workers that cannot be built, which is told elsewhere.
    """
    names = [worker.name for worker in workers]
    for name in dict.fromkeys(names):
        if names.count(name) > 1:
            yield f"the worker {name!r} is there {names.count(name)} times; give each its own name"
    had = ", ".join(map(repr, names)) or "none"
    for worker in workers:
        mine = [mesh for mesh in meshes if mesh.worker == worker.name]
        if not worker.hosts:
            continue
        if len(mine) > 1:
            yield (
                f"worker {worker.name!r} of {len(worker.hosts)} hosts has {len(mine)} meshes; it is"
                " one mesh over all its devices, so leave one"
            )
        yield from (
            f"mesh {mesh.name!r} has {mesh.num_devices} devices on the {len(worker.hosts)} hosts of"
            f" worker {worker.name!r}; give a multiple, since each host has as many"
            for mesh in mine
            if mesh.num_devices % len(worker.hosts)
        )
    for mesh in meshes:
        if mesh.worker and mesh.worker not in {*names, *refused}:
            yield (
                f"mesh {mesh.name!r} is on worker {mesh.worker!r}, but there are {had}; add a"
                " [[worker]] or correct its name"
            )
        if mesh.worker and not mesh.backend:
            yield (
                f"mesh {mesh.name!r} is on worker {mesh.worker!r} and names no backend of it; add"
                " its registered name, such as 'cuda' or 'cpu'"
            )
