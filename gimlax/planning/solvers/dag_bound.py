"""What no split of a graph can beat, from arguments that never look at a split.

1. Colours may be dealt out in fractions, without transfers: all accelerators together and all CPUs
   together have only so much time, and accelerators only so much memory. The prices of a linear
   programme over the two pools give a bound by weak duality, whatever the solver's rounding.
2. A colour is on some device. On an accelerator, that device has at least the time of what it holds
   and the transfers that it cuts; the least over all sets of nodes that hold the colour is a minimal
   cut of a small network.
3. Of one colour more than there are devices, two are on the same one.
"""

import numpy as np
from scipy import optimize

from gimlax.planning.solvers.dag import Array, DagProblem


def lower_bound_s(problem: DagProblem) -> float:
    """Seconds per sample that the busiest device of any split has at least; inf if none can be."""
    if not problem.num_nodes:
        return 0.0
    _, group = np.unique(problem.colour, return_inverse=True)
    accelerator_s = np.bincount(group, problem.accelerator_s)
    cpu_s = np.bincount(group, problem.cpu_s)
    num_bytes = np.bincount(group, problem.num_bytes)
    fits = num_bytes <= problem.capacity_bytes * (1 + 1e-12)
    fits &= np.bincount(group, ~problem.supported) == 0
    on_accelerator = np.where(fits & (problem.num_accelerators > 0), accelerator_s, np.inf)
    on_cpu = cpu_s if problem.num_cpus else np.full_like(cpu_s, np.inf)
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
    """The bound by prices: y, 1 - y of a second in either pool and z of a byte."""
    k, cpus = problem.num_accelerators, problem.num_cpus
    scale = max(float(num_bytes.sum()), 1.0)
    size, room = num_bytes / scale, min(problem.capacity_bytes * k / scale, 2.0)
    either = np.isfinite(on_accelerator) & np.isfinite(on_cpu)
    only_accelerator = np.isfinite(on_accelerator) & ~either
    fixed_s = float(on_accelerator[only_accelerator].sum())
    fixed_cpu_s = float(on_cpu[~either & ~only_accelerator].sum())
    room -= float(size[only_accelerator].sum())
    if room < -1e-9:
        return np.inf
    a, c, b = on_accelerator[either], on_cpu[either], size[either]
    # Variables: share of each colour on accelerators, then the largest load.
    rows = np.zeros((3, len(a) + 1))
    rows[0, :-1], rows[0, -1] = a, -k
    rows[1, :-1], rows[1, -1] = -c, -cpus
    rows[2, :-1] = b
    limits = np.array([-fixed_s, -fixed_cpu_s - c.sum(), max(room, 0.0)])
    solved = optimize.linprog(
        np.append(np.zeros(len(a)), 1.0),
        A_ub=rows,
        b_ub=limits,
        bounds=[(0, 1)] * len(a) + [(0, None)],
    )
    if solved.status != 0:
        return fixed_s / max(k, 1)
    y, u, z = np.maximum(-solved.ineqlin.marginals, 0.0)
    total = y * k + u * cpus
    if total <= 0:
        return 0.0
    y, u, z = y / total, u / total, z / total
    shares = np.minimum(y * a + z * b, u * c).sum()
    return float(shares + y * fixed_s + u * fixed_cpu_s - z * max(room, 0.0))
