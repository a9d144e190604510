"""In which orders the segments of a model that branches are worth cutting.

A plan cuts a row of segments, and the program's row is one of several: what stands side by side can
come in any order, and a cut that takes a bit of each tower is one only in a row that advances both.
Where there are few rows all are tried. Else a few are: those in which good splits of the graph are
runs, found over down-sets for some numbers of meshes, with and without regard to time and memory.
In them meshes are of two kinds, the quickest and the others, and their links the slowest.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from gimlax import _jax
from gimlax.devices import Cluster
from gimlax.errors import PlanError
from gimlax.graph import Chain, arrows, units
from gimlax.planning.cost import Costs
from gimlax.planning.problem import Array
from gimlax.planning.solvers.dag import DagProblem
from gimlax.planning.solvers.downsets import solve_downsets

MOST = 24  # rows that are all tried
MOST_MESHES = 4  # for which splits of the graph are looked for
TIME_LIMIT_S = 1.0  # for each of them
Order = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Orders of segments beside that of the program, and whether there are no more."""

    others: tuple[Order, ...]
    are_all: bool


def rows(chain: Chain, costs: Costs, cluster: Cluster) -> Rows:
    """Orders of the segments that are worth a search.

    Args:
        chain: in the order of the program, or in one that was chosen: then that is the only one.
        costs: of its segments.
        cluster: where it runs.
    """
    together, before = _units(chain)
    if chain.order or all(k in before[k + 1] for k in range(len(together) - 1)):
        return Rows(others=(), are_all=True)
    every = list(itertools.islice(_every(before), MOST + 1))
    if len(every) <= MOST:
        found = [tuple(s for unit in row for s in together[unit]) for row in every]
    else:
        found = list(_along_splits(split_problem(chain, costs, cluster)))
    others = dict.fromkeys(found)
    others.pop(tuple(range(chain.num_segments)), None)
    return Rows(others=tuple(others), are_all=len(every) <= MOST)


def split_problem(chain: Chain, costs: Costs, cluster: Cluster) -> DagProblem:
    """Segments as nodes, the quickest meshes as accelerators, the others as CPUs; per request.

    Parameters that several segments use count with each of them.
    """
    n, seconds = chain.num_segments, costs.segment_s  # [mesh, segment]
    total_s = seconds.sum(axis=1)
    quick = total_s <= total_s.min() * (1 + 1e-9)
    num_bytes = np.zeros(n)
    for piece in costs.pieces:
        num_bytes[list(piece.users)] += piece.num_bytes
    return DagProblem(
        accelerator_s=seconds[quick].mean(axis=0),
        cpu_s=seconds[~quick].mean(axis=0) if not quick.all() else np.zeros(n),
        output_s=_output_s(chain, costs, cluster),
        num_bytes=num_bytes + costs.temp_bytes.max(axis=0),
        supported=np.ones(n, bool),
        backward=np.zeros(n, bool),
        colour=_together(chain),
        edges=np.array(sorted(arrows(chain)), int).reshape(-1, 2),
        num_accelerators=int(quick.sum()),
        num_cpus=int((~quick).sum()),
        capacity_bytes=float(costs.problem.capacity_bytes[quick].min()),
    )


def _units(chain: Chain) -> tuple[tuple[Order, ...], list[set[int]]]:
    """What stays together, and the units that come directly before each."""
    together = units(chain)
    unit_of = {segment: unit for unit, of in enumerate(together) for segment in of}
    before: list[set[int]] = [set() for _ in together]
    for first, second in arrows(chain):
        if unit_of[first] != unit_of[second]:
            before[unit_of[second]].add(unit_of[first])
    return together, before


def _every(before: list[set[int]], done: Order = ()) -> Iterator[Order]:
    """All orders in which each comes after what is before it, the given one first."""
    if len(done) == len(before):
        yield done
    for index, needed in enumerate(before):
        if index not in done and needed.issubset(done):
            yield from _every(before, (*done, index))


def _along_splits(graph: DagProblem) -> Iterator[Order]:
    """Orders in which the meshes of a good split hold runs of segments."""
    n = graph.num_nodes
    no_memory = {"num_bytes": np.zeros(n)}
    no_time = {"accelerator_s": np.zeros(n), "cpu_s": np.zeros(n)}
    most = min(graph.num_accelerators, MOST_MESHES)
    counts = [(k, 0) for k in range(2, most + 1)]
    if graph.num_cpus:
        counts.append((most, min(graph.num_cpus, MOST_MESHES)))
    for changes in (no_memory, {}, no_time):
        for accelerators, cpus in counts:
            asked = replace(graph, num_accelerators=accelerators, num_cpus=cpus, **changes)
            try:
                split = solve_downsets(asked, time_limit_s=TIME_LIMIT_S).assignment
            except PlanError:  # no split fits so many meshes
                continue
            yield _sorted_by(split, graph)


def _sorted_by(split: tuple[int, ...], graph: DagProblem) -> Order:
    """The segments device by device, each in the program's order."""
    before: dict[int, set[int]] = {device: set() for device in split}
    for first, second in graph.edges.tolist():
        if split[first] != split[second]:
            before[split[second]].add(split[first])
    rank: dict[int, int] = {}
    while len(rank) < len(before):
        ready = [d for d in before if d not in rank and before[d].issubset(rank)]
        rank[min(ready, key=split.index)] = len(rank)
    return tuple(sorted(range(len(split)), key=lambda segment: (rank[split[segment]], segment)))


def _together(chain: Chain) -> np.ndarray:
    """One colour for segments that stay together or use the same carried state. [segment]"""
    colour = np.arange(chain.num_segments)
    groups = [list(unit) for unit in units(chain)]
    for phase in chain.phases:
        home = {node: s.index for s in phase.segments for node in range(s.start, s.stop)}
        groups += [[home[node] for node in nodes] for nodes in phase.graph.ties().values()]
    for members in groups:
        for member in members[1:]:
            colour[colour == colour[member]] = colour[members[0]]
    return colour


def _output_s(chain: Chain, costs: Costs, cluster: Cluster) -> Array:
    """Seconds per request to hand on what later segments read, over the slowest link. [segment]"""
    links = [link for link in cluster.links if link.bandwidth_bytes_per_s > 0]
    total = np.zeros(chain.num_segments)
    for phase, calls in zip(chain.phases, costs.calls, strict=True):
        home = {node: s.index for s in phase.segments for node in range(s.start, s.stop)}
        sent: dict[int, int] = {}
        for node in home:
            if not phase.graph.nodes[node].shadow:
                for value in phase.graph.needs(node):
                    writer = home[phase.graph.producer[value]]
                    if writer != home[node]:
                        sent[value] = writer
        num_bytes = np.zeros(chain.num_segments)
        for value, writer in sent.items():
            num_bytes[writer] += _jax.nbytes(phase.graph.avals[value])
        slowest = np.zeros(chain.num_segments)
        for link in links:
            seconds = link.latency_s + num_bytes / link.bandwidth_bytes_per_s
            slowest = np.maximum(slowest, np.where(num_bytes > 0, seconds, 0.0))
        total += calls * slowest
    return total
