"""What one measurement is: an operation that was timed, a mesh, a link, a pair that shares a host.

Checked where they are made, because they also come from files. Units: seconds, bytes, bytes/s,
FLOPs.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from gimlax.errors import SpecError

__all__ = ["MeasuredLink", "MeshCalibration", "Sample", "Slowdown"]


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
    dims: tuple[int, ...]
    dtype: str
    layout: str = ""
    flops: float = 0.0
    transcendentals: float = 0.0
    num_bytes: float = 0.0
    out_itemsize: int = 4
    seconds: float
    spread: float = 0.0

    def __post_init__(self) -> None:
        wrong = [*_no_words(kind=self.kind, dtype=self.dtype), *_no_positive(seconds=self.seconds)]
        wrong += _no_amounts(
            flops=self.flops,
            transcendentals=self.transcendentals,
            num_bytes=self.num_bytes,
            spread=self.spread,
        )
        wrong += _no_sizes(out_itemsize=self.out_itemsize)
        if not isinstance(self.dims, tuple) or not self.dims:
            wrong.append(f"dims is {self.dims!r}; give its sizes")
        else:
            wrong += _no_sizes(**{f"dims[{i}]": size for i, size in enumerate(self.dims)})
        if not isinstance(self.layout, str):
            wrong.append(f"layout is {self.layout!r}; give a string")
        _raise(f"sample {self.kind!r} {self.dims!r}", wrong)


@dataclass(frozen=True, slots=True, kw_only=True)
class MeshCalibration:
    """What was measured on the first device of a mesh.

    Attributes:
        mesh: its name.
        device_kind: what PJRT reported.
        num_devices: of the mesh.
        dispatch_s: what a call takes beyond its operations.
        probe_s: the reference program, to tell how fast the machine was.
        samples: of operations.

    Raises:
        SpecError: a figure that no measurement can give.
    """

    mesh: str
    device_kind: str
    num_devices: int
    dispatch_s: float
    probe_s: float
    samples: tuple[Sample, ...]

    def __post_init__(self) -> None:
        wrong = [
            *_no_words(mesh=self.mesh, device_kind=self.device_kind),
            *_no_sizes(num_devices=self.num_devices),
            *_no_positive(dispatch_s=self.dispatch_s, probe_s=self.probe_s),
        ]
        _raise(f"mesh {self.mesh!r}", wrong)


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
    latency_s: float
    bandwidth_bytes_per_s: float
    aliases: bool = False

    def __post_init__(self) -> None:
        wrong = [
            *_no_words(source=self.source, target=self.target),
            *_no_amounts(latency_s=self.latency_s),
            *_no_positive(bandwidth_bytes_per_s=self.bandwidth_bytes_per_s),
        ]
        if not isinstance(self.aliases, bool):
            wrong.append(f"aliases is {self.aliases!r}; give true or false")
        _raise(f"link {self.source!r} -> {self.target!r}", wrong)


@dataclass(frozen=True, slots=True, kw_only=True)
class Slowdown:
    """How many times longer two meshes take when both compute than one alone: 1 to about 2.

    Raises:
        SpecError: a figure that no measurement can give.
    """

    meshes: tuple[str, str]
    factor: float

    def __post_init__(self) -> None:
        wrong = list(_no_positive(factor=self.factor))
        if not isinstance(self.meshes, tuple) or len(set(self.meshes)) != 2:
            wrong.append(f"meshes is {self.meshes!r}; name two")
        _raise(f"slowdown of {self.meshes!r}", wrong)


def _raise(what: str, wrong: list[str]) -> None:
    if wrong:
        raise SpecError(f"{what}: {'; '.join(wrong)}")


def _no_words(**values: Any) -> Iterator[str]:
    for name, value in values.items():
        if not isinstance(value, str) or not value:
            yield f"{name} is {value!r}; give a name"


def _no_sizes(**values: Any) -> Iterator[str]:
    for name, value in values.items():
        if type(value) is not int or not 1 <= value < 2**62:
            yield f"{name} is {value!r}; give a whole number from 1"


def _no_amounts(**values: Any) -> Iterator[str]:
    for name, value in values.items():
        if not _is_finite(value) or value < 0:
            yield f"{name} is {value!r}; give a finite number from 0"


def _no_positive(**values: Any) -> Iterator[str]:
    for name, value in values.items():
        if not _is_finite(value) or value <= 0:
            yield f"{name} is {value!r}; give a finite number above 0"


def _is_finite(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False
