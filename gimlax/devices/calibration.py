"""Measured figures of the meshes of one machine: what a calibration leaves behind.

It holds samples, not coefficients, so that a better model can be fitted to them later, and it knows
what it belongs to: a version of JAX, a processor, the kind of each device. Units: seconds, bytes,
bytes/s.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import jax

from gimlax.devices.calibration_file import (
    parse_calibration,
    read_calibration,
    write_calibration,
)
from gimlax.devices.cluster import Cluster
from gimlax.devices.mesh import MeshSpec
from gimlax.devices.processor import processor_name
from gimlax.devices.report import show_measured
from gimlax.devices.samples import MeasuredLink, MeshCalibration, Slowdown
from gimlax.errors import SpecError

__all__ = ["Calibration"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """All figures of one run.

    Attributes:
        jax_version: with which they were measured.
        processor: of the host.
        date: ISO, when.
        meshes, links, slowdowns: the figures.

    Raises:
        SpecError: a mesh or a link is there twice, or what it belongs to is not said.
    """

    jax_version: str
    processor: str
    date: str
    meshes: tuple[MeshCalibration, ...]
    links: tuple[MeasuredLink, ...] = ()
    slowdowns: tuple[Slowdown, ...] = ()

    def __post_init__(self) -> None:
        wrong = [
            f"{key} is {value!r}; say it"
            for key in ("jax_version", "processor", "date")
            if not isinstance(value := getattr(self, key), str) or not value
        ]
        names = [repr(mesh.mesh) for mesh in self.meshes]
        names += [f"{link.source!r} -> {link.target!r}" for link in self.links]
        twice = sorted({name for name in names if names.count(name) > 1})
        wrong += [f"{name} is there {names.count(name)} times; keep one" for name in twice]
        if wrong:
            raise SpecError(f"calibration: {'; '.join(wrong)}")

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
        for mesh in known:
            stale += self._differs(mesh)
        # A described mesh may stand elsewhere; one with a backend is live on this host.
        here = processor_name()
        if any(mesh.backend for mesh in known) and self.processor != here:
            stale.append(f"it was measured on {self.processor!r}, this host has {here!r}")
        if not known:
            stale.append(
                f"it knows meshes {', '.join(repr(m.mesh) for m in self.meshes) or 'none'}, but the"
                f" cluster has {', '.join(repr(m.name) for m in cluster.meshes)}"
            )
        if stale:
            raise SpecError(
                f"calibration of {self.date}: {'; '.join(stale)}; run scripts/calibrate.py again"
            )

    def _differs(self, mesh: MeshSpec) -> list[str]:
        measured = self.mesh(mesh.name)
        assert measured is not None
        there = f"{measured.num_devices} x {measured.device_kind!r}"
        here = f"{mesh.num_devices} x {mesh.device_kind!r}"
        return [f"mesh {mesh.name!r} was {there}, here it is {here}"] if there != here else []

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
        tables = show_measured(self.meshes, self.links, self.slowdowns)
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
        fields = parse_calibration(text, name)
        try:
            return cls(**fields)
        except SpecError as error:
            raise SpecError(f"{name}: {error}; write it anew with scripts/calibrate.py") from None
        except TypeError as error:  # a key that is missing or that it does not have
            raise SpecError(
                f"{name}: {str(error).partition(' ')[2]}; write it anew with scripts/calibrate.py"
            ) from None

    def save(self, path: str | Path) -> None:
        """Writes it as JSON."""
        Path(path).write_text(self.to_json(), "utf-8")

    @classmethod
    def load(cls, path: str | Path) -> "Calibration":
        """Reads a calibration file.

        Raises:
            SpecError: it cannot be read, or is no calibration of this schema.
        """
        return cls.from_json(read_calibration(path), name=f"calibration file {str(path)!r}")
