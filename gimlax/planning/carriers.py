"""What carries the values from one mesh to another, chosen when a plan is made.

Which of them is possible follows from where two meshes are: on one client a copy of the backend,
on two clients of a process a thread that waits for the copy, between processes of a host shared
memory, between hosts TCP.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from gimlax.devices import MeshSpec, WorkerSpec
from gimlax.planning.layout import OUTSIDE, Layout

__all__ = ["CARRIERS", "CLIENT", "PROCESS", "RING", "TCP", "Carrier", "carriers"]

CLIENT, PROCESS, RING, TCP = "client", "process", "ring", "tcp"
CARRIERS = {
    CLIENT: "by their backend",
    PROCESS: "inside the process, on a thread of the link",
    RING: "through shared memory",
    TCP: "over TCP",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Carrier:
    """What carries values from one mesh to another: one of `CARRIERS`."""

    source: str
    target: str
    kind: str


def carriers(
    layout: Layout, specs: Sequence[MeshSpec], workers: Sequence[WorkerSpec]
) -> tuple[Carrier, ...]:
    """The carrier of each pair of meshes between which something goes, in the order of the hops.

    Args:
        layout: of a plan.
        specs: of its meshes.
        workers: of the cluster.
    """
    by_name = {spec.name: spec for spec in specs}
    hosts = {worker.name: worker.host for worker in workers}
    pairs = dict.fromkeys(
        (layout.holdings[hop.source].mesh, layout.holdings[hop.target].mesh)
        for hop in layout.hops
        if OUTSIDE not in (hop.source, hop.target)
    )
    return tuple(
        Carrier(source=source, target=target, kind=_kind(by_name[source], by_name[target], hosts))
        for source, target in pairs
        if source != target
    )


def _kind(source: MeshSpec, target: MeshSpec, hosts: dict[str, str]) -> str:
    if not (source.backend and target.backend):  # only described: on what host is all that is said
        return RING if source.host and source.host == target.host else TCP
    if source.worker == target.worker:
        return CLIENT if source.backend == target.backend else PROCESS
    return RING if hosts.get(source.worker, "") == hosts.get(target.worker, "") else TCP
