"""What one kind of device can do: figures, each with its source and date, read from data files.

Peaks are dense and per JAX device (a chip may be two). A kind is found by its exact name, or by the
exact `device_kind` that PJRT reports, never by a part of it: an unknown one is an error that names
the file to add. Units: bytes, bytes/s, FLOP/s, watts.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from gimlax.checking import mistakes_of_fields, shown
from gimlax.devices.interconnect import Interconnect
from gimlax.devices.mesh import MOST_BYTES
from gimlax.devices.prices import Price
from gimlax.errors import SpecError

__all__ = ["ANY_VENDOR", "FIGURES", "KINDS_FOLDER", "DeviceKind", "collisions", "find_kind"]

KINDS_FOLDER = "gimlax/devices/catalogue/kinds"

# The vendor of a kind that stands in for all devices that report its name.
ANY_VENDOR = "any"

# The figures that are one number each, besides peaks, interconnect and prices.
FIGURES = (
    "memory_bytes",
    "memory_bytes_per_s",
    "on_chip_bytes",
    "on_chip_bytes_per_s",
    "host_link_bytes_per_s",
    "tdp_watts",
    "idle_watts",
)

# Where a rate is not listed: that of the format in which the work is then done.
_STANDS_IN = {
    "float16": ("bfloat16", "float32"),
    "bfloat16": ("float16", "float32"),
    "float8": ("bfloat16", "float16", "float32"),
    "float4": ("float8", "bfloat16", "float16", "float32"),
    "int8": ("bfloat16", "float16", "float32"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceKind:
    """Figures of one JAX device of this kind; None or empty where one is not known.

    Attributes:
        name: the name in the catalogue.
        vendor: who makes it.
        memory_bytes: memory of one device.
        memory_bytes_per_s: peak bandwidth of that memory.
        peak_flops_per_s: dense peak of matrix products by dtype of the operands: (dtype, FLOP/s).
            `float32` is always there and means JAX's default precision, which some kinds carry out
            in a shorter format.
        tdp_watts: power at full load.
        idle_watts: power when it does nothing.
        on_chip_bytes: the largest memory on the chip that a program can keep data in.
        on_chip_bytes_per_s: peak bandwidth of that.
        interconnect: how devices of one group reach each other.
        host_link_bytes_per_s: to the host or back, one way.
        prices: what it costs, by provider.
        aliases: what PJRT may report as `device_kind` for it, besides the name.
        sources: (figure, source and date).
        notes: (figure, what a reader of it has to know).
    """

    name: str
    vendor: str
    memory_bytes: int
    memory_bytes_per_s: float
    peak_flops_per_s: tuple[tuple[str, float], ...]
    tdp_watts: float | None = None
    idle_watts: float | None = None
    on_chip_bytes: int | None = None
    on_chip_bytes_per_s: float | None = None
    interconnect: Interconnect | None = None
    host_link_bytes_per_s: float | None = None
    prices: tuple[Price, ...] = ()
    aliases: tuple[str, ...] = ()
    sources: tuple[tuple[str, str], ...] = ()
    notes: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        if wrong := mistakes_of_fields(self) or list(self._mistakes()):
            raise SpecError(f"device kind {shown(self.name)}: {'; '.join(wrong)}")

    def _mistakes(self) -> Iterator[str]:
        if not self.name or not self.name.isprintable():
            yield "its name is empty or cannot be printed on a line; give it another"
        for key in ("vendor", *(figure for figure, _ in self.sources)):
            said = self.vendor if key == "vendor" else self.figure_source(key)
            if said and not said.isprintable():
                yield f"its {key} is said as {said!r}; give what can be printed on a line"
        for key in ("memory_bytes", "on_chip_bytes"):
            if (held := getattr(self, key)) is not None and held > MOST_BYTES:
                yield f"{key} is {shown(held)}; give 1 to 2**60"
        rates = [(f"peak_flops_per_s.{dtype}", rate) for dtype, rate in self.peak_flops_per_s]
        for figure, value in [(name, getattr(self, name)) for name in FIGURES] + rates:
            if value is not None and not (value > 0 and math.isfinite(value)):
                yield f"{figure} is {value}; give a positive figure"
        if "float32" not in dict(self.peak_flops_per_s):
            yield "peak_flops_per_s.float32 is missing; every kind needs it"
        if self.idle_watts and self.tdp_watts and self.idle_watts > self.tdp_watts > 0:
            yield (
                f"idle_watts is {self.idle_watts:g}, more than tdp_watts ({self.tdp_watts:g}); "
                "correct one of them"
            )

    def figure_source(self, figure: str) -> str:
        """Source and date of a figure, by its attribute or, of a peak, by its dtype."""
        return dict(self.sources).get(figure, "no source given")

    @property
    def usd_per_hour(self) -> float | None:
        """The lowest price on demand, None where none is known."""
        asked = [row.usd_per_hour for row in self.prices if row.kind == "on_demand"]
        return min(asked, default=None)

    def peak(self, dtype: str) -> float:
        """Dense FLOP/s of matrix products with operands of `dtype`, a dtype's name in JAX.

        Where no rate is listed, that of the format in which the work is then done stands in:
        float16 and bfloat16 for one another, either for float8 and int8 (operands are widened),
        float8 for float4, int8 for int4, and float32 for every other integer and bool.

        Raises:
            SpecError: nothing listed can stand in (complex64, and float64 for most kinds).
        """
        listed = dict(self.peak_flops_per_s)
        family = dtype if dtype in listed else _family(dtype)
        for candidate in (family, *_STANDS_IN.get(family, ())):
            if candidate in listed:
                return listed[candidate]
        raise SpecError(
            f"device kind {self.name!r} lists no rate for {dtype}, only {', '.join(listed)}; add "
            f"peak_flops_per_s.{dtype} with its source to its file in {KINDS_FOLDER}, or to a "
            "[[kind]] of the cluster file"
        )


def _family(dtype: str) -> str:
    """The name under which a dtype of JAX is listed."""
    if dtype.startswith("float4_"):
        return "float4"
    if dtype.startswith(("float8_", "float6_")):
        return "float8"
    if dtype in {"int8", "uint8", "int4", "uint4", "int2", "uint2"}:
        return "int8"
    if dtype == "bool" or dtype.startswith(("int", "uint", "key")):
        return "float32"
    return dtype


def find_kind(kinds: Sequence[DeviceKind], device_kind: str) -> DeviceKind | None:
    """The kind of this exact name or, where no name fits, with this exact alias."""
    named = [kind for kind in kinds if kind.name == device_kind]
    named += [kind for kind in kinds if device_kind in kind.aliases]
    return named[0] if named else None


def collisions(kinds: Iterable[DeviceKind]) -> Iterator[str]:
    """Names and aliases that would mean two kinds."""
    owners: dict[str, DeviceKind] = {}
    for kind in kinds:
        if kind.name in owners:
            yield f"device kind {kind.name!r} is there twice; keep one, or give each its own name"
        owners[kind.name] = kind
    named = dict(owners)
    for kind in named.values():
        for alias in kind.aliases:
            owner = owners.setdefault(alias, kind)
            if owner is not kind and not (alias == owner.name and owner.vendor == ANY_VENDOR):
                yield (
                    f"device kind {kind.name!r}: its alias {alias!r} also means {owner.name!r}; "
                    "leave it to one of them"
                )
