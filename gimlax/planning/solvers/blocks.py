"""What cannot be told apart in a split is made one, and what costs nothing is left out.

Nodes of one colour are one block, and so are blocks that lie on a cycle of blocks. What a block
sends and receives becomes *nets*: the blocks that a value touches, and its time; an accelerator
pays a net if it holds some of its blocks and not all, whatever the direction, since both ends pay
alike. A block that takes no time and no memory that matters, and that nothing precedes, can join
the first device that reads it without anybody paying more: it is left out of the search and put
back afterwards (a *rider*); the same with one that nothing follows. Operator graphs are full of
these (weights, constants, shapes, their gradients), and each would double the number of down-sets.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from gimlax.planning.solvers.dag import Array, DagProblem, on_cycles

NEVER = 1e12  # a time this many times that of the whole graph at its quickest is none


@dataclass(frozen=True, slots=True, kw_only=True)
class Rider:
    """A block that joins the first (or the last) device of others; any device, if none are."""

    nodes: tuple[int, ...]
    with_first: bool
    others: tuple[int, ...]
    index: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Blocks:
    """Blocks in an order that respects all arrows.

    Attributes:
        accelerator_s, cpu_s, num_bytes: sums over the nodes of a block. [block]
        supported: whether an accelerator can run all of it. [block]
        on_cpu: whether a CPU can. [block]
        before: blocks that come directly before each, as bits of an integer. [block]
        nets: (blocks as bits, seconds), no two of the same blocks.
        nodes: of each block.
        riders: left out, in the order in which that was done.
        index: the number of each block among all, riders included.
    """

    accelerator_s: Array
    cpu_s: Array
    num_bytes: Array
    supported: np.ndarray
    on_cpu: np.ndarray
    before: tuple[int, ...]
    nets: tuple[tuple[int, float], ...]
    nodes: tuple[tuple[int, ...], ...]
    riders: tuple[Rider, ...]
    index: tuple[int, ...]

    def spread(self, device: Iterable[int], rank: dict[int, int], num_nodes: int) -> list[int]:
        """Devices of nodes from devices of blocks.

        Args:
            device: of each block.
            rank: place of each used device in the order of devices.
            num_nodes: of the graph.
        """
        result = [0] * num_nodes
        home = dict(zip(self.index, device, strict=True))
        for index, nodes in zip(self.index, self.nodes, strict=True):
            for node in nodes:
                result[node] = home[index]
        for rider in reversed(self.riders):
            choose = min if rider.with_first else max
            candidates = [home[other] for other in rider.others] or list(rank)
            home[rider.index] = choose(candidates, key=rank.__getitem__)
            for node in rider.nodes:
                result[node] = home[rider.index]
        return result


def contract(problem: DagProblem) -> Blocks:
    """The blocks of a graph, without riders."""
    label, arrows = _cycles_merged(problem)
    count = max(label, default=-1) + 1
    nodes: list[list[int]] = [[] for _ in range(count)]
    for node, block in enumerate(label):
        nodes[block].append(node)
    touched: dict[int, int] = {}
    output_s = problem.output_s.tolist()
    for source, target in problem.edges.tolist():
        if output_s[source] > 0:
            touched[source] = touched.get(source, 0) | 1 << label[target]
    by_blocks: dict[int, float] = defaultdict(float)
    for source, mask in touched.items():
        by_blocks[mask | 1 << label[source]] += output_s[source]
    total = np.array(label, int)
    accelerator_s = np.bincount(total, problem.accelerator_s, minlength=count).astype(float)
    cpu_s = np.bincount(total, problem.cpu_s, minlength=count).astype(float)
    num_bytes = np.bincount(total, problem.num_bytes, minlength=count).astype(float)
    supported = np.bincount(total, ~problem.supported, minlength=count) == 0
    # Such times stand for "cannot", and sums that hold them would lose all others to rounding.
    quickest_s = np.where(supported, np.minimum(accelerator_s, cpu_s), cpu_s).sum()
    never_s = NEVER * quickest_s if quickest_s > 0 else np.inf
    supported &= accelerator_s <= never_s
    on_cpu = cpu_s <= never_s
    roomy = num_bytes.sum() <= problem.capacity_bytes
    free = (accelerator_s == 0) & (cpu_s == 0) & (supported | (problem.num_accelerators == 0))
    free &= roomy | (num_bytes == 0)
    nets, riders, gone = _left_out(free.tolist(), arrows, by_blocks, nodes)
    kept = _in_order([b for b in range(count) if b not in gone], arrows)
    place = {block: new for new, block in enumerate(kept)}
    before = [0] * len(kept)
    for first, second in arrows:
        if first in place and second in place:
            before[place[second]] |= 1 << place[first]
    return Blocks(
        accelerator_s=accelerator_s[kept],
        cpu_s=np.where(on_cpu, cpu_s, 0.0)[kept],
        num_bytes=num_bytes[kept],
        supported=supported[kept],
        on_cpu=on_cpu[kept],
        before=tuple(before),
        nets=tuple((_renumber(mask, place), w) for mask, w in nets.items()),
        nodes=tuple(tuple(nodes[b]) for b in kept),
        riders=riders,
        index=tuple(kept),
    )


def _cycles_merged(problem: DagProblem) -> tuple[list[int], set[tuple[int, int]]]:
    """The block of each node, and arrows between blocks, which have no cycle."""
    names = {colour: i for i, colour in enumerate(dict.fromkeys(problem.colour.tolist()))}
    label = [names[colour] for colour in problem.colour.tolist()]
    arrows = {(names[a], names[b]) for a, b in problem.ordering()}
    if not on_cycles(len(names), list(arrows)):
        return label, arrows
    ends = np.array(list(arrows))
    size = len(names)
    graph = coo_array((np.ones(len(ends)), (ends[:, 0], ends[:, 1])), shape=(size, size))
    _, merged = connected_components(graph.tocsr(), connection="strong")
    merged = merged.tolist()
    arrows = {(merged[a], merged[b]) for a, b in arrows if merged[a] != merged[b]}
    return [merged[block] for block in label], arrows


def _left_out(
    free: list[bool], arrows: set[tuple[int, int]], by_blocks: dict[int, float], nodes: list
) -> tuple[dict[int, float], tuple[Rider, ...], set[int]]:
    """Nets without riders, the riders, and the same as a set."""
    nets = {mask: w for mask, w in by_blocks.items() if mask & (mask - 1)}
    after: dict[int, set[int]] = defaultdict(set)
    before: dict[int, set[int]] = defaultdict(set)
    for first, second in arrows:
        after[first].add(second)
        before[second].add(first)
    riders: list[Rider] = []
    gone: set[int] = set()
    todo = [block for block, is_free in enumerate(free) if is_free]
    while todo:
        block = todo.pop()
        if block in gone or not free[block]:
            continue
        bit = 1 << block
        own = [mask for mask in nets if mask & bit]
        first = not before[block]
        if not first and after[block]:
            continue
        others = _hosts(bit, own, after[block] if first else before[block])
        if others is None:
            continue
        riders.append(
            Rider(
                nodes=tuple(nodes[block]),
                with_first=first,
                others=tuple(sorted(others)),
                index=block,
            )
        )
        gone.add(block)
        for mask in own:
            weight, rest = nets.pop(mask), mask & ~bit
            if rest & (rest - 1):
                nets[rest] = nets.get(rest, 0.0) + weight
            else:
                todo.append(rest.bit_length() - 1)
        for other in (after if first else before)[block]:
            (before if first else after)[other].discard(block)
            todo.append(other)
    return nets, tuple(riders), gone


def _hosts(bit: int, own: list[int], neighbours: set[int]) -> set[int] | None:
    """Blocks of which the first (or last) device holds a part of every net of a block; else None.

    Args:
        bit: the block.
        own: its nets.
        neighbours: all that follow it, or all that precede it.
    """
    if neighbours:
        together = sum(1 << other for other in neighbours)
        return neighbours if all(mask & together == together for mask in own) else None
    shared = -1
    for mask in own:
        shared &= mask
    shared &= ~bit
    if not own or not shared:
        return None if own else set()
    return {(shared & -shared).bit_length() - 1}


def _in_order(blocks: list[int], arrows: set[tuple[int, int]]) -> list[int]:
    """Blocks so that each comes after all that lead to it."""
    kept = set(blocks)
    missing = dict.fromkeys(blocks, 0)
    after: dict[int, list[int]] = {b: [] for b in blocks}
    for first, second in sorted(arrows):
        if first in kept and second in kept:
            missing[second] += 1
            after[first].append(second)
    ready = [b for b in blocks if not missing[b]]
    result = []
    while ready:
        result.append(ready.pop())
        for other in after[result[-1]]:
            missing[other] -= 1
            if not missing[other]:
                ready.append(other)
    return result


def _renumber(mask: int, place: dict[int, int]) -> int:
    result = 0
    while mask:
        low = mask & -mask
        result |= 1 << place[low.bit_length() - 1]
        mask ^= low
    return result
