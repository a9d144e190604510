"""How every benchmark measures and reports: cases take turns in one run, medians with spread.

Times drift on a shared machine, so cases that are compared take turns, and ratios are of one run. A
figure is the median of its samples, its spread the distance between the quartiles over the median.
"""

import dataclasses
import json
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One number of a report, in `unit`, of `repeats` samples with a relative `spread`."""

    name: str
    value: float
    unit: str
    repeats: int
    spread: float

    @classmethod
    def of(cls, name: str, samples: Sequence[float] | np.ndarray, unit: str) -> "Figure":
        """The median of samples and their spread."""
        low, middle, high = np.percentile(np.asarray(samples, float), [25, 50, 75])
        spread = (high - low) / abs(middle) if middle else 0.0
        return cls(
            name=name, value=float(middle), unit=unit, repeats=len(samples), spread=float(spread)
        )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a benchmark found and on what."""

    benchmark: str
    quick: bool
    figures: tuple[Figure, ...]
    environment: Mapping[str, Any] = dataclasses.field(default_factory=lambda: environment())

    def __str__(self) -> str:
        width = max(len(figure.name) for figure in self.figures)
        lines = [
            f"{self.benchmark}{' (quick)' if self.quick else ''}",
            *(f"  {key}: {value}" for key, value in self.environment.items()),
            f"{'':{width}}  {'median':>10}  {'unit':8}  {'spread':>6}  {'repeats':>7}",
        ]
        lines += [
            f"{f.name:{width}}  {f.value:>10.4g}  {f.unit:8}  {f.spread:>6.0%}  {f.repeats:>7}"
            for f in self.figures
        ]
        return "\n".join(lines)

    def save(self, path: str) -> None:
        """Writes the report as JSON."""
        Path(path).write_text(json.dumps(dataclasses.asdict(self), indent=2) + "\n")

    def publish(self, path: str | None) -> None:
        """Prints the table, and writes the JSON where a path was given."""
        print(self)
        if path:
            self.save(path)
            print(f"written to {path}")


def environment() -> dict[str, Any]:
    """Devices and versions that the numbers belong to."""
    names = ["jax", "jaxlib", "flax", "numpy"]
    return {
        "device": ", ".join(sorted({device.device_kind for device in jax.devices()})),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "versions": " ".join(f"{name} {metadata.version(name)}" for name in names),
    }


def interleave(
    cases: Mapping[str, Callable[[], object]], *, repeats: int, warmup: int
) -> dict[str, np.ndarray]:
    """Calls the cases in turn; returns the seconds of each call by case, warm-up left out."""
    samples: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(warmup + repeats):
        for name, call in cases.items():
            start_s = time.perf_counter()
            call()
            samples[name].append(time.perf_counter() - start_s)
    return {name: np.asarray(found[warmup:]) for name, found in samples.items()}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.machine())
