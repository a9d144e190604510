"""A mesh of equal devices and the way from one mesh to another, described.

Every mesh has the same two axes, `data` and `model`: a PartitionSpec means the same on each, before
any device is known. Units: bytes, bytes/s, seconds.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from gimlax.checking import mistakes_of_fields, shown
from gimlax.devices.naming import name_mistakes
from gimlax.errors import SpecError

__all__ = ["AXIS_NAMES", "MOST_BYTES", "MOST_DEVICES", "SHAREABLE", "Link", "MeshSpec"]

AXIS_NAMES = ("data", "model")
SHAREABLE = ("compute", "memory")

# What no mesh has. A file that says more has a slip of the pen, and nobody should make room for it.
MOST_DEVICES = 2**20
MOST_BYTES = 2**60


@dataclass(frozen=True, slots=True, kw_only=True)
class MeshSpec:
    """A mesh, described.

    Attributes:
        name: how plans and errors call it.
        device_kind: a name in the catalogue, or what PJRT reports.
        num_devices: the product of the axis sizes.
        axes: (axis name, size). Empty where a planner is to choose how the devices are split
            between them; of a single device, both are 1.
        backend: registered name of the backend that has the devices, empty where it is not live.
        first_device: index of its first device among the local ones of that backend.
        host: meshes with equal host share one; empty for a host of its own.
        shares: which of 'compute' and 'memory' it shares with the meshes of its host that list it
            too.
        memory_bytes: memory of one device, where it differs from the kind's.
        usd_per_hour: price of one device, where it differs from the kind's.
        host_memory_bytes: memory of the host that one device may use beside its own, None where
            nothing is set aside for it.
        worker: the process that has its devices, empty for this one.
    """

    name: str
    device_kind: str
    num_devices: int = 1
    axes: tuple[tuple[str, int], ...] = ()
    backend: str = ""
    first_device: int = 0
    host: str = ""
    shares: tuple[str, ...] = ()
    memory_bytes: int | None = None
    usd_per_hour: float | None = None
    host_memory_bytes: int | None = None
    worker: str = ""

    def __post_init__(self) -> None:
        if wrong := mistakes_of_fields(self):
            raise SpecError(f"mesh {shown(self.name)}: {'; '.join(wrong)}")
        if not self.axes and self.num_devices == 1:
            object.__setattr__(self, "axes", tuple((axis, 1) for axis in AXIS_NAMES))
        if mistakes := list(self._mistakes()):
            raise SpecError(f"mesh {self.name!r}: {'; '.join(mistakes)}")

    @property
    def shape(self) -> tuple[int, ...]:
        """The axis sizes."""
        return tuple(size for _, size in self.axes)

    def _mistakes(self) -> Iterator[str]:
        yield from name_mistakes(self.name)
        if not 1 <= self.num_devices <= MOST_DEVICES:
            yield f"num_devices is {self.num_devices}; give 1 to {MOST_DEVICES}"
        if not self.axes:
            pass
        elif tuple(axis for axis, _ in self.axes) != AXIS_NAMES:
            had = ", ".join(repr(axis) for axis, _ in self.axes)
            yield f"its axes are {had}; every mesh has 'data' and 'model', of size 1 where unused"
        elif min(self.shape) < 1 or math.prod(self.shape) != self.num_devices:
            held = " x ".join(map(str, self.shape))
            yield f"its axes are {held}, but num_devices is {self.num_devices}; make them agree"
        if not 0 <= self.first_device < MOST_DEVICES:
            yield f"first_device is {self.first_device}; give an index from 0"
        if unknown := [what for what in self.shares if what not in SHAREABLE]:
            had = ", ".join(map(repr, unknown))
            yield f"it shares {had}; only 'compute' and 'memory' can be shared"
        if self.shares and not self.host:
            yield "it shares with meshes of its host, but names no host; name it"
        for key in ("memory_bytes", "host_memory_bytes"):
            held = getattr(self, key)
            if held is not None and not 0 < held <= MOST_BYTES:
                yield f"{key} is {held}; give 1 to 2**60, or leave it out"
        if self.usd_per_hour is not None and not 0 <= self.usd_per_hour < math.inf:
            yield f"usd_per_hour is {self.usd_per_hour}; give 0 or more, or leave it out"


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """The way from one mesh to another, in this direction only.

    Either end may be a group: then it holds for every mesh made from it, and with the same group at
    both ends between any two of them.
    """

    source: str
    target: str
    latency_s: float
    bandwidth_bytes_per_s: float

    def __post_init__(self) -> None:
        wrong = mistakes_of_fields(self) or list(self._mistakes())
        if wrong:
            raise SpecError(
                f"link {shown(self.source)} -> {shown(self.target)}: {'; '.join(wrong)}"
            )

    def _mistakes(self) -> Iterator[str]:
        if not (self.latency_s >= 0 and math.isfinite(self.latency_s)):
            yield f"latency is {self.latency_s} s; give 0 or more"
        if not self.bandwidth_bytes_per_s > 0:
            yield (
                f"bandwidth is {self.bandwidth_bytes_per_s:g} bytes/s, so nothing could cross it; "
                "give a positive rate or leave the link out"
            )

    def transfer_s(self, num_bytes: float) -> float:
        """Seconds that one message of `num_bytes` takes."""
        return self.latency_s + num_bytes / self.bandwidth_bytes_per_s
