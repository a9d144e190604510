"""A value that no plan can beat, from an argument that never looks at a plan.

It is the better of two. The first: if segments could be dealt to meshes one by one, in any order
and even in fractions, without transfers, no layout would be better than that. Each second on a mesh
then adds to the latency, to the dollars and to the joules (a mesh is held for no less than it is
busy), and work is spread until the busiest mesh or shared host is as idle as is worth while. That
is a linear programme, and only its prices are used: with prices y of a second on each resource
(summing to the weight of the period), z of a byte in each memory and u of what is limited, any
layout's value is at least

    sum over segments of the least over meshes of (weights . terms + y . loads + z * bytes +
    u . limited terms)  -  z . capacities  -  u . limits,

whatever y, z, u >= 0 are (weak duality), so a rounding error of the solver costs tightness only.
What is true of every layout is added: as many stages, and hops between meshes, as memory demands.
The second keeps the segments in order and charges each hop by its link (`bound_in_order.py`).
"""

import math
from dataclasses import dataclass, replace

import numpy as np
from scipy import optimize, sparse

from gimlax.planning.bound_in_order import in_order
from gimlax.planning.cost import Costs
from gimlax.planning.objective import Objective
from gimlax.planning.problem import Array, Problem


def lower_bound(costs: Costs, objective: Objective, *, in_any_order: bool = False) -> float:
    """A value, in the unit of the objective, that no layout on this cluster can go below.

    Args:
        costs: of all segments on all meshes.
        objective: what is minimised; its limits raise the bound where they bind.
        in_any_order: whether it is to hold for segments in another order too, in which other
            values cross, perhaps none.
    """
    if in_any_order:
        nothing = np.zeros_like(costs.problem.transfer_s)
        costs = replace(costs, problem=replace(costs.problem, transfer_s=nothing))
    relaxed = Relaxation.of(costs, objective)
    prices = _prices(relaxed)
    dealt = relaxed.value(*prices)
    return dealt if in_any_order else max(dealt, in_order(relaxed, costs.problem, *prices))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Relaxation:
    """The relaxed problem, per segment and per dispatch.

    Attributes:
        weight: of the period in the objective; longest_s: its limit.
        added: what a segment on a mesh adds to the objective. [mesh, segment]
        loads: seconds for which it occupies each resource. [resource, mesh, segment]
        bytes_: that a mesh needs for a segment. [mesh, segment]
        capacity, pool_of: of each memory, and the memory of each mesh. [pool], [mesh]
        limited: what it adds to each limited term, in shares of the limit. [limit, mesh, segment]
        on_dispatch: `added`, `loads` and `limited` of one dispatch. [mesh], [., mesh] twice
        on_hop: what a second of a hop adds to the objective, and to each limited term in shares of
            its limit. [], [limit]
        num_stages, hop_s: that memory demands, and the seconds of the cheapest hop.
        host_bytes: in which a mesh may park. [mesh]
        parking: `added`, `loads` and `limited` of a parked byte. [mesh], [., mesh] twice
    """

    weight: float
    longest_s: float
    added: Array
    loads: Array
    bytes_: Array
    capacity: Array
    pool_of: np.ndarray
    limited: Array
    on_dispatch: tuple[Array, Array, Array]
    on_hop: tuple[float, Array]
    num_stages: int
    hop_s: float
    host_bytes: Array
    parking: tuple[Array, Array, Array]

    @classmethod
    def of(cls, costs: Costs, objective: Objective) -> "Relaxation":
        problem = costs.problem
        weights, limits = objective.term_weights, objective.term_limits
        finite = [term for term in (0, 2, 3) if math.isfinite(limits[term])]
        limiting = [[(k == term) / limits[term] for k in range(len(limits))] for term in finite]
        seconds, dispatch_s = costs.segment_s, costs.dispatch_s
        num_meshes, n = seconds.shape
        own = np.zeros((num_meshes, num_meshes, n))
        own[np.arange(num_meshes), np.arange(num_meshes)] = seconds
        bytes_ = _needed_bytes(costs)
        pools, pool_of = np.unique(problem.pool, return_inverse=True)
        num_stages, hop_s = _needed_hops(problem, bytes_, costs.host_bytes)
        rates = [_per_second(problem, row) for row in (weights, *limiting)]
        return cls(
            weight=weights[1],
            longest_s=limits[1],
            added=rates[0][:, None] * seconds,
            loads=np.concatenate([own, costs.shared_segment_s]),
            bytes_=bytes_,
            capacity=np.array([problem.capacity_bytes[problem.pool == p].max() for p in pools]),
            pool_of=pool_of,
            limited=np.array([rate[:, None] * seconds for rate in rates[1:]]).reshape(
                -1, num_meshes, n
            ),
            on_dispatch=(
                rates[0] * dispatch_s,
                np.concatenate([np.eye(num_meshes) * dispatch_s, costs.shared_dispatch_s]),
                np.array([rate * dispatch_s for rate in rates[1:]]).reshape(-1, num_meshes),
            ),
            on_hop=(weights[0], np.array([row[0] for row in limiting])),
            num_stages=num_stages,
            hop_s=hop_s,
            host_bytes=costs.host_bytes,
            parking=(
                rates[0] * costs.host_s_per_byte,
                np.concatenate(
                    [
                        np.eye(num_meshes) * costs.host_s_per_byte,
                        np.zeros((len(costs.shared_segment_s), num_meshes)),
                    ]
                ),
                np.array([rate * costs.host_s_per_byte for rate in rates[1:]]).reshape(
                    -1, num_meshes
                ),
            ),
        )

    def value(self, y: Array, z: Array, u: Array) -> float:
        """The bound at prices y of resources, z of memories, u of limits."""
        over = float(y.sum()) - self.weight  # paid for by the limit of the period
        if over > 0 and math.isinf(self.longest_s):
            y = y * (self.weight / y.sum())
        held = z[self.pool_of][:, None] * self.bytes_
        charged = self.added + np.tensordot(y, self.loads, 1) + np.tensordot(u, self.limited, 1)
        added, loads, limited = self.on_dispatch
        dispatch = float((added + y @ loads + u @ limited).min())
        bound = (charged + held).min(axis=0).sum() + self.num_stages * dispatch
        each, limited = self.on_hop
        bound += (self.num_stages - 1) * self.hop_s * (each + float(u @ limited))
        bound -= float(z @ self.capacity) + float(u.sum())
        # What costs less than a byte is worth is parked, as much of it as the host has room for.
        added, loads, limited = self.parking
        parked = added + y @ loads + u @ limited - z[self.pool_of]  # [mesh]
        bound += float(self.host_bytes @ np.minimum(parked, 0.0))
        if over > 0 and math.isfinite(self.longest_s):
            bound -= over * self.longest_s
        # Where nothing can be spread: the period is at least that of the longest segment.
        longest_s = self.loads[: len(self.added)].max(axis=0).min(axis=0).max()
        least = self.added.min(axis=0).sum() + self.num_stages * float(added.min())
        return max(float(bound), float(least + self.weight * longest_s), 0.0)


def _per_second(problem: Problem, weights: tuple[float, ...] | list[float]) -> Array:
    """What a busy second of each mesh adds to a weighted sum of terms, at least. [mesh]"""
    rate = np.full(problem.num_meshes, weights[0])
    if weights[2]:
        rate = rate + weights[2] * problem.usd_per_s
    if weights[3]:
        rate = rate + weights[3] * problem.busy_watts
    return rate


def _needed_bytes(costs: Costs) -> Array:
    """Bytes that a mesh needs for each segment that it holds, each piece once. [mesh, segment]

    What several segments use is needed wherever the first of them is, so it is told there.
    """
    result = np.zeros((costs.problem.num_meshes, costs.problem.num_segments))
    for piece, each in zip(costs.pieces, costs.piece_bytes.T, strict=True):
        result[:, piece.users[0]] += each
    return result


def _needed_hops(problem: Problem, bytes_: Array, host_bytes: Array) -> tuple[int, float]:
    """How many stages memory demands at least, and the seconds of the cheapest hop.

    Bytes are counted as on the mesh that needs fewest for a segment. A mesh that needs more for all
    of them has room for fewer such bytes.
    """
    fewest = bytes_.min(axis=0)
    most = np.divide(fewest, bytes_, out=np.zeros_like(bytes_), where=bytes_ > 0).max(axis=1)
    held = np.cumsum(np.sort((problem.capacity_bytes + host_bytes) * most)[::-1])
    num_meshes = 1 + int((held < fewest.sum()).sum())
    between = ~np.eye(problem.num_meshes, dtype=bool)
    hops = problem.transfer_s[between][:, 1:-1]
    least_s = float(hops.min()) if hops.size else 0.0
    return num_meshes, least_s if math.isfinite(least_s) else 0.0


def _prices(relaxed: Relaxation) -> tuple[Array, Array, Array]:
    """Prices (of resources, memories, limits) that make the bound large: duals of the programme."""
    num_resources, num_meshes, n = relaxed.loads.shape
    num_limits = len(relaxed.limited)
    y = np.full(num_resources, relaxed.weight / num_resources)
    z, u = np.zeros(relaxed.capacity.size), np.zeros(num_limits)
    fits = relaxed.bytes_.max(axis=0).sum() <= relaxed.capacity.min()
    if fits and not relaxed.weight and not num_limits and math.isinf(relaxed.longest_s):
        return y, z, u
    # Variables: share of segment s on mesh m at m * n + s, parked bytes of each mesh, the period;
    # in units near 1.
    num_shares = num_meshes * n
    columns = np.arange(num_shares)
    unit_s = max(float(relaxed.loads.max()), 1e-30)
    unit = max(float(relaxed.added.max()), relaxed.weight * unit_s, 1e-30)
    unit_bytes = max(float(relaxed.bytes_.sum(axis=1).max()), 1.0)
    added, loads, limited = relaxed.parking

    def row(shares: Array, parked: Array, period: float) -> sparse.csr_array:
        whole = np.full((shares.shape[0], 1), period)
        return sparse.csr_array(np.hstack([shares, parked, whole]))

    pools = relaxed.pool_of == np.arange(z.size)[:, None]  # [pool, mesh]
    held = pools[:, :, None] * relaxed.bytes_ / unit_bytes
    rows = [
        row(relaxed.loads.reshape(num_resources, -1) / unit_s, loads * unit_bytes / unit_s, -1.0),
        row(held.reshape(z.size, -1), -1.0 * pools, 0.0),
        row(relaxed.limited.reshape(num_limits, num_shares), limited * unit_bytes, 0.0),
    ]
    dealt = sparse.coo_array((np.ones(num_shares), (columns % n, columns)), (n, num_shares))
    most = None if math.isinf(relaxed.longest_s) else relaxed.longest_s / unit_s
    solved = optimize.linprog(
        np.concatenate([relaxed.added.ravel(), added * unit_bytes, [relaxed.weight * unit_s]])
        / unit,
        A_ub=sparse.vstack(rows).tocsr(),
        b_ub=np.concatenate(
            [np.zeros(num_resources), relaxed.capacity / unit_bytes, np.ones(num_limits)]
        ),
        A_eq=sparse.hstack([dealt, sparse.csr_array((n, num_meshes + 1))]).tocsr(),
        b_eq=np.ones(n),
        bounds=[(0.0, None)] * num_shares
        + [(0.0, room / unit_bytes) for room in relaxed.host_bytes]
        + [(0.0, most)],
    )
    if solved.status != 0:
        return y, z, u
    duals = np.maximum(-solved.ineqlin.marginals, 0.0) * unit
    y, z, u = np.split(duals, [num_resources, num_resources + z.size])
    return y / unit_s, z / unit_bytes, u
