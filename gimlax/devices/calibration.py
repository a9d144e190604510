"""Measured figures of the meshes of one machine: what a calibration leaves behind.

It holds samples, not coefficients, so that a better model can be fitted to them later, and it knows
what it belongs to: a version of JAX, a processor, the kind of each device. Written as JSON with a
sample a line. Units: seconds, bytes, bytes/s, FLOPs.
"""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from gimlax.devices.cluster import Cluster
from gimlax.devices.mesh import MeshSpec
from gimlax.devices.processor import processor_name
from gimlax.errors import SpecError

__all__ = ["Calibration", "MeasuredLink", "MeshCalibration", "Sample", "Slowdown"]

SCHEMA = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One operation that was timed.

    Attributes:
        kind, dims, dtype, layout: as operations of a segment have them: 'matmul', (1, m, n, k), ...
        flops, transcendentals, num_bytes: its work and its memory traffic.
        out_itemsize: bytes of an element of the result.
        seconds: of one, the dispatch taken off: the lower quartile of the repeats, as the probe
            says it would have been at the speed of the whole run.
        spread: distance of the quartiles of the repeats over their median.
    """

    kind: str
    dims: tuple[int, ...]
    dtype: str
    layout: str = ""
    flops: float = 0.0
    transcendentals: float = 0.0
    num_bytes: float = 0.0
    out_itemsize: int = 4
    seconds: float
    spread: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class MeshCalibration:
    """What was measured on the first device of a mesh.

    Attributes:
        mesh: its name.
        device_kind: what PJRT reported.
        num_devices: of the mesh.
        dispatch_s: host time of a compiled call that does next to nothing.
        probe_s: the reference program, to tell how fast the machine was.
        samples: of operations.
    """

    mesh: str
    device_kind: str
    num_devices: int
    dispatch_s: float
    probe_s: float
    samples: tuple[Sample, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredLink:
    """A link by a least-squares fit over messages of several sizes.

    `aliases` says that an array arrives without being copied, because both meshes use the same
    memory; latency and bandwidth are then those of a forced copy, which is what a program pays
    once either side has to own its memory.
    """

    source: str
    target: str
    latency_s: float
    bandwidth_bytes_per_s: float
    aliases: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Slowdown:
    """How many times longer two meshes take when both compute than one alone: 1 to about 2."""

    meshes: tuple[str, str]
    factor: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """All figures of one run.

    Attributes:
        jax_version: with which they were measured.
        processor: of the host.
        date: ISO, when.
        meshes, links, slowdowns: the figures.
    """

    jax_version: str
    processor: str
    date: str
    meshes: tuple[MeshCalibration, ...]
    links: tuple[MeasuredLink, ...] = ()
    slowdowns: tuple[Slowdown, ...] = ()

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
        if any(mesh.backend and mesh.shares for mesh in known) and (
            self.processor != processor_name()
        ):
            stale.append(f"its host has {self.processor!r}, this one {processor_name()!r}")
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

    def to_json(self) -> str:
        """JSON that `from_json` reads back to an equal calibration."""
        record = {"schema": SCHEMA, **dataclasses.asdict(self)}
        meshes = record.pop("meshes")
        lines = ["{"]
        lines += [f" {json.dumps(key)}: {json.dumps(value)}," for key, value in record.items()]
        blocks = []
        for mesh in meshes:
            samples = ",\n   ".join(json.dumps(sample) for sample in mesh.pop("samples"))
            blocks.append(f'  {json.dumps(mesh)[:-1]}, "samples": [\n   {samples}]}}')
        return "\n".join(lines) + '\n "meshes": [\n' + ",\n".join(blocks) + "\n ]\n}\n"

    @classmethod
    def from_json(cls, text: str, name: str = "calibration") -> "Calibration":
        """The calibration of a JSON text, which mistakes call by `name`.

        Raises:
            SpecError: it is no calibration, or one of another schema.
        """
        advice = "write it anew with scripts/calibrate.py"
        try:
            record = json.loads(text)
            schema = record.pop("schema")
            if schema != SCHEMA:
                raise SpecError(f"{name}: it has schema {schema}, this is {SCHEMA}; {advice}")
            record["meshes"] = tuple(_mesh(mesh) for mesh in record["meshes"])
            record["links"] = tuple(MeasuredLink(**link) for link in record["links"])
            record["slowdowns"] = tuple(
                Slowdown(meshes=tuple(pair["meshes"]), factor=float(pair["factor"]))
                for pair in record["slowdowns"]
            )
            return cls(**record)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise SpecError(f"{name}: it is no calibration ({error!r}); {advice}") from error

    def save(self, path: str | Path) -> None:
        """Writes it as JSON."""
        Path(path).write_text(self.to_json(), "utf-8")

    @classmethod
    def load(cls, path: str | Path) -> "Calibration":
        """Reads a calibration file.

        Raises:
            SpecError: it cannot be read, or is no calibration of this schema.
        """
        try:
            text = Path(path).read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise SpecError(
                f"calibration file {str(path)!r} cannot be read ({error}); write one with"
                " scripts/calibrate.py"
            ) from error
        return cls.from_json(text, name=str(path))


def _mesh(record: dict[str, Any]) -> MeshCalibration:
    samples = tuple(
        Sample(**{**sample, "dims": tuple(sample["dims"])}) for sample in record.pop("samples")
    )
    if any(not s.seconds > 0 for s in samples):
        raise ValueError("a sample without positive seconds")
    return MeshCalibration(samples=samples, **record)
