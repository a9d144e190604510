"""Pools of equal devices, from which a planner makes the meshes that it wants.

Chosen over one mesh a device because a cluster of a thousand equal devices is one line of a file,
and over meshes of fixed size because how many devices a stage gets is a decision. A mesh made from
group `h100` is called `h100/0`, `h100/1` and so on; a link that names the group holds for each.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from gimlax.devices.naming import name_mistakes
from gimlax.errors import SpecError

__all__ = ["Group", "group_of"]


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
        if mistakes := list(self._mistakes()):
            raise SpecError(f"group {self.name!r}: {'; '.join(mistakes)}")

    def _mistakes(self) -> Iterator[str]:
        yield from name_mistakes(self.name)
        if self.num_devices < 1:
            yield f"num_devices is {self.num_devices}; give at least 1"
        if self.devices_per_host is not None and self.devices_per_host < 1:
            yield f"devices_per_host is {self.devices_per_host}; give at least 1 or leave it out"
        if self.usd_per_hour is not None and not 0 <= self.usd_per_hour < math.inf:
            yield f"usd_per_hour is {self.usd_per_hour}; give 0 or more, or leave it out"
        if self.memory_bytes is not None and self.memory_bytes <= 0:
            yield f"memory_bytes is {self.memory_bytes}; give a positive number or leave it out"


def group_of(mesh: str) -> str:
    """The group that a mesh of this name was made from: `h100` of `h100/3`; else empty."""
    group, _, number = mesh.rpartition("/")
    return group if number.isascii() and number.isdecimal() else ""
