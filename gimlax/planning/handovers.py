"""Seconds of handing over at each boundary, between all pairs of meshes: a latency and bytes."""

import numpy as np

from gimlax.devices import Cluster
from gimlax.devices.groups import group_of
from gimlax.errors import PlanError
from gimlax.planning.problem import Array
from gimlax.units import show_bytes

__all__ = ["MOST_BYTES", "check_size", "handovers_s"]

# Of the table of hand-overs, of which a search keeps a few copies.
MOST_BYTES = 2**31


def check_size(cluster: Cluster, num_segments: int) -> None:
    """Refuses more meshes than a table of all pairs has room for.

    Raises:
        PlanError: says how many there are.
    """
    num_meshes = len(cluster.meshes)
    needed_bytes = 8 * num_meshes**2 * (num_segments + 1)
    if needed_bytes > MOST_BYTES:
        raise PlanError(
            f"the cluster has {num_meshes} meshes: a table of the hand-overs between all of them "
            f"takes {show_bytes(needed_bytes)}, and {show_bytes(MOST_BYTES)} are the most; "
            "describe equal devices as [[group]]s, from which meshes are made, or leave meshes out"
        )


def handovers_s(cluster: Cluster, calls: Array, boundary_bytes: Array) -> Array:
    """Seconds of each hand-over. [source, target, boundary]"""
    num_meshes = len(cluster.meshes)
    result = np.full((num_meshes, num_meshes, boundary_bytes.shape[1]), np.inf)
    result[np.arange(num_meshes), np.arange(num_meshes)] = 0.0
    called: dict[str, list[int]] = {}  # meshes by their name, and by that of their group
    for index, mesh in enumerate(cluster.meshes):
        for name in {mesh.name, group_of(mesh.name)}:
            called.setdefault(name, []).append(index)
    pairs = {
        (s, t)
        for link in cluster.links
        for s in called.get(link.source, ())
        for t in called.get(link.target, ())
        if s != t
    }
    for s, t in pairs:
        link = cluster.link(cluster.meshes[s].name, cluster.meshes[t].name)
        if link is not None:
            # Where nothing crosses nothing is sent.
            each = link.latency_s + boundary_bytes / link.bandwidth_bytes_per_s
            result[s, t] = calls @ np.where(boundary_bytes > 0, each, 0.0)
    return result
