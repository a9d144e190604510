"""What a mesh of each possible shape of a group takes for each run of segments.

Shapes split the model over 1, 2, 4 ... devices of one host, as far as an interconnect joins them.
Splits of the batch are left to replicas, which do as many requests with the same devices and need
no collective. Seconds are per request, bytes are of one device.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from gimlax.devices import Calibration, Cluster, Group, MeshSpec
from gimlax.errors import PlanError
from gimlax.graph import Chain, Role
from gimlax.planning.cost import Costs, costs
from gimlax.planning.problem import Array
from gimlax.planning.sharding import Sharded
from gimlax.planning.solvers.pools_problem import PoolsProblem

__all__ = ["GroupCosts", "price_groups"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GroupCosts:
    """Figures of one mesh of each shape; they do not depend on how many devices there are.

    Attributes:
        shapes: a mesh of each shape. [option]
        option_group: the group of each. [option]
        figures: of these meshes.
        resident_bytes, carried_bytes: on one device, of each segment. [option, segment]
        stage_bytes: on one device, of all. [option, first, stop]
        transfer_s: of a hand-over between meshes of two groups. [source, target, boundary]
    """

    shapes: tuple[MeshSpec, ...]
    option_group: np.ndarray
    figures: Costs
    resident_bytes: Array
    carried_bytes: Array
    stage_bytes: Array
    transfer_s: Array

    def problem(self, cluster: Cluster) -> PoolsProblem:
        """What a search sees, with as many devices as this cluster has.

        A mesh computes, sends and receives at the same time, each for one request after another;
        a hand-over takes as long as on the slowest link that it may have to take.
        """
        found = self.figures.problem
        fits = self.stage_bytes <= found.capacity_bytes[:, None, None]
        sent_s = self.transfer_s.max(axis=1)[self.option_group]  # [option, boundary]
        received_s = self.transfer_s.max(axis=0)[self.option_group]
        busy_s = np.maximum(found.stage_s, received_s[:, :, None])
        busy_s = np.maximum(busy_s, sent_s[:, None, :])
        return PoolsProblem(
            busy_s=np.where(fits, busy_s, np.inf),
            option_group=self.option_group,
            option_devices=np.array([shape.num_devices for shape in self.shapes]),
            num_devices=np.array([group.num_devices for group in cluster.groups]),
            devices_per_host=np.array([_per_host(group) for group in cluster.groups]),
        )


def price_groups(
    chain: Chain, cluster: Cluster, calibration: Calibration | None = None
) -> GroupCosts:
    """Figures of all shapes of all groups.

    Raises:
        PlanError: two groups that no link joins, or meshes of a group that none joins.
        SpecError: a kind of device has no figure for a dtype of the model.
    """
    _check_links(cluster)
    sizes = {group.name: _sizes(cluster, group) for group in cluster.groups}
    # One mesh of each shape, whether there are devices for all of them at once or not.
    enough = tuple(
        replace(group, num_devices=sum(sizes[group.name]), devices_per_host=None)
        for group in cluster.groups
    )
    priced = replace(cluster, groups=enough).carve(
        {name: [(1, size) for size in of] for name, of in sizes.items()}
    )
    figures = costs(chain, priced, calibration)
    sharded = [figures.sharded.get(mesh.name) for mesh in priced.meshes]
    resident, carried = (
        _held_bytes(chain, sharded, role) for role in (Role.RESIDENT, Role.CARRIED)
    )
    for num_bytes, users in chain.constants():
        resident[:, list(users)] += num_bytes
    names = [group.name for group in cluster.groups]
    links = {(link.source, link.target): link for link in cluster.links}
    sent = figures.boundary_bytes
    transfer_s = np.zeros((len(names), len(names), chain.num_segments + 1))
    for s, source in enumerate(names):
        for t, target in enumerate(names):
            link = links[source, target]
            each = link.latency_s + sent / link.bandwidth_bytes_per_s
            transfer_s[s, t] = figures.calls @ np.where(sent > 0, each, 0.0)
    total = np.cumsum(np.pad(resident + carried, ((0, 0), (1, 0))), axis=1)
    return GroupCosts(
        shapes=priced.meshes,
        option_group=np.repeat(np.arange(len(names)), [len(sizes[name]) for name in names]),
        figures=figures,
        resident_bytes=resident,
        carried_bytes=carried,
        stage_bytes=total[:, None, :] - total[:, :, None] + figures.problem.largest_bytes[0],
        transfer_s=transfer_s,
    )


def _per_host(group: Group) -> int:
    return min(group.devices_per_host or group.num_devices, group.num_devices)


def _sizes(cluster: Cluster, group: Group) -> list[int]:
    """Over how many devices a model can be split: powers of two, so that hosts have no gaps."""
    joined = cluster.kind(group.name).interconnect
    most = 1 if joined is None else min(_per_host(group), joined.num_devices or _per_host(group))
    return [2**k for k in range(int(np.log2(most)) + 1)]


def _check_links(cluster: Cluster) -> None:
    there = {(link.source, link.target) for link in cluster.links}
    names = [group.name for group in cluster.groups]
    missing = [f"{s!r} -> {t!r}" for s in names for t in names if (s, t) not in there]
    if missing:
        raise PlanError(
            "replicas hand requests to any mesh of the next stage, so all groups have to be joined,"
            f" each with itself too; the cluster has no link {', '.join(missing)}; add it, or "
            "leave out groups"
        )


def _held_bytes(chain: Chain, sharded: Sequence[Sharded | None], role: Role) -> Array:
    """Bytes on one device of the arguments that each segment uses; shared ones count in each.

    Returns:
        [option, segment]
    """
    traced = chain.phases[0].traced
    paths = [traced.arguments[leaf].path for leaf in traced.leaves(role)]
    parts = [[of.parts(path) if of else 1 for path in paths] for of in sharded]
    parts_of = chain.resident_parts if role is Role.RESIDENT else chain.carried_parts
    result = np.zeros((len(sharded), chain.num_segments))
    for segment in range(chain.num_segments):
        for part in parts_of(segment, segment + 1):
            num_bytes = chain.part_bytes(role, part)
            result[:, segment] += [num_bytes / of[part.leaf] for of in parts]
    return result
