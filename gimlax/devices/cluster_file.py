"""The TOML form of a cluster: meshes, groups, links, workers and kinds, read strictly.

The format is explained, with an example, in the README beside this file. Units as in the records.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gimlax.devices.card_figures import FigureReader
from gimlax.devices.cards import read_kind
from gimlax.devices.groups import Group
from gimlax.devices.kinds import DeviceKind
from gimlax.devices.mesh import AXIS_NAMES, Link, MeshSpec
from gimlax.devices.tables import TableReader
from gimlax.devices.toml import parse_toml
from gimlax.devices.workers import WorkerSpec
from gimlax.errors import SpecError

__all__ = ["ClusterFile", "parse_cluster"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterFile:
    """What could be read; `names` are of all meshes and groups, those with mistakes too, `refused`
    names and aliases of the kinds with mistakes, `refused_workers` names of such workers."""

    meshes: tuple[MeshSpec, ...] = ()
    groups: tuple[Group, ...] = ()
    links: tuple[Link, ...] = ()
    kinds: tuple[DeviceKind, ...] = ()
    workers: tuple[WorkerSpec, ...] = ()
    refused_workers: frozenset[str] = frozenset()
    names: tuple[str, ...] = ()
    refused: frozenset[str] = frozenset()


def parse_cluster(text: str, name: str, mistakes: list[str]) -> ClusterFile:
    """Meshes, groups, links and kinds of a cluster file; what is wrong is added to `mistakes`.

    Args:
        text: TOML.
        name: how mistakes call the file.
        mistakes: one sentence each, with the table and the value.
    """
    if (tables := parse_toml(text, name, mistakes)) is None:
        return ClusterFile()
    file = TableReader(tables, name, mistakes)
    tables_of_kinds = file.inner_list("kind")
    kinds = [
        read_kind(reader, FigureReader(today=None, needs_source=False))
        for reader in tables_of_kinds
    ]
    tables_of_meshes, tables_of_groups = file.inner_list("mesh"), file.inner_list("group")
    meshes = [_read_mesh(reader) for reader in tables_of_meshes]
    groups = [_read_group(reader) for reader in tables_of_groups]
    links = [_read_link(reader) for reader in file.inner_list("link")]
    tables_of_workers = file.inner_list("worker")
    workers = [_read_worker(reader) for reader in tables_of_workers]
    file.finish()
    if "mesh" not in tables and "group" not in tables:
        file.wrong("it has no mesh; give at least one [[mesh]] or [[group]]")
    return ClusterFile(
        meshes=tuple(filter(None, meshes)),
        groups=tuple(filter(None, groups)),
        links=tuple(filter(None, links)),
        kinds=tuple(filter(None, kinds)),
        workers=tuple(filter(None, workers)),
        refused_workers=frozenset(
            str(reader.table.get("name"))
            for reader, worker in zip(tables_of_workers, workers, strict=True)
            if worker is None
        ),
        names=tuple(
            str(reader.table["name"])
            for reader in (*tables_of_meshes, *tables_of_groups)
            if "name" in reader.table
        ),
        refused=frozenset(
            name
            for reader, kind in zip(tables_of_kinds, kinds, strict=True)
            if kind is None
            for name in _called(reader.table)
        ),
    )


def _called(table: Mapping[str, Any]) -> list[str]:
    """What a `[[kind]]` that may be wrong in anything says that it is called."""
    aliases = table.get("aliases")
    said = [table.get("name"), *(aliases if isinstance(aliases, list) else ())]
    return [name for name in said if isinstance(name, str)]


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
        "usd_per_hour": reader.get("usd_per_hour", float, None),
        "host_memory_bytes": reader.get("host_memory_bytes", int, None),
        "worker": reader.get("worker", str, ""),
    }
    axes = reader.inner("axes", {})
    sizes = {axis: axes.get(axis, int, 1) for axis in AXIS_NAMES}
    axes.finish()
    reader.finish()
    given = tuple(sizes.items()) if "axes" in reader.table else ()
    return _build(MeshSpec, {**values, "axes": given}, reader)


def _read_group(reader: TableReader) -> Group | None:
    values = {
        "name": reader.get("name", str),
        "device_kind": reader.get("device_kind", str),
        "num_devices": reader.get("num_devices", int),
        "devices_per_host": reader.get("devices_per_host", int, None),
        "backend": reader.get("backend", str, ""),
        "host": reader.get("host", str, ""),
        "usd_per_hour": reader.get("usd_per_hour", float, None),
        "memory_bytes": reader.get("memory_bytes", int, None),
    }
    reader.finish()
    return _build(Group, values, reader)


def _read_link(reader: TableReader) -> Link | None:
    values = {
        "source": reader.get("source", str),
        "target": reader.get("target", str),
        "latency_s": reader.get("latency_s", float),
        "bandwidth_bytes_per_s": reader.get("bandwidth_bytes_per_s", float),
    }
    reader.finish()
    return _build(Link, values, reader)


def _read_worker(reader: TableReader) -> WorkerSpec | None:
    cores = reader.get("cores", list, [])
    if cores is not None and not all(type(core) is int for core in cores):
        reader.wrong(f"cores is {cores!r}; give a list of whole numbers")
    hosts = reader.get("hosts", list, [])
    if hosts is not None and not all(isinstance(host, str) for host in hosts):
        reader.wrong(f"hosts is {hosts!r}; give a list of addresses")
    values = {
        "name": reader.get("name", str),
        "host": reader.get("host", str, ""),
        "hosts": tuple(hosts or ()),
        "platforms": reader.get("platforms", str, ""),
        "flags": reader.get("flags", str, ""),
        "cores": tuple(cores or ()),
    }
    reader.finish()
    return _build(WorkerSpec, values, reader)


def _build(record: Any, values: dict[str, Any], reader: TableReader) -> Any:
    """The record, or None after a mistake, its own check's included."""
    if not reader.clean:
        return None
    try:
        return record(**values)
    except SpecError as error:
        reader.refused(error)
        return None
