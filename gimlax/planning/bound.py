"""A value that no plan can beat, from an argument that never looks at a plan.

If segments could be dealt to meshes one by one, in any order and even in fractions, without
transfers, no layout would be better than that. For latency each segment goes where it is fastest
as far as memory allows; for throughput work is spread until the busiest mesh or shared host is as
idle as possible. Both are linear programmes, and only their prices are used: with prices y of a
second on each resource (summing to 1) and z of a byte in each memory, any layout's value is at
least

    sum over segments of the least over meshes of (y . loads + z * bytes)  -  sum of z * capacity,

whatever y >= 0 and z >= 0 are (weak duality), so a rounding error of the solver costs tightness
only. What is true of every layout is added: it has a stage, and as many hops between meshes as
memory demands.
"""

import numpy as np
from scipy import optimize, sparse

from gimlax.planning.cost import Costs
from gimlax.planning.problem import Array


def lower_bound_s(costs: Costs, goal: str) -> float:
    """Seconds per request that no layout on this cluster can go below.

    Args:
        costs: of all segments on all meshes.
        goal: 'latency' or 'throughput'.
    """
    problem = costs.problem
    loads = _loads(costs, goal)  # [resource, mesh, segment]
    dispatch = _dispatch_s(costs, goal)
    bytes_ = _needed_bytes(costs)
    pools, pool_of = np.unique(problem.pool, return_inverse=True)
    capacity = np.array([problem.capacity_bytes[problem.pool == p].max() for p in pools])
    scale = max(float(bytes_.sum()), 1.0)
    y, z = _prices(loads, bytes_ / scale, pool_of, capacity / scale, goal)
    charged = np.tensordot(y, loads, 1) + z[pool_of][:, None] * (bytes_ / scale)  # [mesh, segment]
    bound_s = charged.min(axis=0).sum() - float(z @ capacity) / scale + float((y @ dispatch).min())
    if goal == "latency":
        return float(bound_s + _needed_hops_s(costs, bytes_))
    return float(max(bound_s, loads[: problem.num_meshes].max(axis=0).min(axis=0).max()))


def _loads(costs: Costs, goal: str) -> Array:
    """Seconds for which a segment on a mesh occupies each resource. [resource, mesh, segment]"""
    segment_s = costs.segment_s
    if goal == "latency":
        return segment_s[None]
    num_meshes, n = segment_s.shape
    own = np.zeros((num_meshes, num_meshes, n))
    own[np.arange(num_meshes), np.arange(num_meshes)] = segment_s
    return np.concatenate([own, costs.shared_segment_s])


def _dispatch_s(costs: Costs, goal: str) -> Array:
    """Seconds for which a dispatch on a mesh occupies each resource. [resource, mesh]"""
    num_meshes = costs.problem.num_meshes
    if goal == "latency":
        return costs.dispatch_s[None]
    return np.concatenate([np.eye(num_meshes) * costs.dispatch_s, costs.shared_dispatch_s])


def _needed_bytes(costs: Costs) -> Array:
    """Bytes that a mesh needs for each segment that it holds, each piece once. [segment]

    What several segments use is needed wherever the first of them is, so it is told there.
    """
    result = np.zeros(costs.problem.num_segments)
    for piece in costs.pieces:
        result[piece.users[0]] += piece.num_bytes
    return result


def _prices(
    loads: Array, bytes_: Array, pool_of: np.ndarray, capacity: Array, goal: str
) -> tuple[Array, Array]:
    """Prices (y of resources, z of memories) that make the bound large: duals of the programme."""
    num_resources, num_meshes, n = loads.shape
    y = np.ones(num_resources) / num_resources
    z = np.zeros(capacity.size)
    if goal == "latency" and bytes_.sum() <= capacity.min():
        return y, z
    # Variables: share of segment s on mesh m at m * n + s, then (throughput) the largest load.
    columns = np.arange(num_meshes * n)
    whole = sparse.coo_array((np.ones(columns.size), (columns % n, columns)))
    held = sparse.coo_array(
        (np.tile(bytes_, num_meshes), (pool_of[columns // n], columns)),
        shape=(capacity.size, columns.size),
    )
    unit = max(float(loads.max()), 1e-30)
    if goal == "latency":
        objective = loads[0].ravel() / unit
        upper, limits = held, capacity
    else:
        objective = np.append(np.zeros(columns.size), 1.0)
        busy = sparse.coo_array(loads.reshape(num_resources, -1) / unit)
        largest = sparse.coo_array(-np.ones((num_resources, 1)))
        upper = sparse.block_array([[busy, largest], [held, None]])
        limits = np.append(np.zeros(num_resources), capacity)
        whole = sparse.block_array([[whole, sparse.coo_array((n, 1))]])
    solved = optimize.linprog(
        objective, A_ub=upper.tocsr(), b_ub=limits, A_eq=whole.tocsr(), b_eq=np.ones(n)
    )
    if solved.status != 0:
        return y, z
    duals = np.maximum(-solved.ineqlin.marginals, 0.0)
    if goal == "latency":
        return y, duals * unit
    y, z = duals[:num_resources], duals[num_resources:] * unit
    total = y.sum()
    return (y / total, z / total) if total > 0 else (np.ones_like(y) / y.size, np.zeros_like(z))


def _needed_hops_s(costs: Costs, bytes_: Array) -> float:
    """Seconds of the hops and dispatches that any layout needs because no fewer meshes hold it."""
    problem = costs.problem
    held = np.cumsum(np.sort(problem.capacity_bytes)[::-1])
    num_meshes = 1 + int((held < bytes_.sum()).sum())
    between = ~np.eye(problem.num_meshes, dtype=bool)
    hops = problem.transfer_s[between][:, 1:-1]
    if num_meshes == 1 or not hops.size:
        return 0.0
    least_s = float(hops.min())
    return (num_meshes - 1) * (costs.dispatch_s.min() + (least_s if np.isfinite(least_s) else 0.0))
