"""A cluster as TOML that reads back to an equal one. Units as in the records."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, fields
from typing import Any

from gimlax.devices.catalogue import catalogue
from gimlax.devices.groups import Group
from gimlax.devices.kinds import FIGURES, DeviceKind
from gimlax.devices.mesh import Link, MeshSpec
from gimlax.devices.workers import WorkerSpec

__all__ = ["write_cluster"]


def write_cluster(
    meshes: Iterable[MeshSpec],
    groups: Iterable[Group],
    links: Iterable[Link],
    kinds: Iterable[DeviceKind],
    workers: Iterable[WorkerSpec],
) -> str:
    """TOML that `parse_cluster` reads back; kinds of the catalogue are left to it."""
    blocks = [_block("mesh", _mesh_rows(mesh)) for mesh in meshes]
    blocks += [_block("group", _group_rows(group)) for group in groups]
    blocks += [
        _block(
            "link",
            [(key, getattr(link, key)) for key in ("source", "target")]
            + [(key, getattr(link, key)) for key in ("latency_s", "bandwidth_bytes_per_s")],
        )
        for link in links
    ]
    blocks += [_block("worker", _worker_rows(worker)) for worker in workers]
    blocks += [_block("kind", _kind_rows(kind)) for kind in kinds if kind not in catalogue()]
    return "\n".join(blocks)


def _mesh_rows(mesh: MeshSpec) -> Iterator[tuple[str, Any]]:
    yield "name", mesh.name
    yield "device_kind", mesh.device_kind
    yield "num_devices", mesh.num_devices
    if mesh.axes:
        yield "axes", dict(mesh.axes)
    if mesh.backend:
        yield "backend", mesh.backend
        yield "first_device", mesh.first_device
    if mesh.host:
        yield "host", mesh.host
        yield "shares", list(mesh.shares)
    if mesh.memory_bytes is not None:
        yield "memory_bytes", mesh.memory_bytes
    if mesh.usd_per_hour is not None:
        yield "usd_per_hour", mesh.usd_per_hour
    if mesh.host_memory_bytes is not None:
        yield "host_memory_bytes", mesh.host_memory_bytes
    if mesh.worker:
        yield "worker", mesh.worker


def _group_rows(group: Group) -> Iterator[tuple[str, Any]]:
    for key in fields(group):
        if (value := getattr(group, key.name)) not in (None, ""):
            yield key.name, value


def _worker_rows(worker: WorkerSpec) -> Iterator[tuple[str, Any]]:
    for key in fields(worker):
        if (value := getattr(worker, key.name)) not in ("", ()):
            yield key.name, list(value) if isinstance(value, tuple) else value


def _kind_rows(kind: DeviceKind) -> Iterator[tuple[str, Any]]:
    sources, notes = dict(kind.sources), dict(kind.notes)

    def figure(key: str, value: float, **more: str) -> dict[str, Any]:
        said, _, date = sources.get(key, "unknown, unknown").rpartition(", ")
        note = {"note": notes[key]} if key in notes else {}
        return {"value": value, **more, "source": said, "date": date, **note}

    yield "name", kind.name
    yield "vendor", kind.vendor
    yield "aliases", list(kind.aliases)
    for key in FIGURES:
        if (value := getattr(kind, key)) is not None:
            more = {"direction": "one_way"} if key == "host_link_bytes_per_s" else {}
            yield key, figure(key, value, **more)
    yield "peak_flops_per_s", {key: figure(key, rate) for key, rate in kind.peak_flops_per_s}
    if (way := kind.interconnect) is not None:
        rate = figure("interconnect.bytes_per_s", way.bytes_per_s, direction="one_way")
        table = {"name": way.name, "bytes_per_s": rate}
        if way.num_devices is not None:
            table["num_devices"] = figure("interconnect.num_devices", way.num_devices)
        yield "interconnect", table
    if kind.prices:
        yield "price", [asdict(row) for row in kind.prices]
    if "" in notes:
        yield "note", notes[""]


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
