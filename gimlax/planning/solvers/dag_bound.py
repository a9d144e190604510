"""What no split of a graph can beat, from arguments that never look at a split.

1. If colours could be dealt out in fractions, without transfers, all accelerators together and all
   CPUs together would still have only so much time, and accelerators only so much memory. With a
   price y of a second on accelerators, u on CPUs (k y + l u = 1 for k and l of them) and z of a
   byte, the largest load of any split is at least

       sum over colours of the least of (y . seconds + z * bytes, u . seconds)  -  z * all memory,

   whatever the prices are (weak duality). Without memory the best prices are among the ratios of
   the two times of a colour; with it, they are the duals of a linear programme.
2. A colour is on some device, which takes its time at least.
3. Of one colour more than there are devices, two share one.
"""

import numpy as np
from scipy import optimize

from gimlax.planning.solvers.dag import Array, DagProblem


def lower_bound_s(problem: DagProblem) -> float:
    """Seconds per sample for which some device of any split is busy; inf if there is no split."""
    if not problem.num_nodes:
        return 0.0
    _, group = np.unique(problem.colour, return_inverse=True)
    accelerator_s = np.bincount(group, problem.accelerator_s).astype(float)
    cpu_s = np.bincount(group, problem.cpu_s).astype(float)
    num_bytes = np.bincount(group, problem.num_bytes).astype(float)
    fits = num_bytes <= problem.capacity_bytes * (1 + 1e-12)
    fits &= np.bincount(group, ~problem.supported) == 0
    on_accelerator = np.where(fits & (problem.num_accelerators > 0), accelerator_s, np.inf)
    on_cpu = cpu_s if problem.num_cpus else np.full(len(cpu_s), np.inf)
    alone = np.minimum(on_accelerator, on_cpu)
    if not np.isfinite(alone).all():
        return np.inf
    pooled = _pooled(problem, on_accelerator, on_cpu, num_bytes)
    return max(pooled, float(alone.max()), _crowded(alone, problem))


def _crowded(alone: Array, problem: DagProblem) -> float:
    """Of one colour more than there are devices, two share one: at least the two smallest."""
    num_devices = problem.num_accelerators + problem.num_cpus
    if len(alone) <= num_devices:
        return 0.0
    largest = np.sort(alone)[::-1]
    return float(largest[num_devices] + largest[num_devices - 1])


def _pooled(problem: DagProblem, on_accelerator: Array, on_cpu: Array, num_bytes: Array) -> float:
    k, cpus = problem.num_accelerators, problem.num_cpus
    unit = max(float(num_bytes.sum()), 1.0)
    size, room = num_bytes / unit, min(problem.capacity_bytes * k / unit, 2.0)
    if size[np.isinf(on_cpu)].sum() > room + 1e-9:
        return np.inf
    prices = _ratios(k, cpus, on_accelerator, on_cpu)
    if size.sum() > room:
        prices = np.append(prices, _duals(k, cpus, on_accelerator, on_cpu, size, room), axis=0)
    y, u, z = prices.T[:, :, None]
    with np.errstate(invalid="ignore"):  # a price of 0 for what cannot be had at any
        there = np.where(np.isinf(on_accelerator), np.inf, y * on_accelerator + z * size)
        here = np.where(np.isinf(on_cpu), np.inf, u * on_cpu)
    return float((np.minimum(there, here).sum(axis=1) - z[:, 0] * room).max())


def _ratios(k: int, cpus: int, on_accelerator: Array, on_cpu: Array) -> Array:
    """Prices (y, u, 0) at which some colour costs the same on both, and the two extremes. [i, 3]"""
    both = np.isfinite(on_accelerator) & np.isfinite(on_cpu)
    y, u = np.append(on_cpu[both], 1.0), np.append(on_accelerator[both], 0.0)
    y, u = np.append(y, 0.0), np.append(u, 1.0)
    spent = y * k + u * cpus
    y, u = y[spent > 0] / spent[spent > 0], u[spent > 0] / spent[spent > 0]
    return np.stack([y, u, np.zeros(len(y))], axis=1)


def _duals(
    k: int, cpus: int, on_accelerator: Array, on_cpu: Array, size: Array, room: float
) -> Array:
    """Prices (y, u, z) of the linear programme with memory; none where it was not solved. [i, 3]"""
    # Variables: share of each colour on accelerators, share on CPUs, the largest load.
    n = len(size)
    can_a, can_c = np.isfinite(on_accelerator), np.isfinite(on_cpu)
    rows = np.zeros((3, 2 * n + 1))
    rows[0, :n], rows[0, -1] = np.where(can_a, on_accelerator, 0.0), -k
    rows[1, n:-1], rows[1, -1] = np.where(can_c, on_cpu, 0.0), -cpus
    rows[2, :n] = size
    whole = np.concatenate([np.eye(n), np.eye(n), np.zeros((n, 1))], axis=1)
    solved = optimize.linprog(
        np.append(np.zeros(2 * n), 1.0),
        A_ub=rows,
        b_ub=[0.0, 0.0, room],
        A_eq=whole,
        b_eq=np.ones(n),
        bounds=[(0, float(c)) for c in can_a] + [(0, float(c)) for c in can_c] + [(0, None)],
    )
    if solved.status != 0:
        return np.zeros((0, 3))
    prices = np.maximum(-solved.ineqlin.marginals, 0.0)
    spent = prices[0] * k + prices[1] * cpus
    return prices[None] / spent if spent > 0 else np.zeros((0, 3))
