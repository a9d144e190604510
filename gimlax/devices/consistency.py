"""What in a cluster does not fit together: repeated names, links to nothing, unknown kinds.

Each is a sentence, and all are found at once, in time that grows with the size of the cluster.
"""

import functools
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from gimlax.devices.catalogue import load_kind
from gimlax.devices.groups import Group, group_of
from gimlax.devices.kinds import DeviceKind, collisions, find_kind
from gimlax.devices.mesh import Link, MeshSpec
from gimlax.errors import SpecError

__all__ = [
    "mistakes_between",
    "mistakes_of_groups",
    "overlapping",
    "unequal_memories",
    "unreachable",
]

_MOST_NAMES = 10


def mistakes_between(
    meshes: Sequence[MeshSpec],
    groups: Sequence[Group],
    links: Sequence[Link],
    kinds: Sequence[DeviceKind],
    names: Sequence[str],
    refused: Collection[str] = (),
) -> Iterator[str]:
    """What does not fit together.

    Args:
        meshes, groups, links, kinds: of the cluster.
        names: of all meshes and groups, those that cannot be built too.
        refused: names and aliases of kinds that cannot be built, which is told elsewhere.
    """
    counts = Counter(names)
    for name in sorted(name for name, count in counts.items() if count > 1):
        yield f"the name {name!r} is there {counts[name]} times; give each mesh and group its own"
    yield from collisions(kinds)
    find = functools.cache(lambda device_kind: _unknown(kinds, device_kind))
    for what, found in (("mesh", meshes), ("group", groups)):
        for record in found:
            if record.device_kind not in refused and (unknown := find(record.device_kind)):
                yield f"{what} {record.name!r}: {unknown}"
    yield from _mistakes_of_links(links, counts, {group.name for group in groups})


def _unknown(kinds: Sequence[DeviceKind], device_kind: str) -> str:
    """Why a kind has no figures, empty if it has."""
    if find_kind(kinds, device_kind) is None:
        try:
            load_kind(device_kind)
        except SpecError as error:
            return str(error)
    return ""


def _mistakes_of_links(
    links: Sequence[Link], names: Mapping[str, int], groups: set[str]
) -> Iterator[str]:
    shown = ", ".join(map(repr, list(names)[:_MOST_NAMES])) or "none"
    if len(names) > _MOST_NAMES:
        shown += f" and {len(names) - _MOST_NAMES} more"
    counts = Counter((link.source, link.target) for link in links)
    for link in links:
        where = f"link {link.source!r} -> {link.target!r}"
        if missing := sorted({end for end in (link.source, link.target) if end not in names}):
            yield (
                f"{where}: no mesh and no group is called {' or '.join(map(repr, missing))} (there "
                f"are {shown}); correct the name or add it"
            )
        if link.source == link.target and link.source not in groups:
            yield f"{where}: within a mesh it is free; leave it out"
        if counts[link.source, link.target] > 1:
            counts[link.source, link.target] = 0
            yield f"{where} is there more than once; keep one"


def unreachable(
    names: Iterable[str], groups: Sequence[Group], links: Sequence[Link]
) -> Iterator[str]:
    """Meshes and groups that no link joins with another, where others are joined.

    Somebody who describes hardware has forgotten a link then; a part of a cluster may be like that.
    """
    pools = {group.name for group in groups}

    def node(name: str) -> str:
        return group_of(name) if group_of(name) in pools else name

    joined = {
        node(end)
        for link in links
        if node(link.source) != node(link.target)
        for end in (link.source, link.target)
    }
    for name in dict.fromkeys(names):
        if joined and node(name) not in joined:
            yield (
                f"{'group' if name in pools else 'mesh'} {name!r} cannot be reached: no link joins "
                "it with another, though others are joined; add its links or take it out"
            )


def mistakes_of_groups(meshes: Sequence[MeshSpec], groups: Sequence[Group]) -> Iterator[str]:
    """Meshes that are called as if made from a group, and could not have been."""
    by_name = {group.name: group for group in groups}
    taken: dict[str, int] = defaultdict(int)
    for mesh in meshes:
        group = by_name.get(group_of(mesh.name))
        if group is None:
            continue
        taken[group.name] += mesh.num_devices
        if mesh.device_kind != group.device_kind:
            yield (
                f"mesh {mesh.name!r} is called as one of group {group.name!r}, whose devices are "
                f"{group.device_kind!r}, but has {mesh.device_kind!r}; rename it or "
                "correct the kind"
            )
    for name, num_devices in taken.items():
        if num_devices > by_name[name].num_devices:
            yield (
                f"the meshes of group {name!r} have {num_devices} devices together, but the group "
                f"has {by_name[name].num_devices}; make them smaller or fewer"
            )


def overlapping(meshes: Sequence[MeshSpec]) -> Iterator[str]:
    """Live meshes that have a device in common, whose memory and time would count twice.

    Meshes of different hosts have different devices; one that names no host is of this process. A
    worker has devices of its own.
    """
    live = sorted((m for m in meshes if m.backend), key=lambda m: m.first_device)
    furthest: dict[tuple[str, str | None], MeshSpec] = {}  # by backend and host; None is any host
    for mesh in live:
        stop = mesh.first_device + mesh.num_devices
        host = f"worker {mesh.worker}" if mesh.worker else mesh.host
        hosts = (host,) if mesh.worker else (host, "") if host else (None,)
        others = [furthest[mesh.backend, h] for h in hosts if (mesh.backend, h) in furthest]
        for other in others:
            common = min(stop, other.first_device + other.num_devices) - mesh.first_device
            if common > 0:
                last = mesh.first_device + common - 1
                which = f"{mesh.first_device} to {last}" if common > 1 else f"{last}"
                yield (
                    f"meshes {other.name!r} and {mesh.name!r} share device{'s' * (common > 1)} "
                    f"{which} of backend {mesh.backend!r}, which would count twice; give each "
                    "other devices with first_device and num_devices"
                )
        for one in {host} if mesh.worker else {host, None}:
            known = furthest.get((mesh.backend, one))
            if known is None or stop > known.first_device + known.num_devices:
                furthest[mesh.backend, one] = mesh


def unequal_memories(meshes: Sequence[MeshSpec], memory_bytes: Mapping[str, int]) -> Iterator[str]:
    """Meshes that share one memory and differ in how large it is.

    Args:
        meshes: of the cluster.
        memory_bytes: of each of them, by name.
    """
    first_of: dict[str, str] = {}
    for mesh in meshes:
        if "memory" not in mesh.shares:
            continue
        first = first_of.setdefault(mesh.host, mesh.name)
        sizes = memory_bytes[first], memory_bytes[mesh.name]
        if sizes[0] != sizes[1]:
            yield (
                f"meshes {first!r} and {mesh.name!r} share the memory of {mesh.host!r}, but one "
                f"has {sizes[0]} bytes, the other {sizes[1]}; give both the whole memory_bytes"
            )
