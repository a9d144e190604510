"""What a mesh is compiled for where its devices are not: a platform and its description.

Data, one table a device, in `targets/`: how libtpu calls a slice of so many chips, and what XLA has
to know of a GPU. A kind without a table can be lowered to StableHLO and no further. Units: bytes,
bytes/s, GHz.
"""

import functools
import math
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from gimlax.devices import DeviceKind, MeshSpec, catalogue, load_kind
from gimlax.devices.kinds import find_kind
from gimlax.errors import SpecError

__all__ = ["Target", "mesh_of", "target_of"]

_FOLDER = "gimlax/verification/targets"
_GPUS_PER_HOST = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What a compiler is told instead of being given devices.

    Attributes:
        platform: as PJRT calls it; what a stage is lowered for.
        topology: of the devices, as the platform calls it: 'v5e:2x2', '1x1x4'; empty for a CPU.
        description: how tables call it.
        options: for `jax.experimental.topologies`, which the platform understands.
        why_not: why nothing can be compiled for it here, empty if a compiler can do it.
    """

    platform: str
    topology: str = ""
    description: str
    options: tuple[tuple[str, Any], ...] = ()
    why_not: str = ""


def target_of(spec: MeshSpec) -> Target:
    """What stages on a described mesh are compiled for; never fails, see `Target.why_not`."""
    kind = find_kind(catalogue(), spec.device_kind)
    if kind is None:
        return Target(
            platform=spec.backend or "unknown",
            description=spec.device_kind,
            why_not=f"device kind {spec.device_kind!r} is not in the catalogue, so nothing says how"
            " to compile for it; add its card and its target",
        )
    if "cpu" in (kind.name, *kind.aliases):
        return Target(platform="cpu", description="this host's CPU")
    if table := _by_kind("tpu").get(kind.name):
        return _slice(table, spec)
    if table := _by_kind("gpu").get(kind.name):
        return _gpus(table, spec)
    return _lowered(kind, spec)


def mesh_of(topology: str, name: str) -> MeshSpec:
    """The mesh of a topology as a user writes it, its axes left to the planner.

    Args:
        topology: a slice as libtpu calls it ('v5e:2x2'), a kind of device ('H100 SXM'), or several
            of one ('4 x H100 SXM').
        name: of the mesh.

    Raises:
        SpecError: there is no such slice, or no such kind; says what there is.
    """
    prefix, colon, shape = topology.partition(":")
    if colon:
        tables = {table["prefix"]: table for table in _by_kind("tpu").values()}
        if prefix not in tables:
            raise SpecError(
                f"topology {topology!r}: {prefix!r} is no generation of TPUs that is known; give"
                f" one of {', '.join(tables)}"
            )
        table = tables[prefix]
        if shape not in table["shapes"]:
            raise SpecError(
                f"topology {topology!r}: {prefix} has no slice {shape!r}; give one of"
                f" {', '.join(table['shapes'])}"
            )
        count = math.prod(map(int, shape.split("x"))) * table["devices_per_chip"]
        return MeshSpec(name=name, device_kind=table["kind"], num_devices=count)
    several = re.fullmatch(r" *(\d{1,7}) *x *(.*?) *", topology)
    count, called = (int(several[1]), several[2]) if several else (1, topology.strip())
    return MeshSpec(name=name, device_kind=load_kind(called).name, num_devices=count)


def _slice(table: Mapping[str, Any], spec: MeshSpec) -> Target:
    """A TPU slice; the hosts of one are as large as libtpu takes them to be, if it has so many."""
    chips, left = divmod(spec.num_devices, table["devices_per_chip"])
    shapes = {math.prod(map(int, shape.split("x"))): shape for shape in table["shapes"]}
    if left or chips not in shapes:
        known = ", ".join(str(n * table["devices_per_chip"]) for n in shapes)
        return Target(
            platform="tpu",
            description=f"{spec.num_devices} x {spec.device_kind}",
            why_not=f"no slice of {spec.device_kind} has {spec.num_devices} devices ({known} are"
            f" known); give another number, or add the slice to {_FOLDER}/tpu.toml",
        )
    name = f"{table['prefix']}:{shapes[chips]}"
    options = dict(table.get("options", {}))
    host = [*map(int, shapes[chips].split("x")), 1][:3]
    if chips < 4:  # a part of a host, which libtpu otherwise takes to have 2 x 2 chips
        options["chips_per_host_bounds"] = host
    return Target(
        platform="tpu", topology=name, description=name, options=tuple(sorted(options.items()))
    )


def _gpus(table: Mapping[str, Any], spec: MeshSpec) -> Target:
    hosts, left = divmod(spec.num_devices, _GPUS_PER_HOST)
    shape = (hosts, _GPUS_PER_HOST) if hosts and not left else (1, spec.num_devices)
    return Target(
        platform="cuda",
        topology=f"1x{shape[0]}x{shape[1]}",
        description=f"{spec.num_devices} x {table['kind']}",
        options=(("target_config", _target_config(table)),),
    )


def _lowered(kind: DeviceKind, spec: MeshSpec) -> Target:
    known = {row["name"]: row for row in _read("lowered")["vendor"]}
    row = known.get(kind.vendor, {})
    return Target(
        platform=row.get("platform") or spec.backend or kind.vendor.lower().replace(" ", "_"),
        description=f"{spec.num_devices} x {kind.name}",
        why_not=row.get("why", f"no compiler for {kind.name} is known to work without it"),
    )


def _target_config(gpu: Mapping[str, Any]) -> str:
    """XLA's GpuTargetConfig as a text proto."""
    data = _read("gpu")
    versions = data["versions"]
    capability = next(c for c in data["capability"] if c["version"] == gpu["capability"])
    cores = capability["cores"]
    major, minor = gpu["capability"]
    device = {
        "threads_per_block_limit": 1024,
        "threads_per_warp": 32,
        "shared_memory_per_block": 49152,
        "shared_memory_per_block_optin": capability["block_shared_bytes"],
        "shared_memory_per_core": cores["shared_bytes"],
        "threads_per_core_limit": cores["threads"],
        "core_count": gpu["num_cores"],
        "fpus_per_core": cores["fpus"],
        "block_dim_limit_x": 2**31 - 1,
        "block_dim_limit_y": 2**16 - 1,
        "block_dim_limit_z": 2**16 - 1,
        "thread_dim_limit_x": 1024,
        "thread_dim_limit_y": 1024,
        "thread_dim_limit_z": 64,
        "registers_per_core_limit": 65536,
        "registers_per_block_limit": 65536,
        "memory_bandwidth": int(gpu["memory_bytes_per_s"]),
        "l2_cache_size": gpu["l2_bytes"],
        "clock_rate_ghz": gpu["clock_ghz"],
        "device_memory_size": gpu["memory_bytes"],
        "device_address_bits": 64,
        "name": gpu["reports"],
        "driver_version": versions["driver"],
        "runtime_version": versions["cuda"],
        "compile_time_toolkit_version": versions["cuda"],
        "dnn_version": versions["cudnn"],
    }
    dnn = zip(("major", "minor", "patch"), versions["cudnn"].split("."), strict=True)
    return (
        f"gpu_device_info {{ {_fields(device)}"
        f" cuda_compute_capability {{ major: {major} minor: {minor} }} }}"
        f' platform_name: "CUDA" dnn_version_info {{ {_fields({k: int(v) for k, v in dnn})} }}'
        f' device_description_str: "{gpu["reports"]}"'
    )


def _fields(values: Mapping[str, Any]) -> str:
    return " ".join(
        f'{key}: "{value}"' if isinstance(value, str) else f"{key}: {value}"
        for key, value in values.items()
    )


def _by_kind(what: str) -> Mapping[str, Mapping[str, Any]]:
    rows: Sequence[Mapping[str, Any]] = _read(what)[what]
    return {row["kind"]: row for row in rows}


@functools.cache
def _read(name: str) -> dict[str, Any]:
    file = resources.files("gimlax.verification").joinpath("targets").joinpath(f"{name}.toml")
    return tomllib.loads(file.read_text("utf-8"))
