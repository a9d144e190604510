"""Cards: the figures of one kind of device as a TOML file, read strictly.

The format is explained for vendors in the README of `catalogue/kinds`. Every figure is a table
`{ value, unit, source, date, note }`; what is not known is left out. All mistakes of a card are
found at once, each with file, key and reason.
"""

import tomllib
from typing import Any

from gimlax.devices.card_figures import read_figure
from gimlax.devices.interconnect import Interconnect
from gimlax.devices.kinds import FIGURES, DeviceKind
from gimlax.devices.prices import Price
from gimlax.devices.tables import TableReader
from gimlax.errors import SpecError

__all__ = ["SCHEMA_VERSION", "read_card", "read_kind"]

SCHEMA_VERSION = 1
_NEEDED = ("memory_bytes", "memory_bytes_per_s")
_WHOLE = ("memory_bytes", "on_chip_bytes")


def read_card(text: str, name: str, mistakes: list[str]) -> DeviceKind | None:
    """The kind that a card describes, None if anything in it is wrong.

    Args:
        text: TOML.
        name: how mistakes call the card.
        mistakes: gets one sentence each.
    """
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        mistakes.append(f"{name}: not TOML: {error}")
        return None
    except RecursionError:
        mistakes.append(f"{name}: it is nested too deeply; give tables of plain values")
        return None
    reader = TableReader(table, name, mistakes)
    version = reader.get("schema_version", int)
    if version not in (None, SCHEMA_VERSION):
        reader.wrong(f"schema_version is {version}; this gimlax reads {SCHEMA_VERSION}")
        return None  # the rest may mean anything
    return read_kind(reader)


def read_kind(reader: TableReader) -> DeviceKind | None:
    """A kind from the table of its card or of a `[[kind]]`, None if anything in it is wrong."""
    sources: list[tuple[str, str]] = []
    notes: list[tuple[str, str]] = []
    values: dict[str, Any] = {
        "name": reader.get("name", str),
        "vendor": reader.get("vendor", str),
        "aliases": reader.strings("aliases"),
    }
    peaks = reader.inner("peak_flops_per_s")
    values["peak_flops_per_s"] = tuple(
        (dtype, read_figure(peaks, dtype, dtype, float, sources, notes)) for dtype in peaks.table
    )
    for key in FIGURES:
        default = () if key in _NEEDED else (None,)
        kind = int if key in _WHOLE else float
        values[key] = read_figure(reader, key, key, kind, sources, notes, *default)
    values["interconnect"] = _read_interconnect(reader, sources, notes)
    values["prices"] = tuple(_read_price(row) for row in reader.inner_list("price"))
    if note := reader.get("note", str, ""):
        notes.append(("", note))
    reader.finish()
    return _build(DeviceKind, {**values, "sources": tuple(sources), "notes": tuple(notes)}, reader)


def _read_interconnect(
    outer: TableReader, sources: list[tuple[str, str]], notes: list[tuple[str, str]]
) -> Interconnect | None:
    if outer.get("interconnect", dict, None) is None:
        return None
    reader = outer.inner("interconnect")
    label = "interconnect."
    values = {
        "name": reader.get("name", str),
        "bytes_per_s": read_figure(
            reader, "bytes_per_s", f"{label}bytes_per_s", float, sources, notes
        ),
        "num_devices": read_figure(
            reader, "num_devices", f"{label}num_devices", int, sources, notes, None
        ),
    }
    reader.finish()
    return _build(Interconnect, values, reader)


def _read_price(reader: TableReader) -> Price | None:
    values = {
        "provider": reader.get("provider", str),
        "region": reader.get("region", str, ""),
        "kind": reader.get("kind", str),
        "usd_per_hour": reader.get("usd_per_hour", float),
        "source": reader.get("source", str),
        "date": reader.get("date", str),
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
