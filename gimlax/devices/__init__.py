"""From hardware, described or live, to a Cluster: what computes where, and what is shared."""

from gimlax.devices.asking import capabilities
from gimlax.devices.backends import Backend, Capabilities
from gimlax.devices.calibration import (
    Calibration,
    MeasuredLink,
    MeshCalibration,
    Sample,
    Slowdown,
)
from gimlax.devices.catalogue import catalogue, load_kind
from gimlax.devices.cluster import Cluster
from gimlax.devices.discovery import discover
from gimlax.devices.kinds import DeviceKind
from gimlax.devices.live import bind, check_one_client
from gimlax.devices.measuring import calibrate
from gimlax.devices.mesh import Link, MeshSpec

__all__ = [
    "Backend",
    "Calibration",
    "Capabilities",
    "Cluster",
    "DeviceKind",
    "Link",
    "MeasuredLink",
    "MeshCalibration",
    "MeshSpec",
    "Sample",
    "Slowdown",
    "bind",
    "calibrate",
    "capabilities",
    "catalogue",
    "check_one_client",
    "discover",
    "load_kind",
]
