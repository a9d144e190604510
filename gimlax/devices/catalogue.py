"""The catalogue: one TOML file a kind of device, and the data files beside them.

A figure is written `{ value = 989e12, source = "...", date = "2026-11" }`; one without a source is
refused, in the catalogue as in a `[[kind]]` of a cluster file.
"""

import functools
import tomllib
from importlib import resources
from typing import Any

from gimlax.devices.kinds import KINDS_FOLDER, DeviceKind, find_kind
from gimlax.devices.tables import TableReader
from gimlax.errors import SpecError

__all__ = ["catalogue", "load_kind", "read_data", "read_figure", "read_kind"]


@functools.cache
def catalogue() -> tuple[DeviceKind, ...]:
    """Every kind that the package knows, sorted by name.

    Raises:
        SpecError: files are wrong; all mistakes of all of them.
    """
    mistakes: list[str] = []
    kinds = []
    for file in _folder().joinpath("kinds").iterdir():
        if file.name.endswith(".toml"):
            reader = TableReader(tomllib.loads(file.read_text("utf-8")), file.name, mistakes)
            kinds.append(read_kind(reader))
    if mistakes:
        raise SpecError(f"{KINDS_FOLDER}: " + "\n".join(mistakes))
    return tuple(sorted((kind for kind in kinds if kind), key=lambda kind: kind.name))


def load_kind(device_kind: str) -> DeviceKind:
    """The kind with this name in the catalogue, or this `device_kind` as PJRT reports it.

    Raises:
        SpecError: there is none; names the file to add.
    """
    if kind := find_kind(catalogue(), device_kind):
        return kind
    known = ", ".join(repr(kind.name) for kind in catalogue())
    raise SpecError(
        f"device kind {device_kind!r} is not known (known: {known}); add a file to {KINDS_FOLDER} "
        "with its figures and their sources, or a [[kind]] to the cluster file"
    )


def read_data(name: str) -> dict[str, Any]:
    """A data file of the catalogue that describes no kind: 'links.toml', 'plugins.toml'."""
    return tomllib.loads(_folder().joinpath(name).read_text("utf-8"))


def read_kind(reader: TableReader) -> DeviceKind | None:
    """A kind from its table, None if anything in it is wrong."""
    sources: list[tuple[str, str]] = []
    peaks = reader.inner("peak_flops_per_s")
    rates = tuple((dtype, read_figure(peaks, dtype, float, sources)) for dtype in peaks.table)
    values = {
        "name": reader.get("name", str),
        "vendor": reader.get("vendor", str),
        "memory_bytes": read_figure(reader, "memory_bytes", int, sources),
        "memory_bytes_per_s": read_figure(reader, "memory_bytes_per_s", float, sources),
        "tdp_watts": read_figure(reader, "tdp_watts", float, sources, None),
        "aliases": reader.strings("aliases"),
    }
    reader.finish()
    if not reader.clean:
        return None
    try:
        return DeviceKind(**values, peak_flops_per_s=rates, sources=tuple(sources))
    except SpecError as error:
        reader.refused(error)
        return None


def read_figure(
    reader: TableReader, key: str, kind: type, sources: list[tuple[str, str]], *default: None
) -> Any:
    """The value of `{ value, source, date }`, its source added to `sources`; None if wrong.

    It is needed unless a `default` of None is given.
    """
    table = reader.get(key, dict, *default)
    if table is None:
        return None
    figure = TableReader(table, f"{reader.where}: {key}", reader.mistakes, reader)
    value = figure.get("value", kind)
    sources.append((key, f"{figure.get('source', str)}, {figure.get('date', str)}"))
    figure.finish()
    return value


def _folder() -> Any:
    return resources.files("gimlax.devices").joinpath("catalogue")
