"""The hardware at hand: meshes of equal devices, the links between them, and what they share.

Figures only: no record here holds a live device, so a cluster can be planned for where it is not.
Chosen over a flat list of devices because a stage runs on a mesh, and over a topology of switches
because the cost of a hand-over is what a plan needs. Units: bytes, bytes/s, seconds.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from gimlax.checking import check_arguments, mistakes_of_fields
from gimlax.devices.backends import Backend
from gimlax.devices.catalogue import load_kind
from gimlax.devices.cluster_file import parse_cluster
from gimlax.devices.cluster_writing import write_cluster
from gimlax.devices.consistency import (
    mistakes_between,
    mistakes_of_groups,
    overlapping,
    unequal_memories,
    unreachable,
)
from gimlax.devices.groups import Group, carve
from gimlax.devices.kinds import DeviceKind, collisions, find_kind
from gimlax.devices.lookup import Lookup
from gimlax.devices.mesh import SHAREABLE, Link, MeshSpec
from gimlax.devices.reading import read_text
from gimlax.devices.report import show_backends, show_groups, show_links, show_meshes
from gimlax.devices.tiers import Tier
from gimlax.devices.workers import WorkerSpec, mistakes_of_workers
from gimlax.errors import SpecError

__all__ = ["Cluster"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """Meshes and groups, the links between them and the figures of their kinds.

    `workers` are the processes that have the devices of meshes which name one.
    `kinds` may be left out where the catalogue knows them; it always ends up as those that the
    meshes and groups need. `backends` is what `discover` saw, unavailable ones too; it takes no
    part in comparison, fingerprint or TOML.

    Raises:
        SpecError: names that repeat, links to what is not there, kinds that nobody knows or
            that are there twice, meshes
            that share a memory but not its size, that have devices in common, or that their group
            has not enough devices for; all of them at once.
    """

    meshes: tuple[MeshSpec, ...]
    links: tuple[Link, ...] = ()
    kinds: tuple[DeviceKind, ...] = ()
    groups: tuple[Group, ...] = ()
    workers: tuple[WorkerSpec, ...] = ()
    backends: tuple[Backend, ...] = field(default=(), compare=False)
    _lookup: Lookup = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name in ("meshes", "links", "kinds", "groups", "workers", "backends"):
            if isinstance(given := getattr(self, name), list):
                object.__setattr__(self, name, tuple(given))
        if wrong := mistakes_of_fields(self):
            raise SpecError(f"cluster: {'; '.join(wrong)}")
        names = [record.name for record in (*self.meshes, *self.groups)]
        mistakes = [
            *mistakes_between(self.meshes, self.groups, self.links, self.kinds, names),
            *mistakes_of_groups(self.meshes, self.groups),
            *mistakes_of_workers(self.workers, self.meshes),
            *overlapping(self.meshes),
        ]
        if not mistakes:
            kinds = _kinds_used((*self.meshes, *self.groups), self.kinds)
            object.__setattr__(self, "kinds", kinds)
            lookup = Lookup.of(self.meshes, self.groups, self.links, kinds)
            object.__setattr__(self, "_lookup", lookup)
            sizes = {name: self.memory_bytes(name) for name in lookup.meshes}
            mistakes = [*unequal_memories(self.meshes, sizes), *collisions(kinds)]
        if mistakes:
            raise SpecError("\n".join(mistakes))

    def mesh(self, name: str) -> MeshSpec:
        """The mesh of this name.

        Raises:
            SpecError: there is none; says which there are, and why a backend of this name has none.
        """
        if mesh := self._lookup.meshes.get(name):
            return mesh
        why = [b.reason for b in self.backends if b.name == name.partition(":")[0] and b.reason]
        had = ", ".join(repr(mesh.name) for mesh in self.meshes) or "none"
        raise SpecError(
            f"mesh {name!r} is not in the cluster{f' ({why[0]})' if why else ''}, which has {had}; "
            "use one of these"
        )

    def kind(self, name: str) -> DeviceKind:
        """Figures of the devices of the mesh or group `name`."""
        return self._lookup.kinds[self._record(name).device_kind]

    def group(self, name: str) -> Group:
        """The group of this name.

        Raises:
            SpecError: there is none; says which there are.
        """
        if group := self._lookup.groups.get(name):
            return group
        had = ", ".join(repr(group.name) for group in self.groups) or "none"
        raise SpecError(f"group {name!r} is not in the cluster, which has {had}; use one of these")

    def _record(self, name: str) -> MeshSpec | Group:
        return self._lookup.groups.get(name) or self.mesh(name)

    def memory_bytes(self, name: str) -> int:
        """Memory of one device of the mesh or group `name`.

        Meshes that share a memory each say the whole of it: together they must fit into it.
        """
        return self._record(name).memory_bytes or self.kind(name).memory_bytes

    def carve(self, shapes: Mapping[str, Sequence[tuple[int, int]]]) -> "Cluster":
        """The cluster with meshes made from its groups; groups and their links stay.

        Args:
            shapes: by group, sizes of the axes `data` and `model` of each mesh wanted from it.

        Raises:
            SpecError: there is no such group, or it has not enough devices.
        """
        made = [mesh for name, wanted in shapes.items() for mesh in carve(self.group(name), wanted)]
        return replace(self, meshes=(*self.meshes, *made))

    def usd_per_hour(self, name: str) -> float | None:
        """Price of one device of the mesh or group `name`: its own, else the lowest on demand."""
        own = self._record(name).usd_per_hour
        return self.kind(name).usd_per_hour if own is None else own

    def tiers(self, name: str) -> tuple[Tier, ...]:
        """The memories of one device of the mesh `name`, nearest first, as far as they are known.

        On-chip memory whose bandwidth nobody says is taken to be as fast as the device's memory,
        below which it cannot be. A device whose only memory is on the chip has it as both. Host
        memory is there where the mesh says how much, and the kind how fast it is reached.
        """
        mesh, kind = self.mesh(name), self.kind(name)
        tiers = []
        if kind.on_chip_bytes is not None:
            rate = kind.on_chip_bytes_per_s or kind.memory_bytes_per_s
            tiers.append(Tier(name="on_chip", num_bytes=kind.on_chip_bytes, bytes_per_s=rate))
        own = self.memory_bytes(name)
        tiers.append(Tier(name="device", num_bytes=own, bytes_per_s=kind.memory_bytes_per_s))
        if mesh.host_memory_bytes is not None and kind.host_link_bytes_per_s is not None:
            rate = kind.host_link_bytes_per_s
            tiers.append(Tier(name="host", num_bytes=mesh.host_memory_bytes, bytes_per_s=rate))
        return tuple(tiers)

    def link(self, source: str, target: str) -> Link | None:
        """The way from one mesh to another, None if there is none; free from a mesh to itself.

        A mesh `h100/3` that has no link of its own is reached by those of group `h100`.
        """
        if self.mesh(source) is self.mesh(target):
            return Link(source=source, target=target, latency_s=0.0, bandwidth_bytes_per_s=math.inf)
        link = self._lookup.link(source, target)
        if link is None or (link.source, link.target) == (source, target):
            return link
        return replace(link, source=source, target=target)

    def sharing(self, name: str, what: str) -> tuple[str, ...]:
        """Names of the meshes, `name` included, that draw on the same 'compute' or 'memory'.

        A shared memory is one bandwidth and one capacity.
        """
        mesh = self.mesh(name)
        if what not in SHAREABLE:
            raise SpecError(f"{what!r} is nothing that meshes share; ask for 'compute' or 'memory'")
        if what not in mesh.shares:
            return (name,)
        return self._lookup.sharing[mesh.host, what]

    def backend(self, name: str) -> Backend:
        """What `discover` saw of the backend with this registered name."""
        for backend in self.backends:
            if backend.name == name:
                return backend
        raise SpecError(
            f"backend {name!r} was not looked at; discover() saw "
            f"{', '.join(repr(b.name) for b in self.backends) or 'none, as it did not run'}"
        )

    def fingerprint(self) -> str:
        """SHA-256 of what a plan depends on: meshes, groups, links, figures and prices.

        Order, sources and notes change nothing.
        """
        record = {
            "meshes": [asdict(mesh) for mesh in self.meshes],
            "links": [asdict(link) for link in self.links],
            "groups": [asdict(group) for group in self.groups],
            "kinds": [_figures(kind) for kind in self.kinds],
        }
        for rows in record.values():
            rows.sort(key=lambda row: json.dumps(row, sort_keys=True))
        return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()

    @classmethod
    def load(cls, path: str | Path) -> "Cluster":
        """Reads a cluster file; the README of this package has the format.

        Raises:
            SpecError: it cannot be read, or everything that is wrong in it.
        """
        return cls.from_toml(read_text(path, "cluster file"), name=str(path))

    @classmethod
    def from_toml(cls, text: str, name: str = "cluster") -> "Cluster":
        """The cluster that a TOML text describes; mistakes call it by `name`.

        Raises:
            SpecError: everything that is wrong in it.
        """
        check_arguments("gimlax.Cluster.from_toml", cls.from_toml, {"text": text, "name": name})
        mistakes: list[str] = []
        file = parse_cluster(text, name, mistakes)
        cross = [
            *mistakes_between(
                file.meshes, file.groups, file.links, file.kinds, file.names, file.refused
            ),
            *mistakes_of_groups(file.meshes, file.groups),
            *mistakes_of_workers(file.workers, file.meshes, file.refused_workers),
            *overlapping(file.meshes),
            *unreachable(file.names, file.groups, file.links),
        ]
        mistakes += [f"{name}: {mistake}" for mistake in cross]
        if mistakes:
            raise SpecError("\n".join(mistakes))
        try:
            return cls(
                meshes=file.meshes,
                links=file.links,
                kinds=file.kinds,
                groups=file.groups,
                workers=file.workers,
            )
        except SpecError as error:
            raise SpecError(f"{name}: {error}") from None

    def to_toml(self) -> str:
        """TOML that `load` reads back to an equal cluster."""
        return write_cluster(self.meshes, self.groups, self.links, self.kinds, self.workers)

    def __str__(self) -> str:
        tables = [show_meshes(self.meshes, self.kinds)] if self.meshes or not self.groups else []
        if self.groups:
            tables.append(show_groups(self.groups, self.kinds))
        if self.links:
            tables.append(show_links(self.links))
        if self.backends:
            tables.append(show_backends(self.backends))
        return "\n\n".join(tables)


def _figures(kind: DeviceKind) -> dict[str, Any]:
    """What a plan can depend on of a kind."""
    prices = sorted((p.provider, p.region, p.kind, p.usd_per_hour) for p in kind.prices)
    return {**asdict(kind), "prices": prices, "sources": (), "aliases": (), "notes": ()}


def _kinds_used(
    records: Iterable[MeshSpec | Group], kinds: Sequence[DeviceKind]
) -> tuple[DeviceKind, ...]:
    """The kinds that are needed, each once; given ones go before those of the catalogue."""
    called = dict.fromkeys(record.device_kind for record in records)
    used = [find_kind(kinds, name) or load_kind(name) for name in called]
    return tuple({kind.name: kind for kind in used}.values())
