"""From hardware, described or live, to a Cluster: what can be computed where, and what is shared."""

from gimlax.devices.backends import Backend, Capabilities
from gimlax.devices.cluster import Cluster, Link, MeshSpec
from gimlax.devices.kinds import DeviceKind

__all__ = [
    "Backend",
    "Capabilities",
    "Cluster",
    "DeviceKind",
    "Link",
    "MeshSpec",
]
