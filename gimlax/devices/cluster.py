"""The hardware at hand: meshes of equal devices, the links between them, and what they share.

Figures only: no record here holds a live device, so a cluster can be planned for where it is not.
Chosen over a flat list of devices because a stage runs on a mesh, and over a topology of switches
because the cost of a hand-over is what a plan needs. Units: bytes, bytes/s, seconds.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from gimlax.devices.backends import Backend
from gimlax.devices.catalogue import load_kind
from gimlax.devices.cluster_file import parse_cluster, read_text, write_cluster
from gimlax.devices.kinds import DeviceKind, find_kind
from gimlax.devices.mesh import SHAREABLE, Link, MeshSpec
from gimlax.devices.report import show_backends, show_links, show_meshes
from gimlax.errors import SpecError

__all__ = ["Cluster"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """Meshes, the links between them and the figures of their kinds.

    `kinds` may be left out where the catalogue knows them; it always ends up as those that the
    meshes need. `backends` is what `discover` saw, unavailable ones too; it takes no part in
    comparison, fingerprint or TOML.

    Raises:
        SpecError: names that repeat, links to meshes that are not there, kinds that nobody knows,
            meshes that share a memory but not its size; all of them at once.
    """

    meshes: tuple[MeshSpec, ...]
    links: tuple[Link, ...] = ()
    kinds: tuple[DeviceKind, ...] = ()
    backends: tuple[Backend, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        names = [mesh.name for mesh in self.meshes]
        mistakes = list(_mistakes(self.meshes, self.links, self.kinds, names))
        if not mistakes:
            object.__setattr__(self, "kinds", _kinds_used(self.meshes, self.kinds))
            mistakes = list(_unequal_memories(self))
        if mistakes:
            raise SpecError("\n".join(mistakes))

    def mesh(self, name: str) -> MeshSpec:
        """The mesh of this name.

        Raises:
            SpecError: there is none; says which there are, and why a backend of this name has none.
        """
        for mesh in self.meshes:
            if mesh.name == name:
                return mesh
        why = [b.reason for b in self.backends if b.name == name.partition(":")[0] and b.reason]
        had = ", ".join(repr(mesh.name) for mesh in self.meshes) or "none"
        raise SpecError(
            f"mesh {name!r} is not in the cluster{f' ({why[0]})' if why else ''}, which has {had}; "
            "use one of these"
        )

    def kind(self, name: str) -> DeviceKind:
        """Figures of the devices of the mesh `name`."""
        kind = find_kind(self.kinds, self.mesh(name).device_kind)
        assert kind is not None
        return kind

    def memory_bytes(self, name: str) -> int:
        """Memory of one device of the mesh `name`.

        Meshes that share a memory each say the whole of it: together they must fit into it.
        """
        return self.mesh(name).memory_bytes or self.kind(name).memory_bytes

    def link(self, source: str, target: str) -> Link | None:
        """The way from one mesh to another, None if there is none; free from a mesh to itself."""
        if self.mesh(source) == self.mesh(target):
            return Link(source=source, target=target, latency_s=0.0, bandwidth_bytes_per_s=math.inf)
        found = [link for link in self.links if (link.source, link.target) == (source, target)]
        return found[0] if found else None

    def sharing(self, name: str, what: str) -> tuple[str, ...]:
        """Names of the meshes, `name` included, that draw on the same 'compute' or 'memory'.

        A shared memory is one bandwidth and one capacity.
        """
        mesh = self.mesh(name)
        if what not in SHAREABLE:
            raise SpecError(f"{what!r} is nothing that meshes share; ask for 'compute' or 'memory'")
        if what not in mesh.shares:
            return (name,)
        return tuple(m.name for m in self.meshes if m.host == mesh.host and what in m.shares)

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
        """SHA-256 of what a plan depends on: meshes, links, figures; in any order, no sources."""
        record = {
            "meshes": [asdict(mesh) for mesh in self.meshes],
            "links": [asdict(link) for link in self.links],
            "kinds": [{**asdict(kind), "sources": (), "aliases": ()} for kind in self.kinds],
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
        return cls.from_toml(read_text(path), name=str(path))

    @classmethod
    def from_toml(cls, text: str, name: str = "cluster") -> "Cluster":
        """The cluster that a TOML text describes; mistakes call it by `name`.

        Raises:
            SpecError: everything that is wrong in it.
        """
        mistakes: list[str] = []
        file = parse_cluster(text, name, mistakes)
        cross = _mistakes(file.meshes, file.links, file.kinds, file.names)
        mistakes += [f"{name}: {mistake}" for mistake in cross]
        if mistakes:
            raise SpecError("\n".join(mistakes))
        try:
            return cls(meshes=file.meshes, links=file.links, kinds=file.kinds)
        except SpecError as error:
            raise SpecError(f"{name}: {error}") from None

    def to_toml(self) -> str:
        """TOML that `load` reads back to an equal cluster."""
        return write_cluster(self.meshes, self.links, self.kinds)

    def __str__(self) -> str:
        tables = [show_meshes(self.meshes, self.kinds)]
        if self.links:
            tables.append(show_links(self.links))
        if self.backends:
            tables.append(show_backends(self.backends))
        return "\n\n".join(tables)


def _mistakes(
    meshes: Sequence[MeshSpec],
    links: Sequence[Link],
    kinds: Sequence[DeviceKind],
    names: Sequence[str],
) -> Iterator[str]:
    """What does not fit together; `names` are of all meshes, those that cannot be built too."""
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield f"mesh {name!r} is there {names.count(name)} times; give each its own name"
    for mesh in meshes:
        if find_kind(kinds, mesh.device_kind) is None:
            try:
                load_kind(mesh.device_kind)
            except SpecError as error:
                yield f"mesh {mesh.name!r}: {error}"
    seen: set[tuple[str, str]] = set()
    for link in links:
        where = f"link {link.source!r} -> {link.target!r}"
        if missing := sorted({link.source, link.target}.difference(names)):
            yield (
                f"{where}: no mesh is called {' or '.join(map(repr, missing))} (there are "
                f"{', '.join(map(repr, names)) or 'none'}); correct the name or add the mesh"
            )
        if link.source == link.target:
            yield f"{where}: within a mesh it is free; leave it out"
        if (link.source, link.target) in seen:
            yield f"{where} is there twice; keep one"
        seen.add((link.source, link.target))


def _kinds_used(meshes: Sequence[MeshSpec], kinds: Sequence[DeviceKind]) -> tuple[DeviceKind, ...]:
    """The kinds that the meshes need, each once; given ones go before those of the catalogue."""
    used = [find_kind(kinds, mesh.device_kind) or load_kind(mesh.device_kind) for mesh in meshes]
    return tuple({kind.name: kind for kind in used}.values())


def _unequal_memories(cluster: Cluster) -> Iterator[str]:
    """Meshes that share one memory and differ in how large it is."""
    for mesh in cluster.meshes:
        first = cluster.sharing(mesh.name, "memory")[0]
        sizes = cluster.memory_bytes(first), cluster.memory_bytes(mesh.name)
        if sizes[0] != sizes[1]:
            yield (
                f"meshes {first!r} and {mesh.name!r} share the memory of {mesh.host!r}, but one "
                f"has {sizes[0]} bytes, the other {sizes[1]}; give both the whole memory_bytes"
            )
