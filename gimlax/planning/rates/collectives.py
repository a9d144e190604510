"""Seconds of a collective between the devices of a mesh: measured, fitted, or by a ring.

On a ring by the alpha-beta model of Thakur, Rabenseifner and Gropp 2005 (Optimization of Collective
Communication Operations in MPICH, section 4): on n devices a gather or a scatter of an array of B
bytes takes n - 1 steps that move B / n each; a sum is a scatter and a gather; an exchange of all
with all is charged like a gather of what one device holds. A sum on an accelerator whose
measurements were used has a law of its own, as libraries do a short one at once and not on a ring.
A calibration has sums and gathers of some sizes: between them seconds are a line, beyond them the
last line goes on; a scattered sum takes as long as a sum, which some backends make of it, and an
exchange as a gather. Units: bytes, bytes/s, seconds.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from gimlax.devices import DeviceKind, MeshCalibration
from gimlax.errors import SpecError
from gimlax.partition import ALL_GATHER, ALL_REDUCE, REDUCE_SCATTER, Collective
from gimlax.planning.rates import kernels
from gimlax.planning.rates.fitted import Accelerator, accelerators, find_coefficients
from gimlax.planning.rates.seam import CARD, FITTED, MEASURED

__all__ = [
    "LAUNCH_S",
    "REACHED",
    "STEP_S",
    "Collectives",
    "FittedSums",
    "MeasuredCollectives",
    "Ring",
    "by_kind",
]

# Least relative squares over the 252 rows of all four kinds on 2, 4 and 8 H100 with NCCL 2.29.2 in
# aiconfigurator-core 0.12 (systems/data/h100_sxm/comm/nccl): median error 12 %.
LAUNCH_S = 5.8e-6
STEP_S = 0.73e-6
REACHED = 0.61  # of the peak bandwidth


class Collectives(Protocol):
    """Seconds of collectives between the devices of one mesh."""

    @property
    def source(self) -> str:
        """What the seconds rest on: CARD, FITTED or MEASURED."""
        ...

    def seconds(self, collective: Collective) -> float:
        """Seconds of one collective; 0 of one device."""
        ...


@dataclass(frozen=True, slots=True)
class Ring:
    """Devices of which each can send `bytes_per_s`, one way."""

    bytes_per_s: float

    @property
    def source(self) -> str:
        """A card."""
        return CARD

    def seconds(self, collective: Collective) -> float:
        """A launch, and a latency and bytes for each step."""
        n = collective.num_devices
        if n < 2:
            return 0.0
        steps = (n - 1) * (2 if collective.kind == ALL_REDUCE else 1)
        step_s = STEP_S + collective.num_bytes / n / (REACHED * self.bytes_per_s)
        return LAUNCH_S + steps * step_s


@dataclass(frozen=True, slots=True)
class FittedSums:
    """An accelerator whose sums were measured; everything else goes on the ring."""

    accelerator: Accelerator
    ring: Ring

    @property
    def source(self) -> str:
        """Coefficients that were fitted."""
        return FITTED

    def seconds(self, collective: Collective) -> float:
        """By the law of all-reduce, or by the ring."""
        if collective.kind != ALL_REDUCE or collective.num_devices < 2:
            return self.ring.seconds(collective)
        c = find_coefficients("all_reduce", self.accelerator.groups("bfloat16"))
        device = self.accelerator.figures() | {"link_bytes_per_s": self.ring.bytes_per_s}
        work = {"num_devices": collective.num_devices, "num_bytes": collective.num_bytes}
        return float(kernels.all_reduce_s(np, c, device, work))


@dataclass(frozen=True, slots=True, eq=False)
class MeasuredCollectives:
    """A mesh whose collectives were timed.

    `lines` has bytes and seconds, both growing, by kind and how many devices take part.
    """

    mesh: str
    lines: Mapping[tuple[str, int], tuple[np.ndarray, np.ndarray]]

    @classmethod
    def of(cls, calibration: MeshCalibration) -> "MeasuredCollectives | None":
        """What a calibration has of a mesh, None where it has no collectives."""
        found: dict[tuple[str, int], list[tuple[int, float]]] = defaultdict(list)
        for s in calibration.samples:
            if s.kind in (ALL_REDUCE, ALL_GATHER):
                found[s.kind, s.dims[0]].append((s.dims[1], s.seconds))
        lines = {}
        for key, points in found.items():
            num_bytes, seconds = np.array(sorted(points), float).T
            lines[key] = num_bytes, np.maximum.accumulate(seconds)
        return cls(calibration.mesh, lines) if lines else None

    @property
    def source(self) -> str:
        """A calibration."""
        return MEASURED

    def seconds(self, collective: Collective) -> float:
        """On the line between two sizes that were timed.

        Raises:
            SpecError: none was timed between so many devices.
        """
        if collective.num_devices < 2:
            return 0.0
        sums = collective.kind in (ALL_REDUCE, REDUCE_SCATTER)
        key = ALL_REDUCE if sums else ALL_GATHER, collective.num_devices
        if key not in self.lines:
            raise SpecError(
                f"calibration of mesh {self.mesh!r}: it has no sample of {key[0]} between"
                f" {key[1]} devices; run scripts/calibrate.py again"
            )
        num_bytes, seconds = self.lines[key]
        beyond = collective.num_bytes - num_bytes[-1]
        if beyond <= 0 or len(seconds) < 2:
            return float(np.interp(collective.num_bytes, num_bytes, seconds))
        slope = (seconds[-1] - seconds[-2]) / (num_bytes[-1] - num_bytes[-2])
        return float(seconds[-1] + beyond * slope)


def by_kind(kind: DeviceKind) -> Collectives | None:
    """What a kind of device is known to do, None where nothing joins its devices."""
    if kind.interconnect is None:
        return None
    ring = Ring(kind.interconnect.bytes_per_s)
    accelerator = accelerators().get(kind.name)
    return ring if accelerator is None else FittedSums(accelerator, ring)
