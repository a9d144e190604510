"""The hardware at hand: meshes of equal devices, the links between them, and what they share.

Figures only: no record here holds a live device, so a cluster can be planned for where it is not.
Units: bytes, bytes/s, seconds. Chosen over one flat list of devices because a stage runs on a mesh,
and over a topology of switches because the measured cost of a hand-over is what a plan needs.
"""

import hashlib
import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field

from gimlax.devices.backends import Backend
from gimlax.devices.kinds import DeviceKind
from gimlax.errors import SpecError

__all__ = ["AXIS_NAMES", "SHAREABLE", "Cluster", "Link", "MeshSpec"]

AXIS_NAMES = ("data", "model")
SHAREABLE = ("compute", "memory")


@dataclass(frozen=True, slots=True, kw_only=True)
class MeshSpec:
    """A mesh of equal devices, described.

    Attributes:
        name: how plans and errors call it.
        device_kind: name in the catalogue, or what PJRT reports.
        num_devices: product of the axis sizes.
        axes: (axis name, size); the names are those of every other mesh.
        backend: registered name of the backend that has the devices, empty when it is not live.
        first_device: index of its first device among that backend's local ones.
        host: meshes with equal host share one; empty: a host of its own.
        shares: which of `compute` and `memory` it shares with the meshes of its host that share them too.
        memory_bytes: memory of one device where it differs from the kind's.
    """

    name: str
    device_kind: str
    num_devices: int = 1
    axes: tuple[tuple[str, int], ...] = (("data", 1), ("model", 1))
    backend: str = ""
    first_device: int = 0
    host: str = ""
    shares: tuple[str, ...] = ()
    memory_bytes: int | None = None

    def __post_init__(self) -> None:
        if mistakes := list(self._mistakes()):
            raise SpecError(f"mesh {self.name!r}: {'; '.join(mistakes)}")

    def _mistakes(self) -> Iterable[str]:
        if not self.name:
            yield "its name is empty; give it one"
        if self.num_devices < 1:
            yield f"num_devices is {self.num_devices}; give at least 1"
        if tuple(axis for axis, _ in self.axes) != AXIS_NAMES:
            yield (
                f"its axes are {', '.join(repr(axis) for axis, _ in self.axes) or 'none'}; every mesh "
                "has 'data' and 'model', in this order, of size 1 where not used"
            )
        elif math.prod(size for _, size in self.axes) != self.num_devices:
            shape = " x ".join(str(size) for _, size in self.axes)
            yield f"its axes hold {shape} devices, but num_devices is {self.num_devices}; make them agree"
        if self.first_device < 0:
            yield f"first_device is {self.first_device}; give an index from 0"
        if unknown := [what for what in self.shares if what not in SHAREABLE]:
            yield f"it shares {', '.join(map(repr, unknown))}; only 'compute' and 'memory' can be shared"
        if self.shares and not self.host:
            yield "it shares with the meshes of its host, but has no host; name the host"
        if self.memory_bytes is not None and self.memory_bytes <= 0:
            yield f"memory_bytes is {self.memory_bytes}; give a positive number or leave it out"


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """A way from one mesh to another: one direction."""

    source: str
    target: str
    latency_s: float
    bandwidth_bytes_per_s: float

    def __post_init__(self) -> None:
        wrong = []
        if not (self.latency_s >= 0 and math.isfinite(self.latency_s)):
            wrong.append(f"latency is {self.latency_s} s; give 0 or more")
        if not self.bandwidth_bytes_per_s > 0:
            wrong.append(
                f"bandwidth is {self.bandwidth_bytes_per_s} bytes/s, so nothing could cross it; give a "
                "positive rate or leave the link out"
            )
        if wrong:
            raise SpecError(f"link {self.source!r} -> {self.target!r}: {'; '.join(wrong)}")

    def transfer_s(self, num_bytes: float) -> float:
        """Seconds for one message of `num_bytes`."""
        return self.latency_s + num_bytes / self.bandwidth_bytes_per_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """Meshes, the links between them and the figures of their kinds.

    `kinds` are those that the meshes need. `backends` says what `discover` saw, the unavailable
    ones too; it takes no part in comparison or fingerprint.
    """

    meshes: tuple[MeshSpec, ...]
    links: tuple[Link, ...] = ()
    kinds: tuple[DeviceKind, ...]
    backends: tuple[Backend, ...] = field(default=(), compare=False)

    def mesh(self, name: str) -> MeshSpec:
        """The mesh of this name.

        Raises:
            SpecError: there is none; says which there are.
        """
        for mesh in self.meshes:
            if mesh.name == name:
                return mesh
        raise SpecError(
            f"mesh {name!r} is not in the cluster, which has "
            f"{', '.join(repr(mesh.name) for mesh in self.meshes) or 'none'}; use one of these"
        )

    def kind(self, name: str) -> DeviceKind:
        """Figures of the devices of the mesh `name`."""
        wanted = self.mesh(name).device_kind
        found = [kind for kind in self.kinds if wanted == kind.name]
        found += [kind for kind in self.kinds if wanted in kind.aliases]
        return found[0]

    def memory_bytes(self, name: str) -> int:
        """Memory of one device of the mesh `name`.

        Meshes that share memory each say the whole of it: together they must fit into it.
        """
        return self.mesh(name).memory_bytes or self.kind(name).memory_bytes

    def link(self, source: str, target: str) -> Link | None:
        """The way from one mesh to another, None if there is none; free within a mesh."""
        self.mesh(source), self.mesh(target)
        if source == target:
            return Link(source=source, target=target, latency_s=0.0, bandwidth_bytes_per_s=math.inf)
        found = [link for link in self.links if (link.source, link.target) == (source, target)]
        return found[0] if found else None

    def sharing(self, name: str, what: str) -> tuple[str, ...]:
        """Names of the meshes, `name` included, that draw on the same 'compute' or 'memory'.

        Shared memory is one bandwidth and one capacity.
        """
        mesh = self.mesh(name)
        if what not in SHAREABLE:
            raise SpecError(f"{what!r} cannot be shared; ask for 'compute' or 'memory'")
        if what not in mesh.shares:
            return (name,)
        return tuple(m.name for m in self.meshes if m.host == mesh.host and what in m.shares)

    def fingerprint(self) -> str:
        """SHA-256 of everything that a plan depends on: meshes, links and figures, not their sources."""
        kinds = [asdict(kind) for kind in self.kinds]
        for kind in kinds:
            del kind["sources"]
        record = {
            "meshes": [asdict(mesh) for mesh in self.meshes],
            "links": [asdict(link) for link in self.links],
            "kinds": kinds,
        }
        for rows in record.values():
            rows.sort(key=lambda row: json.dumps(row, sort_keys=True))
        return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
