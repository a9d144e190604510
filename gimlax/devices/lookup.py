"""Finding things of a cluster by name without a walk through it: it may have thousands."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gimlax.devices.groups import Group, group_of
from gimlax.devices.kinds import DeviceKind, find_kind
from gimlax.devices.mesh import SHAREABLE, Link, MeshSpec

__all__ = ["Lookup"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Lookup:
    """What a cluster has, by name.

    Attributes:
        meshes, groups: by name.
        links: by (source, target), each a mesh or a group.
        kinds: by what meshes and groups call them.
        sharing: names of meshes by (host, 'compute' or 'memory').
    """

    meshes: Mapping[str, MeshSpec]
    groups: Mapping[str, Group]
    links: Mapping[tuple[str, str], Link]
    kinds: Mapping[str, DeviceKind]
    sharing: Mapping[tuple[str, str], tuple[str, ...]]

    @classmethod
    def of(
        cls,
        meshes: Sequence[MeshSpec],
        groups: Sequence[Group],
        links: Sequence[Link],
        kinds: Sequence[DeviceKind],
    ) -> "Lookup":
        """Reads everything once; every kind that is needed has to be among `kinds`."""
        sharing: dict[tuple[str, str], list[str]] = defaultdict(list)
        for mesh in meshes:
            for what in SHAREABLE:
                if what in mesh.shares:
                    sharing[mesh.host, what].append(mesh.name)
        called = {record.device_kind for record in (*meshes, *groups)}
        found = {name: find_kind(kinds, name) for name in called}
        return cls(
            meshes={mesh.name: mesh for mesh in meshes},
            groups={group.name: group for group in groups},
            links={(link.source, link.target): link for link in links},
            kinds={name: kind for name, kind in found.items() if kind is not None},
            sharing={key: tuple(names) for key, names in sharing.items()},
        )

    def link(self, source: str, target: str) -> Link | None:
        """The way from one mesh or group to another: its own, else that of their groups."""
        for start in filter(None, (source, group_of(source))):
            for end in filter(None, (target, group_of(target))):
                if link := self.links.get((start, end)):
                    return link
        return None
