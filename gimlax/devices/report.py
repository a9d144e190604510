"""A cluster as a table: what a person wants to see before planning."""

from collections.abc import Iterable, Sequence

from gimlax.devices.backends import Backend
from gimlax.devices.evidence import find_evidence
from gimlax.devices.groups import Group
from gimlax.devices.kinds import DeviceKind, find_kind
from gimlax.devices.mesh import Link, MeshSpec
from gimlax.devices.samples import MeasuredLink, MeshCalibration, Slowdown, StageMemory
from gimlax.units import show_bytes, show_bytes_per_s, show_flops, show_seconds

__all__ = [
    "show_backends",
    "show_groups",
    "show_kinds",
    "show_links",
    "show_measured",
    "show_meshes",
]

_BEYOND_CACHES = 2**27  # bytes
_BETWEEN = ("all_reduce", "all_gather")  # devices: no operation of one
_LONG_S = 1e-3  # rates of shorter operations are mostly noise


def show_meshes(meshes: Iterable[MeshSpec], kinds: Sequence[DeviceKind]) -> str:
    """One line a mesh: devices, memory, bandwidth, peaks, their tier, and what it shares."""
    figures = ("memory", "bandwidth", "float32", "bfloat16")
    rows: list[Sequence[str]] = [("mesh", "device", "count", *figures, "tier", "shares")]
    for mesh in meshes:
        kind = find_kind(kinds, mesh.device_kind)
        assert kind is not None
        shared = " and ".join(mesh.shares)
        rows.append(
            (
                mesh.name,
                mesh.device_kind,
                " x ".join(map(str, mesh.shape)) or "planned",
                show_bytes(mesh.memory_bytes or kind.memory_bytes),
                show_bytes_per_s(kind.memory_bytes_per_s),
                show_flops(kind.peak("float32")) + "/s",
                show_flops(kind.peak("bfloat16")) + "/s",
                str(find_evidence(kind.name)),
                f"{shared} of {mesh.host}" if shared else "-",
            )
        )
    return _columns(rows)


def show_groups(groups: Iterable[Group], kinds: Sequence[DeviceKind]) -> str:
    """One line a group: devices, hosts, the figures of one device, and its tier."""
    figures = ("memory", "bandwidth", "float32", "bfloat16")
    rows: list[Sequence[str]] = [("group", "device", "count", "hosts", *figures, "tier")]
    for group in groups:
        kind = find_kind(kinds, group.device_kind)
        assert kind is not None
        per_host = group.devices_per_host or group.num_devices
        rows.append(
            (
                group.name,
                group.device_kind,
                str(group.num_devices),
                str(-(-group.num_devices // per_host)),
                show_bytes(group.memory_bytes or kind.memory_bytes),
                show_bytes_per_s(kind.memory_bytes_per_s),
                show_flops(kind.peak("float32")) + "/s",
                show_flops(kind.peak("bfloat16")) + "/s",
                str(find_evidence(kind.name)),
            )
        )
    return _columns(rows)


def show_links(links: Iterable[Link]) -> str:
    """One line a link."""
    rows = [("link", "latency", "bandwidth")]
    rows += [
        (
            f"{link.source} -> {link.target}",
            show_seconds(link.latency_s),
            show_bytes_per_s(link.bandwidth_bytes_per_s),
        )
        for link in links
    ]
    return _columns(rows)


def show_backends(backends: Iterable[Backend]) -> str:
    """One line a backend: what it can do, or why it is not here."""
    rows = [("backend", "devices", "can do, or why not")]
    for backend in backends:
        devices = f"{backend.num_devices} x {backend.device_kind}" if backend.available else "-"
        notes = filter(None, (backend.reason, str(backend.capabilities or "")))
        rows.append((backend.name, devices, "; ".join(notes)))
    return _columns(rows)


def show_kinds(kinds: Iterable[DeviceKind]) -> str:
    """One line a kind: its tier and figures per device, `-` where one is not known."""
    dtypes = ("float32", "bfloat16", "float16", "float8", "int8")
    power = ("TDP", "idle", "interconnect, one way", "$/h")
    rows: list[Sequence[str]] = [
        ("kind", "vendor", "tier", "memory", "bandwidth", "on chip", *dtypes, *power)
    ]
    for kind in kinds:
        rates, way, price = dict(kind.peak_flops_per_s), kind.interconnect, kind.usd_per_hour
        peaks = [f"{show_flops(rates[d])}/s" if d in rates else "-" for d in dtypes]
        rows.append(
            (
                kind.name,
                kind.vendor,
                str(find_evidence(kind.name)),
                show_bytes(kind.memory_bytes),
                show_bytes_per_s(kind.memory_bytes_per_s),
                show_bytes(kind.on_chip_bytes) if kind.on_chip_bytes else "-",
                *peaks,
                f"{kind.tdp_watts:g} W" if kind.tdp_watts else "-",
                f"{kind.idle_watts:g} W" if kind.idle_watts else "-",
                f"{way.name}, {show_bytes_per_s(way.bytes_per_s)}" if way else "-",
                f"{price:.2f}" if price else "-",
            )
        )
    return _columns(rows)


def show_measured(
    meshes: Iterable[MeshCalibration],
    links: Iterable[MeasuredLink],
    slowdowns: Iterable[Slowdown],
    memories: Iterable[StageMemory] = (),
) -> str:
    """What a calibration found: best rates of meshes, links and whether they copy, slowdowns, and
    what compilers need for stages."""
    rows = [("mesh", "device", "samples", "call", "float32", "bfloat16", "memory", "all-reduce")]
    for mesh in meshes:
        operations = [s for s in mesh.samples if s.kind not in _BETWEEN]
        long = [s for s in operations if s.seconds >= _LONG_S]
        single, half = (
            max((s.flops / s.seconds for s in long if s.dtype == dtype), default=0.0)
            for dtype in ("float32", "bfloat16")
        )
        rates = [s.num_bytes / s.seconds for s in operations if s.num_bytes >= _BEYOND_CACHES]
        sums = [s for s in mesh.samples if s.kind == _BETWEEN[0] and s.dims[0] == mesh.num_devices]
        rows.append(
            (
                mesh.mesh,
                f"{mesh.num_devices} x {mesh.device_kind}",
                str(len(mesh.samples)),
                show_seconds(mesh.dispatch_s),
                show_flops(single) + "/s",
                show_flops(half) + "/s",
                show_bytes_per_s(max(rates)) if rates else "-",
                show_bytes_per_s(max(s.num_bytes / s.seconds for s in sums)) if sums else "-",
            )
        )
    tables = [_columns(rows)] if len(rows) > 1 else []
    lines = [("link", "latency", "bandwidth", "moves by")]
    lines += [
        (
            f"{link.source} -> {link.target}",
            show_seconds(link.latency_s),
            show_bytes_per_s(link.bandwidth_bytes_per_s),
            "sharing memory; a forced copy was timed" if link.aliases else "copying",
        )
        for link in links
    ]
    if len(lines) > 1:
        tables.append(_columns(lines))
    tables += [
        f"{pair.meshes[0]} beside {pair.meshes[1]}: {pair.factor:.2f} times as long"
        for pair in slowdowns
    ]
    lines = [("mesh", "device", "segments", "needs", "compiled by")]
    lines += [
        (
            memory.mesh,
            f"{memory.num_devices} x {memory.device_kind}",
            f"{memory.first_segment} to {memory.first_segment + memory.num_segments - 1}",
            show_bytes(memory.needed_bytes),
            memory.compiler,
        )
        for memory in memories
    ]
    if len(lines) > 1:
        tables.append(_columns(lines))
    return "\n\n".join(tables)


def _columns(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )
