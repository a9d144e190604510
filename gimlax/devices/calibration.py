"""Measured figures of the meshes of one machine: what a calibration leaves behind.

It holds samples, not coefficients, so that a better model can be fitted to them later, and it knows
what it belongs to: a version of JAX, a processor, the kind of each device. Units: seconds, bytes,
bytes/s.
"""

import dataclasses
import datetime
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import jax

from gimlax.checking import mistakes_of_fields
from gimlax.devices.calibration_file import SCHEMA_VERSION, write_calibration
from gimlax.devices.cluster import Cluster
from gimlax.devices.mesh import MeshSpec
from gimlax.devices.processor import processor_name
from gimlax.devices.reading import read_text, write_text
from gimlax.devices.report import show_measured
from gimlax.devices.samples import MeasuredLink, MeshCalibration, Slowdown, StageMemory
from gimlax.errors import SpecError
from gimlax.records import from_json

__all__ = ["Calibration"]

_ADVICE = "write it anew with scripts/calibrate.py"
_MOST_BYTES = 2**26


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """All figures of one run.

    Attributes:
        jax_version: with which they were measured.
        processor: of the host.
        date: ISO, when.
        meshes, links, slowdowns: the figures.
        memories: what compilers need for stages, of this machine or any other.

    Raises:
        SpecError: a mesh or a link is there twice, a link or a slowdown is of a mesh that is not
            there, or what it belongs to is not said.
    """

    jax_version: str
    processor: str
    date: str
    meshes: tuple[MeshCalibration, ...]
    links: tuple[MeasuredLink, ...] = ()
    slowdowns: tuple[Slowdown, ...] = ()
    memories: tuple[StageMemory, ...] = ()

    def __post_init__(self) -> None:
        wrong = mistakes_of_fields(self) or list(self._mistakes())
        if wrong:
            raise SpecError(f"calibration: {'; '.join(wrong)}")

    def _mistakes(self) -> Iterator[str]:
        for key in ("jax_version", "processor"):
            value = getattr(self, key)
            if not value or not value.isprintable():
                yield f"{key} is {value!r}; say it in a line"
        try:
            datetime.date.fromisoformat(self.date)
        except ValueError:
            yield f"date is {self.date!r}; give year, month and day: '2026-11-24'"
        names = [repr(mesh.mesh) for mesh in self.meshes]
        names += [f"{link.source!r} -> {link.target!r}" for link in self.links]
        names += [f"memory of stage {memory.of!r}" for memory in self.memories]
        for name, count in Counter(names).items():
            if count > 1:
                yield f"{name} is there {count} times; keep one"
        known = {mesh.mesh for mesh in self.meshes}
        ends = [((link.source, link.target), "link") for link in self.links]
        ends += [(slowdown.meshes, "slowdown") for slowdown in self.slowdowns]
        for pair, what in ends:
            if missing := [repr(mesh) for mesh in pair if mesh not in known]:
                yield (
                    f"it has a {what} of {pair[0]!r} and {pair[1]!r}, but no mesh "
                    f"{' and '.join(missing)}; leave it out"
                )

    @property
    def title(self) -> str:
        """When it was measured and with what, in a line."""
        return f"{self.date}, JAX {self.jax_version}, {self.processor}"

    def mesh(self, name: str) -> MeshCalibration | None:
        """Figures of the mesh of this name, None if it was not measured."""
        return next((m for m in self.meshes if m.mesh == name), None)

    def check(self, cluster: Cluster) -> None:
        """Refuses to price meshes by figures of something else.

        Raises:
            SpecError: it is of another version of JAX, another processor or another device than
                this cluster's, or knows none of its meshes; everything at once.
        """
        stale = []
        if self.jax_version != jax.__version__:
            stale.append(f"it was measured with JAX {self.jax_version}, this is {jax.__version__}")
        known = [mesh for mesh in cluster.meshes if self.mesh(mesh.name) is not None]
        compiled = {memory.mesh for memory in self.memories}
        for mesh in cluster.meshes:
            stale += self._differs(mesh)
        # A described mesh may stand elsewhere; one with a backend is live on this host.
        here = processor_name()
        if any(mesh.backend for mesh in known) and self.processor != here:
            stale.append(f"it was measured on {self.processor!r}, this host has {here!r}")
        if not known and not compiled & {mesh.name for mesh in cluster.meshes}:
            names = dict.fromkeys([*(m.mesh for m in self.meshes), *sorted(compiled)])
            stale.append(
                f"it knows meshes {', '.join(map(repr, names)) or 'none'}, but the"
                f" cluster has {', '.join(repr(m.name) for m in cluster.meshes)}"
            )
        if stale:
            raise SpecError(
                f"calibration of {self.date}: {'; '.join(stale)}; run scripts/calibrate.py again"
            )

    def _differs(self, mesh: MeshSpec) -> list[str]:
        measured = self.mesh(mesh.name)
        there = {f"{m.num_devices} x {m.device_kind!r}" for m in (measured,) if m is not None}
        there |= {
            f"{m.num_devices} x {m.device_kind!r}" for m in self.memories if m.mesh == mesh.name
        }
        here = f"{mesh.num_devices} x {mesh.device_kind!r}"
        return [
            f"mesh {mesh.name!r} was {one}, here it is {here}" for one in sorted(there - {here})
        ]

    def link(self, source: str, target: str) -> MeasuredLink | None:
        """The measured link, None if it was not measured."""
        ends = source, target
        return next((link for link in self.links if (link.source, link.target) == ends), None)

    def onto(self, cluster: Cluster) -> Cluster:
        """The same cluster with its links as measured; a link that it lacks is not added."""
        links = (
            link
            if (found := self.link(link.source, link.target)) is None
            else dataclasses.replace(
                link,
                latency_s=found.latency_s,
                bandwidth_bytes_per_s=found.bandwidth_bytes_per_s,
            )
            for link in cluster.links
        )
        return dataclasses.replace(cluster, links=tuple(links))

    def slowdown(self, meshes: tuple[str, ...]) -> float:
        """The largest factor measured between two of these meshes; 2, as if one had to wait for
        the other, where none was."""
        found = [s.factor for s in self.slowdowns if set(s.meshes) <= set(meshes)]
        return max(found, default=2.0)

    def __str__(self) -> str:
        tables = show_measured(self.meshes, self.links, self.slowdowns, self.memories)
        return f"calibration of {self.title}\n\n{tables}"

    def to_json(self) -> str:
        """JSON that `from_json` reads back to an equal calibration."""
        return write_calibration({f.name: getattr(self, f.name) for f in dataclasses.fields(self)})

    @classmethod
    def from_json(cls, text: str, name: str = "calibration") -> "Calibration":
        """The calibration of a JSON text, which mistakes call by `name`.

        Raises:
            SpecError: it is no calibration of this schema, or holds figures that none has.
        """
        return from_json(cls, text, SCHEMA_VERSION, name, error=SpecError, advice=_ADVICE)

    def save(self, path: str | Path) -> None:
        """Writes it as JSON.

        Raises:
            SpecError: the file cannot be written.
        """
        write_text(path, self.to_json(), "calibration")

    @classmethod
    def load(cls, path: str | Path) -> "Calibration":
        """Reads a calibration file.

        Raises:
            SpecError: it cannot be read, or is no calibration of this schema.
        """
        what = "calibration file"
        text = read_text(path, what, most_bytes=_MOST_BYTES, advice=_ADVICE)
        return cls.from_json(text, name=f"{what} {str(path)!r}")
