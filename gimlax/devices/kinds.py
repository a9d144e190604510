"""What one kind of device can do, from the files of the catalogue: figures with source and date.

Peaks are dense and per JAX device (a chip may be two). A kind is found by its exact name or by the
exact `device_kind` that PJRT reports, never by a part of it: an unknown one is an error that names
the file to add. Units: bytes, bytes/s, FLOP/s, watts.
"""

import functools
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

from gimlax.errors import SpecError

__all__ = ["CATALOGUE", "DeviceKind", "catalogue", "load_kind", "read_kind"]

CATALOGUE = "gimlax/devices/catalogue"

# Where a rate is not listed, the rate that the work has at least or very nearly: the unit is the same, or
# the operands are widened first. Integers other than int8 count as float32 (index arithmetic).
_STANDS_IN = {
    "float16": ("bfloat16", "float32"),
    "bfloat16": ("float16", "float32"),
    "float8": ("bfloat16", "float16", "float32"),
    "int8": ("bfloat16", "float16", "float32"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceKind:
    """Figures of one JAX device of this kind.

    Attributes:
        name: the name in the catalogue.
        vendor: who makes it.
        memory_bytes: memory of one device.
        memory_bytes_per_s: peak bandwidth of that memory.
        peak_flops_per_s: dense peak of matrix products by dtype of the operands: (dtype, FLOP/s).
            `float32` means JAX's default precision, which some kinds carry out in a shorter format.
        tdp_watts: power at full load, None where the vendor publishes none.
        aliases: what PJRT reports as `device_kind`.
        sources: (figure, source and date).
    """

    name: str
    vendor: str
    memory_bytes: int
    memory_bytes_per_s: float
    peak_flops_per_s: tuple[tuple[str, float], ...]
    tdp_watts: float | None = None
    aliases: tuple[str, ...] = ()
    sources: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        wrong = [
            f"{figure} is {value}"
            for figure, value in (
                ("memory_bytes", self.memory_bytes),
                ("memory_bytes_per_s", self.memory_bytes_per_s),
                ("tdp_watts", 1 if self.tdp_watts is None else self.tdp_watts),
                *((f"peak_flops_per_s.{dtype}", rate) for dtype, rate in self.peak_flops_per_s),
            )
            if not value > 0
        ]
        if "float32" not in dict(self.peak_flops_per_s):
            wrong.append("peak_flops_per_s.float32 is missing")
        if wrong:
            raise SpecError(
                f"device kind {self.name!r}: {'; '.join(wrong)}; give positive figures with their source"
            )

    def peak(self, dtype: str) -> float:
        """Dense FLOP/s of matrix products with operands of `dtype`, a dtype's name in JAX.

        Where the catalogue lists no rate, that of the format in which the work is then done stands
        in: float16 and bfloat16 for one another, either for float8 and int8 (operands are widened),
        int8 for int4, and float32 for every other integer and bool.

        Raises:
            SpecError: nothing listed can stand in (float64, complex64).
        """
        listed = dict(self.peak_flops_per_s)
        wanted = dtype
        if wanted not in listed:
            wanted = _family(dtype)
        for candidate in (wanted, *_STANDS_IN.get(wanted, ())):
            if candidate in listed:
                return listed[candidate]
        raise SpecError(
            f"device kind {self.name!r} lists no rate for {dtype} (it has {', '.join(listed)}); "
            f"add peak_flops_per_s.{dtype} with its source to its file in {CATALOGUE}/ or to a "
            "[[kind]] of the cluster file"
        )


def _family(dtype: str) -> str:
    """The listed name that a dtype of JAX falls under."""
    if dtype.startswith(("float8", "float4", "float6")):
        return "float8"
    if dtype in {"int8", "uint8", "int4", "uint4", "int2", "uint2"}:
        return "int8"
    if dtype == "bool" or dtype.startswith(("int", "uint", "key")):
        return "float32"
    return dtype
