"""Memory tiers: what must fit on the chip, and what may be parked in the memory of the host.

A stage that is too large for its device keeps the excess in host memory, weights before state, and
streams it over the host link at each call: state there and back, weights one way. What is streamed
needs room on the device too, as much as the largest segment of the stage holds. The excess of a run
of segments is known beforehand, so the search sees only dearer stages, and chooses parking where
that is better than another mesh. Nothing of it is hidden behind computing: the price is an upper
one. That what is held on the chip is read faster is in the rates (`rates/choosing.py`). Units:
bytes, seconds per request.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from gimlax.devices import Cluster
from gimlax.errors import PlanError
from gimlax.graph import Role
from gimlax.planning.cost import Costs
from gimlax.planning.limits import repeated
from gimlax.planning.pieces import added_bytes
from gimlax.planning.problem import Array
from gimlax.planning.request import Request

ON_CHIP = "on_chip"


def on_tiers(
    figures: Costs, cluster: Cluster, request: Request, lowest: Mapping[str, str]
) -> Costs:
    """The figures with the memory that each mesh may use.

    Args:
        figures: of stages in the memory of their device, or on the chip where they have to fit.
        cluster: says how much of each tier there is.
        request: a mesh that it names more than once parks nothing.
        lowest: by mesh, the lowest tier that its stages may use. By default the host's, where the
            cluster sets some of it aside for the mesh.

    Raises:
        PlanError: a mesh, or a tier of it, that is not there.
    """
    _check(cluster, lowest)
    problem = figures.problem
    num_meshes = problem.num_meshes
    capacity = problem.capacity_bytes.copy()
    stage_s, parked_bytes = problem.stage_s.copy(), problem.parked_bytes.copy()
    host_bytes, host_s_per_byte = np.zeros(num_meshes), np.zeros(num_meshes)
    for index, mesh in enumerate(cluster.meshes):
        tiers = {tier.name: tier for tier in cluster.tiers(mesh.name)}
        wanted = lowest.get(mesh.name, "host" if "host" in tiers else "device")
        alone = (problem.pool == problem.pool[index]).sum() == 1
        if wanted == ON_CHIP:
            capacity[index] = min(capacity[index], tiers[ON_CHIP].num_bytes)
        elif wanted == "host" and alone and index not in repeated(request.meshes or ()):
            host_bytes[index] = tiers["host"].num_bytes
            host_s_per_byte[index] = figures.calls.sum() / tiers["host"].bytes_per_s
            needs = problem.stage_bytes()[index]
            parked, sent = _Excess.of(figures, index).parked(
                needs, capacity[index], host_bytes[index]
            )
            parked_bytes[index] = parked
            stage_s[index] += sent * host_s_per_byte[index]
    return replace(
        figures,
        host_bytes=host_bytes,
        host_s_per_byte=host_s_per_byte,
        problem=replace(
            problem, stage_s=stage_s, parked_bytes=parked_bytes, capacity_bytes=capacity
        ),
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Excess:
    """What of each run of segments can be parked by a device of a mesh. [first, stop] each.

    Attributes:
        weights, state: bytes that add up over segments; what several share stays on the device.
        buffer: those of the largest segment.
    """

    weights: Array
    state: Array
    buffer: Array

    @classmethod
    def of(cls, figures: Costs, mesh: int) -> "_Excess":
        num_segments = figures.problem.num_segments
        by_role = []
        for role in (Role.RESIDENT, Role.CARRIED):
            of_role = [i for i, piece in enumerate(figures.pieces) if piece.role is role]
            found = [figures.pieces[i] for i in of_role]
            num_bytes = figures.piece_bytes[mesh, of_role]
            by_role.append(added_bytes(found, num_bytes[None], num_segments)[0])
        totals = [np.concatenate([[0.0], row.cumsum()]) for row in by_role]
        sums = [np.maximum(total[None, :] - total[:, None], 0.0) for total in totals]
        buffer = np.zeros((num_segments + 1, num_segments + 1))
        for first in range(num_segments):
            buffer[first, first + 1 :] = np.maximum.accumulate((by_role[0] + by_role[1])[first:])
        return cls(weights=sums[0], state=sums[1], buffer=buffer)

    def parked(self, needs: Array, capacity: float, host_bytes: float) -> tuple[Array, Array]:
        """What each stage parks, 0 where it fits or cannot, and what it sends in a call."""
        missing = needs - capacity
        parked = np.where(missing > 0, missing + self.buffer, 0.0)
        parked = np.where(parked <= np.minimum(self.weights + self.state, host_bytes), parked, 0.0)
        return parked, parked + np.maximum(parked - self.weights, 0.0)


def _check(cluster: Cluster, lowest: Mapping[str, str]) -> None:
    names = [mesh.name for mesh in cluster.meshes]
    for mesh, wanted in lowest.items():
        if mesh not in names:
            raise PlanError(
                f"tiers names mesh {mesh!r}, but the cluster has {', '.join(map(repr, names))}; "
                "use these"
            )
        had = [tier.name for tier in cluster.tiers(mesh)]
        if wanted not in had:
            raise PlanError(
                f"tiers asks for {wanted!r} on mesh {mesh!r}, which has "
                f"{', '.join(map(repr, had))}; use these, or give on_chip_bytes in its [[kind]], "
                "or host_memory_bytes in its [[mesh]] and host_link_bytes_per_s in its [[kind]]"
            )
