"""What one measurement is: an operation that was timed, a mesh, a link, a pair that shares a host.

Checked where they are made, because they also come from files. Units: seconds, bytes, bytes/s,
FLOPs.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any

import jax.numpy as jnp

from gimlax.checking import Range, mistakes_of_fields
from gimlax.devices.mesh import MOST_BYTES, MOST_DEVICES
from gimlax.errors import SpecError

__all__ = ["MeasuredLink", "MeshCalibration", "Sample", "Slowdown", "StageMemory"]

_MOST_ELEMENTS = 2**60
_Size = Annotated[int, Range(1, _MOST_ELEMENTS)]
_Work = Annotated[float, Range(0, 1e21)]  # FLOPs or bytes: hours of the fastest device
_Seconds = Annotated[float, Range(1e-12, 1e6)]  # below a clock's tick to eleven days

# The kinds of operations that are timed, as those of segments, and how many sizes matter to each.
_NUM_DIMS = {
    "matmul": 4,
    "attention": 6,
    "convolution": 4,
    "grouped": 4,
    "elementwise": 1,
    "reduction": 2,
    "gather": 2,
    "sort": 2,
    "other": 1,
    "sweep": 1,  # over parameters that no cache holds
    "all_reduce": 2,  # how many devices take part, and bytes
    "all_gather": 2,
}


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

    Raises:
        SpecError: a figure that no measurement can give.
    """

    kind: str
    dims: tuple[_Size, ...]
    dtype: str
    layout: str = ""
    flops: _Work = 0.0
    transcendentals: _Work = 0.0
    num_bytes: _Work = 0.0
    out_itemsize: Annotated[int, Range(1, 64)] = 4
    seconds: _Seconds
    spread: Annotated[float, Range(0, 1e6)] = 0.0

    def __post_init__(self) -> None:
        wrong = mistakes_of_fields(self) or list(self._mistakes())
        _refuse(f"sample {self.kind!r} {self.dims!r}", *wrong)

    def _mistakes(self) -> Iterator[str]:
        num_dims = _NUM_DIMS.get(self.kind)
        if num_dims is None:
            yield f"kind is {self.kind!r}; give one of {', '.join(_NUM_DIMS)}"
        elif len(self.dims) != num_dims:
            yield f"dims is {self.dims!r}; give the {num_dims} sizes of a {self.kind}"
        elif math.prod(self.dims) > _MOST_ELEMENTS:
            yield f"dims is {self.dims!r}: more elements than any device has; give true sizes"
        if self.kind == "sweep" and not self.num_bytes:
            yield "num_bytes is 0, but a sweep goes over bytes; give them"
        try:
            known = str(jnp.dtype(self.dtype)) == self.dtype
        except TypeError:
            known = False
        if not known:
            yield f"dtype is {self.dtype!r}; give a dtype of JAX by name, such as 'float32'"


@dataclass(frozen=True, slots=True, kw_only=True)
class MeshCalibration:
    """What was measured on a mesh, each operation on all of its devices at once.

    Attributes:
        mesh: its name.
        device_kind: what PJRT reported.
        num_devices: of the mesh.
        dispatch_s: what a call takes beyond its operations.
        probe_s: the reference program, to tell how fast the machine was.
        samples: of operations, and of collectives between several devices, whose dims are how many
            take part and bytes.

    Raises:
        SpecError: a figure that no measurement can give.
    """

    mesh: str
    device_kind: str
    num_devices: Annotated[int, Range(1, MOST_DEVICES)]
    dispatch_s: _Seconds
    probe_s: _Seconds
    samples: tuple[Sample, ...]

    def __post_init__(self) -> None:
        wrong = mistakes_of_fields(self) or _no_words(self, "mesh", "device_kind")
        _refuse(f"mesh {self.mesh!r}", *wrong)


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredLink:
    """A link by a least-squares fit over messages of several sizes.

    `aliases` says that an array arrives without being copied, because both meshes use the same
    memory; latency and bandwidth are then those of a forced copy, which is what a program pays
    once either side has to own its memory.

    Raises:
        SpecError: a figure that no measurement can give.
    """

    source: str
    target: str
    latency_s: Annotated[float, Range(0, 1e6)]
    bandwidth_bytes_per_s: Annotated[float, Range(1, 1e18)]
    aliases: bool = False

    def __post_init__(self) -> None:
        wrong = mistakes_of_fields(self) or _no_words(self, "source", "target")
        _refuse(f"link {self.source!r} -> {self.target!r}", *wrong)


@dataclass(frozen=True, slots=True, kw_only=True)
class Slowdown:
    """How many times longer two meshes take when both compute than one alone: 1 to about 2.

    Raises:
        SpecError: a figure that no measurement can give.
    """

    meshes: tuple[str, str]
    factor: Annotated[float, Range(1e-3, 1e3)]

    def __post_init__(self) -> None:
        wrong = mistakes_of_fields(self)
        if not wrong and self.meshes[0] == self.meshes[1]:
            wrong = [f"meshes is {self.meshes!r}; name two"]
        _refuse(f"slowdown of {self.meshes!r}", *wrong)


@dataclass(frozen=True, slots=True, kw_only=True)
class StageMemory:
    """What a compiler needs for a stage on each device of a mesh, arguments and program included.

    Attributes:
        mesh, device_kind, axes: where; devices by axis.
        model: fingerprint of the workload.
        first_segment, num_segments: which segments, in the order of the plan.
        needed_bytes: of the phase that needs most.
        compiler: versions of what said so.

    Raises:
        SpecError: a figure that no compiler can give.
    """

    mesh: str
    device_kind: str
    axes: tuple[tuple[str, Annotated[int, Range(1, MOST_DEVICES)]], ...]
    model: str
    first_segment: Annotated[int, Range(0, MOST_DEVICES)]
    num_segments: Annotated[int, Range(1, MOST_DEVICES)]
    needed_bytes: Annotated[int, Range(0, MOST_BYTES)]
    compiler: str

    def __post_init__(self) -> None:
        wrong = mistakes_of_fields(self)
        wrong = wrong or _no_words(self, "mesh", "device_kind", "model", "compiler")
        _refuse(f"memory of a stage on mesh {self.mesh!r}", *wrong)

    @property
    def num_devices(self) -> int:
        """Of the mesh."""
        return math.prod(size for _, size in self.axes)

    @property
    def of(self) -> tuple[object, ...]:
        """What it is the memory of."""
        return self.mesh, self.axes, self.model, self.first_segment, self.num_segments


def _refuse(what: str, *wrong: str) -> None:
    if wrong:
        raise SpecError(f"{what}: {'; '.join(wrong)}")


def _no_words(record: Any, *names: str) -> Iterator[str]:
    for name in names:
        value = getattr(record, name)
        if not value or not value.isprintable():
            yield f"{name} is {value!r}; give a name that can be printed on a line"
