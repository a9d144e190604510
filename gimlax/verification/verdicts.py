"""What a verification found: a verdict on every stage and every mesh, and what it did not look at.

Plain data that keeps as JSON. Units: seconds, bytes and FLOPs of one device.
"""

import dataclasses
import datetime
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Self

import jax

from gimlax.checking import mistakes_of_fields
from gimlax.devices import Calibration, StageMemory
from gimlax.devices.processor import processor_name
from gimlax.devices.reading import read_text, write_text
from gimlax.errors import SpecError
from gimlax.records import Amount, Count, from_json, to_json
from gimlax.verification.answers import Compiled, Emitted
from gimlax.verification.report import show

__all__ = [
    "COMPILED",
    "FAILED",
    "LOWERED",
    "NO_ROOM",
    "OUTCOMES",
    "REFUSED",
    "MeshVerdict",
    "StageVerdict",
    "Verification",
]

SCHEMA_VERSION = 1
_MOST_BYTES = 2**26
_ADVICE = "verify the plan again"

COMPILED, NO_ROOM, REFUSED, FAILED, LOWERED = (
    "compiled",
    "no room",
    "refused",
    "failed",
    "lowered only",
)
OUTCOMES = MappingProxyType(
    {
        COMPILED: "the compiler of its hardware made a program of it",
        NO_ROOM: "it needs more memory than a device has",
        REFUSED: "the compiler or JAX refused it",
        FAILED: "the compiler hung, crashed or said nothing that can be understood",
        LOWERED: "JAX lowered it to StableHLO, and no compiler was asked",
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class StageVerdict:
    """One stage of one phase.

    Attributes:
        phase: its name. stage: index in the phase. mesh, device_kind: where it is to run.
        first_segment, last_segment: names of its segments at both ends.
        start, num_segments: which these are, in the order of the plan.
        target: what it was compiled for, 'v5e:2x2'.
        compiler: versions of what compiled it, empty where nothing did.
        outcome: one of OUTCOMES. reason: why it is not 'compiled', empty if it is.
        seconds: that the compiler took. same_as: the description of an equal stage that was
            compiled in its place, empty where it was compiled itself.
        compiled: what the compiler said, None where it made nothing.
        planned_flops, planned_accessed_bytes: of the plan's sharding, from the graph.
        planned_collectives: of the plan, None where they are not known.
    """

    phase: str
    stage: Count
    mesh: str
    device_kind: str
    first_segment: str
    last_segment: str
    start: Count
    num_segments: Count
    target: str
    compiler: str = ""
    outcome: str
    reason: str = ""
    seconds: Amount = 0.0
    same_as: str = ""
    compiled: Compiled | None = None
    planned_flops: Amount
    planned_accessed_bytes: Amount
    planned_collectives: tuple[Emitted, ...] | None = None

    def __post_init__(self) -> None:
        wrong = mistakes_of_fields(self)
        if not wrong and self.outcome not in OUTCOMES:
            wrong = [f"outcome is {self.outcome!r}; give one of {', '.join(map(repr, OUTCOMES))}"]
        if not wrong and self.outcome == COMPILED and self.compiled is None:
            wrong = ["outcome is 'compiled', but there are no figures of the program"]
        if wrong:
            raise SpecError(f"stage {self.stage} of phase {self.phase!r}: {'; '.join(wrong)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class MeshVerdict:
    """Memory of one device of a mesh over all its stages; `axes` are (name, devices along it).

    `needed_bytes` are what stays there and the most that any stage needs besides, by the compiler;
    None where one of its stages was not compiled, or the backend does not tell. `planned_bytes` is
    what the plan reckoned with, `capacity_bytes` what there is.
    """

    mesh: str
    device_kind: str
    axes: tuple[tuple[str, Count], ...]
    needed_bytes: Count | None
    planned_bytes: Count
    capacity_bytes: Count

    @property
    def num_devices(self) -> int:
        """The product of its axes."""
        return math.prod(size for _, size in self.axes)

    @property
    def fits(self) -> bool | None:
        """Whether it has room; None where that is not known."""
        return None if self.needed_bytes is None else self.needed_bytes <= self.capacity_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """All verdicts on one plan.

    Attributes:
        model, cluster: fingerprints of what the plan was made for.
        date: ISO.
        stages, meshes: the verdicts, in the order of phases and of the plan.
        not_checked: what a reader must not take for checked, a sentence each.
    """

    model: str
    cluster: str
    date: str
    stages: tuple[StageVerdict, ...]
    meshes: tuple[MeshVerdict, ...]
    not_checked: tuple[str, ...]

    def __post_init__(self) -> None:
        wrong = mistakes_of_fields(self) or list(self._mistakes())
        if wrong:
            raise SpecError(f"verification: {'; '.join(wrong)}; {_ADVICE}")

    def _mistakes(self) -> Iterator[str]:
        try:
            datetime.date.fromisoformat(self.date)
        except ValueError:
            yield f"date is {self.date!r}; give year, month and day"
        names = {mesh.mesh for mesh in self.meshes}
        for mesh in sorted({stage.mesh for stage in self.stages} - names):
            yield f"it has a stage on mesh {mesh!r} and no verdict on that mesh"

    @property
    def ok(self) -> bool:
        """Whether every stage was compiled and every mesh is known to have room."""
        return all(stage.outcome == COMPILED for stage in self.stages) and all(
            mesh.fits is True for mesh in self.meshes
        )

    @property
    def faults(self) -> tuple[str, ...]:
        """What stands in the way, a sentence each; what was only lowered is none."""
        found = [
            f"stage {stage.stage} of phase {stage.phase!r} on mesh {stage.mesh!r}: {stage.outcome}"
            f" ({stage.reason})"
            for stage in self.stages
            if stage.outcome not in (COMPILED, LOWERED)
        ]
        found += [
            f"mesh {mesh.mesh!r} needs {mesh.needed_bytes} bytes on each device, and one has"
            f" {mesh.capacity_bytes}"
            for mesh in self.meshes
            if mesh.fits is False
        ]
        return tuple(found)

    def __str__(self) -> str:
        return show(self)

    def calibration(self, base: Calibration | None = None) -> Calibration:
        """What compilers need for stages, for `gimlax.plan(..., calibration=)`.

        The planner then charges these stages, and larger ones around them, what their compiler
        asked for instead of what the graph lets one expect.

        Args:
            base: figures to add them to; an older one of the same stage is replaced.

        Raises:
            SpecError: `base` belongs to another version of JAX or another processor.
        """
        base = base or Calibration(
            jax_version=jax.__version__, processor=processor_name(), date=self.date, meshes=()
        )
        if (base.jax_version, base.processor) != (jax.__version__, processor_name()):
            raise SpecError(
                f"calibration of {base.title}: this is JAX {jax.__version__} on"
                f" {processor_name()!r}; calibrate again, or keep these figures in a file of their"
                " own"
            )
        found = {memory.of: memory for memory in base.memories}
        found |= {memory.of: memory for memory in self._memories()}
        return dataclasses.replace(base, memories=tuple(found.values()))

    def _memories(self) -> Iterator[StageMemory]:
        axes = {mesh.mesh: mesh.axes for mesh in self.meshes}
        by_stage: dict[tuple[str, int, int], list[StageVerdict]] = {}
        for stage in self.stages:
            key = stage.mesh, stage.start, stage.num_segments
            by_stage.setdefault(key, []).append(stage)
        for (mesh, start, num_segments), phases in by_stage.items():
            told = [of.compiled for of in phases if of.compiled and of.compiled.told_memory]
            if len(told) == len(phases):
                yield StageMemory(
                    mesh=mesh,
                    device_kind=phases[0].device_kind,
                    axes=axes[mesh],
                    model=self.model,
                    first_segment=start,
                    num_segments=num_segments,
                    needed_bytes=max(of.needed_bytes for of in told),
                    compiler=phases[0].compiler,
                )

    def to_json(self) -> str:
        """JSON that `from_json` reads back to an equal verification."""
        return to_json(self, SCHEMA_VERSION)

    @classmethod
    def from_json(cls, text: str, *, name: str = "verification") -> Self:
        """The verification that `to_json` wrote; it is not trusted.

        Raises:
            SpecError: it is none, of another schema version, or contradicts itself.
        """
        return from_json(cls, text, SCHEMA_VERSION, name, error=SpecError, advice=_ADVICE)

    def save(self, path: str | Path) -> None:
        """Writes it as JSON.

        Raises:
            SpecError: the file cannot be written.
        """
        write_text(path, self.to_json(), "verification")

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Reads the verification that `save` wrote.

        Raises:
            SpecError: there is no such file, or it holds no verification.
        """
        what = "verification"
        text = read_text(path, what, most_bytes=_MOST_BYTES, advice=_ADVICE)
        return cls.from_json(text, name=f"{what} {str(path)!r}")
