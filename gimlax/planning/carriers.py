"""What carries the values from one mesh to another, chosen when a plan is made.

Which of them is possible follows from where two meshes are: on one client a copy of the backend,
on two clients of a process a thread that waits for the copy, between processes of a host shared
memory, between hosts TCP. Between processes float32 may go narrowed, if the caller wants that.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from gimlax.devices import MeshSpec, WorkerSpec
from gimlax.planning.layout import OUTSIDE, Layout

__all__ = [
    "BETWEEN_PROCESSES",
    "CARRIERS",
    "CLIENT",
    "PROCESS",
    "RING",
    "TCP",
    "Carrier",
    "carriers",
    "kind_between",
]

CLIENT, PROCESS, RING, TCP = "client", "process", "ring", "tcp"
CARRIERS = {
    CLIENT: "by their backend",
    PROCESS: "inside the process, on a thread of the link",
    RING: "through shared memory",
    TCP: "over TCP",
}
BETWEEN_PROCESSES = (RING, TCP)


@dataclass(frozen=True, slots=True, kw_only=True)
class Carrier:
    """What carries values from one mesh to another.

    Attributes:
        source, target: the meshes.
        kind: one of `CARRIERS`.
        narrowing: what float32 goes as, one of `gimlax.fabric.NARROWINGS`; empty: as it is.
    """

    source: str
    target: str
    kind: str
    narrowing: str = ""


def carriers(
    layout: Layout,
    specs: Sequence[MeshSpec],
    workers: Sequence[WorkerSpec],
    wire: str = "",
) -> tuple[Carrier, ...]:
    """The carrier of each pair of meshes between which something goes, in the order of the hops.

    Args:
        layout: of a plan.
        specs: of its meshes.
        workers: of the cluster.
        wire: what float32 goes as between processes, empty for as it is.
    """
    by_name = {spec.name: spec for spec in specs}
    pairs = dict.fromkeys(
        (layout.holdings[hop.source].mesh, layout.holdings[hop.target].mesh)
        for hop in layout.hops
        if OUTSIDE not in (hop.source, hop.target)
    )
    found = []
    for source, target in pairs:
        if source != target:
            kind = kind_between(by_name[source], by_name[target], workers)
            narrowing = wire if kind in BETWEEN_PROCESSES else ""
            found.append(Carrier(source=source, target=target, kind=kind, narrowing=narrowing))
    return tuple(found)


def kind_between(source: MeshSpec, target: MeshSpec, workers: Sequence[WorkerSpec]) -> str:
    """What carries values between two meshes, one of `CARRIERS`."""
    places = {worker.name: {*worker.places} for worker in workers}
    if not (source.backend and target.backend):  # only described: on what host is all that is said
        return RING if source.host and source.host == target.host else TCP
    if source.worker == target.worker:
        return CLIENT if source.backend == target.backend else PROCESS
    hosts = places.get(source.worker, {""}) | places.get(target.worker, {""})
    return RING if len(hosts) == 1 else TCP
