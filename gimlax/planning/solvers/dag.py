"""A graph to be split over accelerators and CPUs, as plain arrays, and what a split of it costs.

The model is that of Tarnawski et al., "Efficient Algorithms for Device Placement of DNN Graph
Operators" (NeurIPS 2020, section 3): samples stream through a pipeline of devices, so the value of
a split is the load of its busiest device in seconds per sample. An accelerator works its nodes off
and pays the output of a node once if the node is its own and has a consumer elsewhere, and once if
it consumes it from elsewhere; a CPU pays no transfers. Devices follow one another: there is an
order of them in which no edge between forward nodes leads back. Backward nodes (of a training
graph) lie with the forward nodes of their colour, and their edges do not order devices. A colour of
backward nodes only takes the place that its backward edges, turned round, give it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gimlax.errors import SpecError

Array = NDArray[np.float64]
Assignment = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DagProblem:
    """Nodes, edges and devices; accelerators are devices 0..k-1, CPUs the devices after them.

    Attributes:
        accelerator_s, cpu_s: time of each node on a device of either kind. [node]
        output_s: time to move the output of a node on or off an accelerator. [node]
        num_bytes: memory that a node takes on an accelerator. [node]
        supported: whether an accelerator can run the node. [node]
        backward: whether it is of the backward pass. [node]
        colour: nodes of equal colour share a device. [node]
        edges: (producer, consumer). [edge, 2]
        num_accelerators, num_cpus: how many devices there are; none needs to be used.
        capacity_bytes: memory of each accelerator; that of CPUs is not limited.

    Raises:
        SpecError: figures that are negative or no numbers, edges to unknown nodes, a cycle, an edge
            from a backward to a forward node; all of them in one message.
    """

    accelerator_s: Array
    cpu_s: Array
    output_s: Array
    num_bytes: Array
    supported: NDArray[np.bool_]
    backward: NDArray[np.bool_]
    colour: NDArray[np.int64]
    edges: NDArray[np.int64]
    num_accelerators: int
    num_cpus: int
    capacity_bytes: float

    def __post_init__(self) -> None:
        wrong = list(self._wrong())
        if wrong:
            raise SpecError("graph to split: " + "; ".join(wrong))

    def _wrong(self) -> Iterator[str]:
        n = len(self.accelerator_s)
        for name in ("accelerator_s", "cpu_s", "output_s", "num_bytes"):
            figures = getattr(self, name)
            if len(figures) != n:
                yield f"{name} has {len(figures)} entries for {n} nodes; give one for each"
            elif n and not 0 <= figures.min() <= figures.max() < np.inf:
                node = int(np.flatnonzero(~((figures >= 0) & (figures < np.inf)))[0])
                yield f"{name} of node {node} is {figures[node]}; give a number of at least 0"
        for name in ("supported", "backward", "colour"):
            if len(getattr(self, name)) != n:
                yield f"{name} has {len(getattr(self, name))} entries for {n} nodes"
                return
        if min(self.num_accelerators, self.num_cpus) < 0:
            yield f"{self.num_accelerators} accelerators and {self.num_cpus} CPUs; count from 0"
        elif self.num_accelerators + self.num_cpus == 0 and n:
            yield "there is no device; give at least one"
        if not self.capacity_bytes >= 0:
            yield f"capacity_bytes is {self.capacity_bytes}; give a number of at least 0"
        if self.edges.size == 0:
            return
        if self.edges.min() < 0 or self.edges.max() >= n:
            yield f"an edge names node {int(self.edges.max())}, and nodes are 0 to {n - 1}"
            return
        back = self.backward[self.edges[:, 0]] & ~self.backward[self.edges[:, 1]]
        if back.any():
            first = self.edges[int(back.argmax())]
            yield f"backward node {first[0]} feeds forward node {first[1]}; turn or drop the edge"
        left = on_cycles(n, self.edges.tolist())
        if left:
            yield f"edges run in a cycle through nodes {sorted(left)[:6]}; drop one of them"

    @property
    def num_nodes(self) -> int:
        return len(self.accelerator_s)

    def ordering(self) -> set[tuple[int, int]]:
        """Pairs of colours of which the first may not come on a later device than the second.

        Edges between forward nodes, and turned edges between backward nodes where one has no
        forward node of its colour.
        """
        colour, backward = self.colour.tolist(), self.backward.tolist()
        if any(backward):
            placed = {c for c, late in zip(colour, backward, strict=True) if not late}
        else:
            placed = set(colour)
        pairs: set[tuple[int, int]] = set()
        for source, target in self.edges.tolist():
            first, second = colour[source], colour[target]
            if first == second:
                continue
            if not backward[target]:
                pairs.add((first, second))
            elif backward[source] and not (first in placed and second in placed):
                pairs.add((second, first))
        return pairs


def on_cycles(num_nodes: int, edges: Sequence[Sequence[int]]) -> set[int]:
    """Nodes that lie on a cycle or behind one."""
    missing = [0] * num_nodes
    after: list[list[int]] = [[] for _ in range(num_nodes)]
    for source, target in edges:
        missing[target] += 1
        after[source].append(target)
    ready = [node for node in range(num_nodes) if not missing[node]]
    left = set(range(num_nodes))
    while ready:
        node = ready.pop()
        left.discard(node)
        for other in after[node]:
            missing[other] -= 1
            if not missing[other]:
                ready.append(other)
    return left


def loads_s(problem: DagProblem, assignment: Assignment) -> Array:
    """Seconds per sample for which each device is busy. [device]"""
    device = np.asarray(assignment, int)
    k = problem.num_accelerators
    loads = np.zeros(k + problem.num_cpus)
    np.add.at(loads, device, np.where(device < k, problem.accelerator_s, problem.cpu_s))
    paid: set[tuple[int, int]] = set()
    for source, target in problem.edges.tolist():
        if device[source] != device[target]:
            paid |= {(source, int(device[source])), (source, int(device[target]))}
    for source, payer in paid:
        if payer < k:
            loads[payer] += problem.output_s[source]
    return loads


def faults(problem: DagProblem, assignment: Assignment) -> tuple[str, ...]:
    """Why a split is not allowed, one sentence each; empty if it is."""
    device = np.asarray(assignment, int)
    k, found = problem.num_accelerators, []
    if len(device) != problem.num_nodes:
        return (f"{len(device)} of {problem.num_nodes} nodes have a device",)
    if device.size and not 0 <= device.min() <= device.max() < k + problem.num_cpus:
        return (f"devices are 0 to {k + problem.num_cpus - 1}, not {device.max()}",)
    for node in np.flatnonzero((device < k) & ~problem.supported):
        found.append(f"node {node} is on accelerator {device[node]}, which cannot run it")
    held = np.bincount(device, problem.num_bytes, minlength=k)[:k]
    for over in np.flatnonzero(held > problem.capacity_bytes * (1 + 1e-12)):
        found.append(f"accelerator {over} holds {held[over]} of {problem.capacity_bytes} bytes")
    home = dict(zip(problem.colour.tolist(), device.tolist(), strict=True))
    for node in np.flatnonzero([home[c] != d for c, d in zip(problem.colour.tolist(), device)]):
        found.append(f"node {node} is apart from its colour {problem.colour[node]}")
    hops = [(home[a], home[b]) for a, b in problem.ordering() if home[a] != home[b]]
    if on_cycles(k + problem.num_cpus, hops):
        found.append("devices feed each other in a cycle")
    return tuple(found)
