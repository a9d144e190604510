"""The TOML form of a cluster: `[[mesh]]`, `[[link]]` and `[[kind]]` tables, read strictly.

The format is explained, with an example, in the README beside this file. Units as in the records.
"""

import json
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gimlax.devices.catalogue import catalogue, read_kind
from gimlax.devices.kinds import DeviceKind
from gimlax.devices.mesh import AXIS_NAMES, Link, MeshSpec
from gimlax.devices.tables import TableReader
from gimlax.errors import SpecError

__all__ = ["ClusterFile", "parse_cluster", "read_text", "write_cluster"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterFile:
    """What could be read; `names` are of all meshes of the file, those with mistakes too."""

    meshes: tuple[MeshSpec, ...] = ()
    links: tuple[Link, ...] = ()
    kinds: tuple[DeviceKind, ...] = ()
    names: tuple[str, ...] = ()


def read_text(path: str | Path) -> str:
    """The text of a cluster file.

    Raises:
        SpecError: it cannot be read.
    """
    try:
        return Path(path).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(
            f"cluster file {str(path)!r} cannot be read ({error}); give the path of a TOML file"
        ) from error


def parse_cluster(text: str, name: str, mistakes: list[str]) -> ClusterFile:
    """Meshes, links and kinds of a cluster file; what is wrong is added to `mistakes`.

    Args:
        text: TOML.
        name: how mistakes call the file.
        mistakes: one sentence each, with the table and the value.
    """
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        mistakes.append(f"{name}: not TOML: {error}")
        return ClusterFile()
    except RecursionError:
        mistakes.append(f"{name}: it is nested too deeply; give tables of plain values")
        return ClusterFile()
    file = TableReader(tables, name, mistakes)
    kinds = [read_kind(reader) for reader in file.inner_list("kind")]
    tables_of_meshes = file.inner_list("mesh")
    meshes = [_read_mesh(reader) for reader in tables_of_meshes]
    links = [_read_link(reader) for reader in file.inner_list("link")]
    file.finish()
    if "mesh" not in tables:
        file.wrong("it has no mesh; give at least one [[mesh]]")
    return ClusterFile(
        meshes=tuple(filter(None, meshes)),
        links=tuple(filter(None, links)),
        kinds=tuple(filter(None, kinds)),
        names=tuple(str(reader.table.get("name", "")) for reader in tables_of_meshes),
    )


def _read_mesh(reader: TableReader) -> MeshSpec | None:
    values = {
        "name": reader.get("name", str),
        "device_kind": reader.get("device_kind", str),
        "num_devices": reader.get("num_devices", int, 1),
        "backend": reader.get("backend", str, ""),
        "first_device": reader.get("first_device", int, 0),
        "host": reader.get("host", str, ""),
        "shares": reader.strings("shares"),
        "memory_bytes": reader.get("memory_bytes", int, None),
    }
    axes = reader.inner("axes", {"data": values["num_devices"] or 1})
    sizes = {axis: axes.get(axis, int, 1) for axis in AXIS_NAMES}
    axes.finish()
    reader.finish()
    return _build(MeshSpec, {**values, "axes": tuple(sizes.items())}, reader)


def _read_link(reader: TableReader) -> Link | None:
    values = {
        "source": reader.get("source", str),
        "target": reader.get("target", str),
        "latency_s": reader.get("latency_s", float),
        "bandwidth_bytes_per_s": reader.get("bandwidth_bytes_per_s", float),
    }
    reader.finish()
    return _build(Link, values, reader)


def _build(record: Any, values: dict[str, Any], reader: TableReader) -> Any:
    """The record, or None after a mistake, its own check's included."""
    if not reader.clean:
        return None
    try:
        return record(**values)
    except SpecError as error:
        reader.refused(error)
        return None


def write_cluster(
    meshes: Iterable[MeshSpec], links: Iterable[Link], kinds: Sequence[DeviceKind]
) -> str:
    """TOML that `parse_cluster` reads back; kinds of the catalogue are left to it."""
    blocks = [_block("mesh", _mesh_rows(mesh)) for mesh in meshes]
    blocks += [
        _block(
            "link",
            [(key, getattr(link, key)) for key in ("source", "target")]
            + [(key, getattr(link, key)) for key in ("latency_s", "bandwidth_bytes_per_s")],
        )
        for link in links
    ]
    blocks += [_block("kind", _kind_rows(kind)) for kind in kinds if kind not in catalogue()]
    return "\n".join(blocks)


def _mesh_rows(mesh: MeshSpec) -> Iterator[tuple[str, Any]]:
    yield "name", mesh.name
    yield "device_kind", mesh.device_kind
    yield "num_devices", mesh.num_devices
    yield "axes", dict(mesh.axes)
    if mesh.backend:
        yield "backend", mesh.backend
        yield "first_device", mesh.first_device
    if mesh.host:
        yield "host", mesh.host
        yield "shares", list(mesh.shares)
    if mesh.memory_bytes is not None:
        yield "memory_bytes", mesh.memory_bytes


def _kind_rows(kind: DeviceKind) -> Iterator[tuple[str, Any]]:
    sources = dict(kind.sources)

    def figure(key: str, value: float) -> dict[str, Any]:
        said, _, date = sources.get(key, "unknown, unknown").rpartition(", ")
        return {"value": value, "source": said, "date": date}

    yield "name", kind.name
    yield "vendor", kind.vendor
    yield "aliases", list(kind.aliases)
    yield "memory_bytes", figure("memory_bytes", kind.memory_bytes)
    yield "memory_bytes_per_s", figure("memory_bytes_per_s", kind.memory_bytes_per_s)
    if kind.tdp_watts is not None:
        yield "tdp_watts", figure("tdp_watts", kind.tdp_watts)
    yield "peak_flops_per_s", {key: figure(key, rate) for key, rate in kind.peak_flops_per_s}


def _block(name: str, rows: Iterable[tuple[str, Any]]) -> str:
    return "".join([f"[[{name}]]\n", *(f"{key} = {_value(value)}\n" for key, value in rows)])


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{_key(k)} = {_value(v)}" for k, v in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(_value, value)) + "]"
    return _string(value) if isinstance(value, str) else repr(value)


def _key(key: str) -> str:
    return key if key.isascii() and key.isidentifier() else _string(key)


def _string(text: str) -> str:
    """A basic string of TOML: JSON's, but for DEL, which JSON leaves as it is."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
