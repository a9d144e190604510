"""Cards: the figures of one kind of device as a TOML file, read strictly.

The format is explained for vendors in the README of `catalogue/kinds`. What is not known is left
out, and every figure says where it is from. All mistakes of a card are found at once, each with
file, key and reason.
"""

import datetime
import re
from typing import Any

from gimlax.devices.card_figures import UNKNOWN, FigureReader
from gimlax.devices.interconnect import Interconnect
from gimlax.devices.kinds import FIGURES, DeviceKind
from gimlax.devices.prices import Price
from gimlax.devices.tables import TableReader
from gimlax.devices.toml import parse_toml
from gimlax.errors import SpecError

__all__ = ["DTYPES", "SCHEMA_VERSION", "read_card", "read_kind"]

SCHEMA_VERSION = 1

DTYPES = ("float64", "float32", "bfloat16", "float16", "float8", "float4", "int8", "int4")
"""What peaks are listed for; float8 and float4 stand for each of their formats."""

_NEEDED = ("memory_bytes", "memory_bytes_per_s")
_DIRECTED = ("host_link_bytes_per_s",)
_SPARSITY = re.compile(r"\b(with )?(structured )?spars(e|ity)\b|\b[24]:[48]\b", re.IGNORECASE)
_DENIED = re.compile(r"\b(without|no|not|non|excluding)\b[^.,;:()]*$", re.IGNORECASE)
_LEAST_BYTES = 2**20  # of the memory of a device: less is a figure in another unit
# How much faster eight bits are than sixteen, where both peaks are dense.
_EIGHT_BITS = (1.8, 2.2)


def read_card(
    text: str, name: str, mistakes: list[str], *, today: datetime.date | None = None
) -> DeviceKind | None:
    """The kind that a card describes, None if anything in it is wrong.

    Args:
        text: TOML.
        name: how mistakes call the card.
        mistakes: gets one sentence each.
        today: dates after it are mistakes. None trusts them, as a catalogue that was right when it
            was published must not depend on the clock of a machine.
    """
    if (table := parse_toml(text, name, mistakes)) is None:
        return None
    reader = TableReader(table, name, mistakes)
    version = reader.get("schema_version", int)
    if version is not None and version != SCHEMA_VERSION:
        reader.wrong(f"schema_version is {version}; this gimlax reads {SCHEMA_VERSION}")
        return None  # the rest may mean anything
    return read_kind(reader, FigureReader(today=today, needs_source=True))


def read_kind(reader: TableReader, figures: FigureReader) -> DeviceKind | None:
    """A kind from the table of its card or of a `[[kind]]`, None if anything in it is wrong."""
    values: dict[str, Any] = {
        "name": reader.get("name", str),
        "vendor": reader.get("vendor", str),
        "aliases": reader.strings("aliases"),
        "peak_flops_per_s": _read_peaks(reader.inner("peak_flops_per_s"), figures),
    }
    for key in ("name", "vendor"):
        if values[key] is not None and not (values[key].strip() and values[key].isprintable()):
            reader.wrong(f"{key} is {values[key]!r}; give one that can be printed on a line")
    if repeated := {a for a in values["aliases"] if values["aliases"].count(a) > 1}:
        reader.wrong(f"aliases has {', '.join(map(repr, sorted(repeated)))} twice; keep one")
    for key in FIGURES:
        values[key] = figures.read(
            reader,
            key,
            *(() if key in _NEEDED else (None,)),
            quantity=next(q for q in ("bytes_per_s", "bytes", "watts") if key.endswith(q)),
            whole=key.endswith("bytes"),
            directed=key in _DIRECTED,
        )
    memory_bytes = values["memory_bytes"]
    if figures.needs_source and memory_bytes is not None and memory_bytes < _LEAST_BYTES:
        reader.wrong(f"memory_bytes is {memory_bytes} bytes; give 1 MiB or more, with its unit")
    values["interconnect"] = _read_interconnect(reader, figures)
    values["prices"] = tuple(_read_price(row, figures) for row in reader.inner_list("price"))
    if note := reader.get("note", str, ""):
        figures.notes.append(("", note))
    reader.finish()
    found = {"sources": tuple(figures.sources), "notes": tuple(figures.notes)}
    return _build(DeviceKind, values | found, reader)


def _read_peaks(reader: TableReader, figures: FigureReader) -> tuple[tuple[str, float], ...]:
    """Peaks by dtype, in the order of the card."""
    rates = {
        dtype: figures.read(reader, dtype, quantity="flops_per_s")
        for dtype in reader.table
        if dtype in DTYPES
    }
    for dtype in reader.table:
        if dtype not in DTYPES:
            reader.wrong(f"unknown dtype {dtype!r}; known are {', '.join(DTYPES)}")
    if "float32" not in rates:
        reader.wrong(
            "float32 is missing; give the rate of products of float32 arrays, in whatever format "
            "the device does them"
        )
    known = {dtype: rate for dtype, rate in rates.items() if rate is not None}
    _check_density(reader, known, figures)
    return tuple(known.items())


def _check_density(reader: TableReader, rates: dict[str, float], figures: FigureReader) -> None:
    """Adds peaks that seem to count sparsity and have no note that says otherwise."""
    sources, notes = dict(figures.sources), dict(figures.notes)
    for dtype in rates:
        if dtype not in notes and (said := _counts_sparsity(sources[dtype])):
            reader.wrong(
                f"{dtype}: its source says {said!r}; give the dense peak, or say in its note "
                "why it is dense"
            )
    halves = [dtype for dtype in ("bfloat16", "float16") if dtype in rates]
    if not halves:
        return
    half = max(halves, key=rates.__getitem__)
    for dtype in ("float8", "int8"):
        if dtype not in rates or dtype in notes or sources[dtype].startswith(f"{UNKNOWN}, "):
            continue
        ratio = rates[dtype] / rates[half]
        if not _EIGHT_BITS[0] <= ratio <= _EIGHT_BITS[1]:
            reader.wrong(
                f"{dtype} is {rates[dtype]:g} FLOP/s, {ratio:.2g} times {half} ({rates[half]:g}); "
                "dense peaks differ by about 2, so one of them may count sparsity: correct it, or "
                f"say in the note of {dtype} why it is so"
            )


def _counts_sparsity(source: str) -> str:
    """Words by which a source says that its peak counts sparsity, empty if it does not."""
    for said in _SPARSITY.finditer(source):
        clause = source[: said.start()]
        # "without 2:4 sparsity": the colon of a ratio ends no clause.
        if not _DENIED.search(re.sub(r"(?<=\d):(?=\d)", "/", clause)):
            return said[0]
    return ""


def _read_interconnect(outer: TableReader, figures: FigureReader) -> Interconnect | None:
    if outer.get("interconnect", dict, None) is None:
        return None
    reader = outer.inner("interconnect")
    values = {"name": reader.get("name", str)}
    for key, quantity in (("bytes_per_s", "bytes_per_s"), ("num_devices", "devices")):
        values[key] = figures.read(
            reader,
            key,
            *(() if key == "bytes_per_s" else (None,)),
            figure=f"interconnect.{key}",
            quantity=quantity,
            whole=quantity == "devices",
            directed=key == "bytes_per_s",
        )
    reader.finish()
    return _build(Interconnect, values, reader)


def _read_price(reader: TableReader, figures: FigureReader) -> Price | None:
    values = {
        "provider": reader.get("provider", str),
        "region": reader.get("region", str, ""),
        "kind": reader.get("kind", str),
        "usd_per_hour": reader.get("usd_per_hour", float),
        "source": reader.get("source", str),
        "date": figures.date(reader),
    }
    reader.finish()
    return _build(Price, values, reader)


def _build(record: Any, values: dict[str, Any], reader: TableReader) -> Any:
    """The record, or None after a mistake, its own check's included."""
    if not reader.clean:
        return None
    try:
        return record(**values)
    except SpecError as error:
        reader.refused(error)
        return None
