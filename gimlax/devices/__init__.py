"""From hardware, described or live, to a Cluster: what computes where, and what is shared."""

from gimlax.devices.asking import capabilities
from gimlax.devices.backends import Backend, Capabilities
from gimlax.devices.calibration import Calibration
from gimlax.devices.catalogue import catalogue, check_cards, load_kind
from gimlax.devices.cluster import Cluster
from gimlax.devices.discovery import discover
from gimlax.devices.evidence import TIERS, Evidence, find_evidence
from gimlax.devices.groups import Group
from gimlax.devices.interconnect import Interconnect
from gimlax.devices.kinds import DeviceKind
from gimlax.devices.live import bind, check_one_client
from gimlax.devices.measuring import calibrate
from gimlax.devices.mesh import Link, MeshSpec
from gimlax.devices.prices import Price
from gimlax.devices.processes import join_processes
from gimlax.devices.report import show_kinds
from gimlax.devices.samples import MeasuredLink, MeshCalibration, Sample, Slowdown, StageMemory
from gimlax.devices.tiers import Tier
from gimlax.devices.workers import WorkerSpec

__all__ = [
    "TIERS",
    "Backend",
    "Calibration",
    "Capabilities",
    "Cluster",
    "DeviceKind",
    "Evidence",
    "Group",
    "Interconnect",
    "Link",
    "MeasuredLink",
    "MeshCalibration",
    "MeshSpec",
    "Price",
    "Sample",
    "Slowdown",
    "StageMemory",
    "Tier",
    "WorkerSpec",
    "bind",
    "calibrate",
    "capabilities",
    "catalogue",
    "check_cards",
    "check_one_client",
    "discover",
    "find_evidence",
    "join_processes",
    "load_kind",
    "show_kinds",
]
