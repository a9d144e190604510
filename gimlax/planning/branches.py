"""A model whose segments branch, as a graph to be split over equal meshes.

The planner proper sees a chain of segments in the order of the program, in which two towers that
stand side by side come one after the other. Here segments keep their data flow: a segment leads to
those that read what it writes. Times and memory are those of `Costs`, a value that crosses takes
the link's latency and its bytes, and segments that share carried state stay together. Parameters
that several segments use count with each of them, which is more than they need together.
"""

import numpy as np

from gimlax import _jax
from gimlax.devices import Cluster
from gimlax.errors import PlanError
from gimlax.graph import Chain, Phase
from gimlax.planning.cost import Costs
from gimlax.planning.solvers.dag import DagProblem


def branch_problem(chain: Chain, costs: Costs, cluster: Cluster) -> DagProblem:
    """Segments as nodes, meshes as accelerators; seconds are per request.

    Raises:
        PlanError: the meshes are not equal, not all joined, or the model has several phases.
    """
    if len(chain.phases) != 1:
        raise PlanError(f"a workload of {len(chain.phases)} phases; split graphs of one phase")
    phase, n = chain.phases[0], chain.num_segments
    segment_s = costs.segment_s  # [mesh, segment]
    if not np.allclose(segment_s, segment_s[0], rtol=1e-9):
        names = [mesh.name for mesh in cluster.meshes]
        raise PlanError(f"meshes {names} differ in speed; split a graph over equal meshes")
    source, readers = _flow(phase, n)
    num_bytes = np.zeros(n)
    for piece in costs.pieces:
        num_bytes[list(piece.users)] += piece.num_bytes
    edges = sorted({(source[value], reader) for value, who in readers.items() for reader in who})
    sent = np.zeros(n)
    for value in readers:
        sent[source[value]] += _jax.nbytes(phase.graph.avals[value])
    return DagProblem(
        accelerator_s=segment_s[0] + 0.0,
        cpu_s=np.zeros(n),
        output_s=np.where(sent > 0, float(costs.calls[0]) * _seconds(cluster, sent), 0.0),
        num_bytes=num_bytes + costs.temp_bytes.max(axis=0),
        supported=np.ones(n, bool),
        backward=np.zeros(n, bool),
        colour=_tied(phase, n),
        edges=np.array(edges, int).reshape(-1, 2),
        num_accelerators=len(cluster.meshes),
        num_cpus=0,
        capacity_bytes=float(costs.problem.capacity_bytes.min()),
    )


def _flow(phase: Phase, n: int) -> tuple[dict[int, int], dict[int, set[int]]]:
    """The segment that writes each value which crosses, and the segments that read it."""
    home = {node: s.index for s in phase.segments for node in range(s.start, s.stop)}
    source: dict[int, int] = {}
    readers: dict[int, set[int]] = {}
    for node in range(len(phase.graph.nodes)):
        if phase.graph.nodes[node].shadow:
            continue
        for value in phase.graph.needs(node):
            writer = home[phase.graph.producer[value]]
            if writer != home[node]:
                source[value] = writer
                readers.setdefault(value, set()).add(home[node])
    return source, readers


def _tied(phase: Phase, n: int) -> np.ndarray:
    """One colour for segments that use the same carried state. [segment]"""
    home = {node: s.index for s in phase.segments for node in range(s.start, s.stop)}
    colour = np.arange(n)
    for nodes in phase.graph.ties().values():
        members = [home[node] for node in nodes]
        for member in members[1:]:
            colour[colour == colour[member]] = colour[members[0]]
    return colour


def _seconds(cluster: Cluster, num_bytes: np.ndarray) -> np.ndarray:
    """Of the slowest link between two of the meshes."""
    names = [mesh.name for mesh in cluster.meshes]
    slowest = np.zeros_like(num_bytes)
    for a in names:
        for b in names:
            if a == b:
                continue
            link = cluster.link(a, b)
            if link is None:
                raise PlanError(f"no link leads from '{a}' to '{b}'; declare one")
            seconds = link.latency_s + num_bytes / link.bandwidth_bytes_per_s
            slowest = np.maximum(slowest, seconds)
    return slowest
