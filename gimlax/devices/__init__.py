"""From hardware, described or live, to a Cluster: what computes where, and what is shared."""

from gimlax.devices.backends import Backend, Capabilities
from gimlax.devices.catalogue import catalogue, load_kind
from gimlax.devices.cluster import Cluster
from gimlax.devices.kinds import DeviceKind
from gimlax.devices.mesh import Link, MeshSpec

__all__ = [
    "Backend",
    "Capabilities",
    "Cluster",
    "DeviceKind",
    "Link",
    "MeshSpec",
    "catalogue",
    "load_kind",
]
