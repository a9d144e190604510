"""What a mesh of each possible shape of a group takes for each run of segments.

Shapes split the model over 1, 2, 4 ... devices of one host, as far as an interconnect joins them.
Where it counts how long a request takes they split the batch too; else replicas do as many requests
with the same devices and need no collective. Seconds are per request, bytes are of one device.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from jax.sharding import PartitionSpec

from gimlax.devices import Calibration, Cluster, Group, MeshSpec
from gimlax.errors import PlanError
from gimlax.graph import Chain
from gimlax.planning.cost import Costs, costs
from gimlax.planning.problem import Array
from gimlax.planning.solvers.pools_problem import PoolsProblem

__all__ = ["GroupCosts", "price_groups"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GroupCosts:
    """Figures of one mesh of each shape; they do not depend on how many devices there are.

    Attributes:
        shapes: a mesh of each shape. [option]
        option_group: the group of each. [option]
        figures: of these meshes.
        transfer_s: of a hand-over between meshes of two groups. [source, target, boundary]
    """

    shapes: tuple[MeshSpec, ...]
    option_group: np.ndarray
    figures: Costs
    transfer_s: Array

    def problem(self, cluster: Cluster, *, slower: float = 1.0) -> PoolsProblem:
        """What a search sees, with the devices of this cluster and links so much slower."""
        found = self.figures.problem
        fits = found.stage_bytes() <= found.capacity_bytes[:, None, None]
        return PoolsProblem(
            stage_s=np.where(fits, found.stage_s, np.inf),
            hop_s=slower * self.transfer_s,
            usd_per_s=found.usd_per_s,
            busy_watts=found.busy_watts,
            idle_watts=found.idle_watts,
            option_group=self.option_group,
            option_devices=np.array([shape.num_devices for shape in self.shapes]),
            num_devices=np.array([group.num_devices for group in cluster.groups]),
            devices_per_host=np.array([_per_host(group) for group in cluster.groups]),
        )


def price_groups(
    chain: Chain,
    cluster: Cluster,
    calibration: Calibration | None = None,
    shardings: Mapping[str, PartitionSpec] | None = None,
    *,
    split_batch: bool = False,
) -> GroupCosts:
    """Figures of all shapes of all groups.

    Args:
        chain: what runs.
        cluster: has the groups.
        calibration: measured figures.
        shardings: specs to be kept, by the path of an argument.
        split_batch: whether shapes with several devices along `data` are offered.

    Raises:
        PlanError: two groups that no link joins, or meshes of a group that none joins.
        SpecError: a kind of device has no figure for a dtype of the model.
    """
    _check_links(cluster)
    shapes = {group.name: _shapes(cluster, group, split_batch) for group in cluster.groups}
    # One mesh of each shape, whether there are devices for all of them at once or not.
    enough = tuple(
        replace(
            group,
            num_devices=sum(data * model for data, model in shapes[group.name]),
            devices_per_host=None,
        )
        for group in cluster.groups
    )
    priced = replace(cluster, groups=enough).carve(shapes)
    figures = costs(chain, priced, calibration, shardings)
    names = [group.name for group in cluster.groups]
    links = {(link.source, link.target): link for link in cluster.links}
    sent = figures.boundary_bytes
    transfer_s = np.zeros((len(names), len(names), chain.num_segments + 1))
    for s, source in enumerate(names):
        for t, target in enumerate(names):
            link = links[source, target]
            each = link.latency_s + sent / link.bandwidth_bytes_per_s
            transfer_s[s, t] = figures.calls @ np.where(sent > 0, each, 0.0)
    return GroupCosts(
        shapes=priced.meshes,
        option_group=np.repeat(np.arange(len(names)), [len(shapes[name]) for name in names]),
        figures=figures,
        transfer_s=transfer_s,
    )


def _per_host(group: Group) -> int:
    return min(group.devices_per_host or group.num_devices, group.num_devices)


def _shapes(cluster: Cluster, group: Group, split_batch: bool) -> list[tuple[int, int]]:
    """Sizes of `data` and `model`: powers of two, so that hosts have no gaps."""
    joined = cluster.kind(group.name).interconnect
    most = 1 if joined is None else min(_per_host(group), joined.num_devices or _per_host(group))
    sizes = [2**k for k in range(int(np.log2(most)) + 1)]
    return [
        (data, size // data)
        for size in sizes
        for data in sizes[: sizes.index(size) + 1 if split_batch else 1]
    ]


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
