"""Pools of equal devices, from which a planner makes the meshes that it wants.

Chosen over one mesh a device because a cluster of a thousand equal devices is one line of a file,
and over meshes of fixed size because how many devices a stage gets is a decision. A mesh made from
group `h100` is called `h100/0`, `h100/1` and so on; a link that names the group holds for each.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from gimlax.checking import mistakes_of_fields, shown
from gimlax.devices.mesh import AXIS_NAMES, MOST_BYTES, MOST_DEVICES, MeshSpec
from gimlax.devices.naming import name_mistakes
from gimlax.errors import SpecError

__all__ = ["Group", "carve", "group_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Equal devices on equal hosts, described.

    Attributes:
        name: how links, plans and errors call it.
        device_kind: a name in the catalogue, or what PJRT reports.
        num_devices: how many there are in all.
        devices_per_host: how many of them one host has; all of them if it is None.
        backend: registered name of the backend that has them, empty where it is not live.
        host: the host, or what the hosts are called with a number behind; empty for the group's
            name.
        usd_per_hour: price of one device, where it differs from the kind's.
        memory_bytes: memory of one device, where it differs from the kind's.
    """

    name: str
    device_kind: str
    num_devices: int
    devices_per_host: int | None = None
    backend: str = ""
    host: str = ""
    usd_per_hour: float | None = None
    memory_bytes: int | None = None

    def __post_init__(self) -> None:
        if mistakes := mistakes_of_fields(self) or list(self._mistakes()):
            raise SpecError(f"group {shown(self.name)}: {'; '.join(mistakes)}")

    def _mistakes(self) -> Iterator[str]:
        yield from name_mistakes(self.name)
        if not 1 <= self.num_devices <= MOST_DEVICES:
            yield f"num_devices is {self.num_devices}; give 1 to {MOST_DEVICES}"
        if self.devices_per_host is not None and self.devices_per_host < 1:
            yield f"devices_per_host is {self.devices_per_host}; give at least 1 or leave it out"
        if self.usd_per_hour is not None and not 0 <= self.usd_per_hour < math.inf:
            yield f"usd_per_hour is {self.usd_per_hour}; give 0 or more, or leave it out"
        if self.memory_bytes is not None and not 0 < self.memory_bytes <= MOST_BYTES:
            yield f"memory_bytes is {self.memory_bytes}; give 1 to 2**60, or leave it out"


def group_of(mesh: str) -> str:
    """The group that a mesh of this name was made from: `h100` of `h100/3`; else empty."""
    group, _, number = mesh.rpartition("/")
    return group if number.isascii() and number.isdecimal() else ""


def carve(group: Group, shapes: Sequence[tuple[int, int]]) -> tuple[MeshSpec, ...]:
    """Meshes made from the devices of a group, called `<group>/0`, `<group>/1` and so on.

    A mesh that fits into one host gets devices of one; a larger one gets whole hosts.

    Args:
        group: where the devices are from.
        shapes: sizes of the axes `data` and `model`, one pair a mesh.

    Raises:
        SpecError: the devices do not suffice, or no host has enough of them together.
    """
    per_host = min(group.devices_per_host or group.num_devices, group.num_devices)
    whole, rest = divmod(group.num_devices, per_host)
    free = [per_host] * whole + [rest] * (rest > 0)  # devices left, by host
    found: dict[int, tuple[int, int]] = {}  # host and first device there, by mesh
    # The largest first: where sizes divide one another, that leaves no gap that another could use.
    for number in sorted(range(len(shapes)), key=lambda k: (-math.prod(shapes[k]), k)):
        size = math.prod(shapes[number])
        found[number] = _take(group, number, size, per_host, free)
    return tuple(
        MeshSpec(
            name=f"{group.name}/{number}",
            device_kind=group.device_kind,
            num_devices=math.prod(shape),
            axes=tuple(zip(AXIS_NAMES, shape, strict=True)),
            backend=group.backend,
            first_device=found[number][1] if group.backend else 0,
            host=_host(group, found[number][0], len(free)),
            memory_bytes=group.memory_bytes,
            usd_per_hour=group.usd_per_hour,
        )
        for number, shape in enumerate(shapes)
    )


def _take(group: Group, number: int, size: int, per_host: int, free: list[int]) -> tuple[int, int]:
    """Takes devices off `free` for one mesh: (its first host, its first device there)."""
    if size <= per_host:
        for host, left in enumerate(free):
            if left >= size > 0:
                free[host] -= size
                held = (
                    per_host
                    if (host + 1) * per_host <= group.num_devices
                    else (group.num_devices % per_host)
                )
                return host, held - left
    else:
        empty = [host for host, left in enumerate(free) if left == per_host]
        wanted, over = divmod(size, per_host)
        if not over and len(empty) >= wanted:
            for host in empty[:wanted]:
                free[host] = 0
            return empty[0], 0
    raise SpecError(
        f"group {group.name!r}: mesh {number} of {size} devices does not fit: {sum(free)} of "
        f"{group.num_devices} devices are left, at most {max(free)} together on a host of "
        f"{per_host}; make it smaller, or a multiple of a host's devices"
    )


def _host(group: Group, host: int, num_hosts: int) -> str:
    """What a host of the group is called."""
    name = group.host or group.name
    return name if num_hosts == 1 else f"{name}/{host}"
