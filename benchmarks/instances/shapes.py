"""Graphs of the shapes that models have, in the format of Tarnawski et al., drawn from a seed.

The published graphs are few; a solver has to hold on others too. Each shape is built from what its
models are made of (convolutions in parallel branches, attention with its weights and constants as
nodes of their own, long skips, a backward pass with the colours of the forward one), with times,
bytes and transfers of a plausible spread. None of them is a measured model.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

CPU_SLOWER = 10.0  # a CPU beside an accelerator, as in the published layer graphs
MS_PER_BYTE = 1 / 12e6  # 12 GB/s between accelerator and host
FREE = 0.0


class Draft:
    """A graph in the making: nodes with times, the bytes that each hands on, edges."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.nodes: list[dict[str, Any]] = []
        self.output_bytes: list[float] = []
        self.edges: list[tuple[int, int]] = []

    def node(
        self,
        *reads: int,
        ms: float,
        output_bytes: float,
        held_bytes: float = 0.0,
        backward: bool = False,
        colour: int | None = None,
    ) -> int:
        """A node that reads others; its time and bytes vary by a few percent."""
        index = len(self.nodes)
        vary = float(self.rng.uniform(0.9, 1.1))
        self.nodes.append(
            {
                "id": index,
                "supportedOnFpga": 1,
                "fpgaLatency": ms * vary,
                "cpuLatency": ms * vary * CPU_SLOWER,
                "isBackwardNode": int(backward),
                "size": held_bytes + output_bytes,
            }
            | ({} if colour is None else {"colorClass": colour})
        )
        self.output_bytes.append(output_bytes)
        self.edges += [(read, index) for read in dict.fromkeys(reads)]
        return index

    def weight(self, num_bytes: float) -> int:
        """A node of its own without time, as operator graphs have them."""
        return self.node(ms=FREE, output_bytes=num_bytes)

    def instance(self, accelerators: int, cpus: int, room: float) -> dict[str, Any]:
        """The content of a file; accelerators have `room` times the memory that all nodes need."""
        needed = sum(node["size"] for node in self.nodes)
        return {
            "maxFPGAs": accelerators,
            "maxCPUs": cpus,
            "maxSizePerFPGA": needed * room / max(accelerators, 1),
            "nodes": self.nodes,
            "edges": [
                {"sourceId": a, "destId": b, "cost": self.output_bytes[a] * MS_PER_BYTE}
                for a, b in self.edges
            ],
        }


def inception(rng: np.random.Generator, num_blocks: int = 11) -> Draft:
    """Layers: a stem, then blocks of four parallel branches, of which the last ones fork again."""
    draft = Draft(rng)

    def convolved(at: int, times: int, ms: float, num_bytes: float) -> int:
        for _ in range(times):
            at = draft.node(at, ms=ms, output_bytes=num_bytes, held_bytes=num_bytes / 20)
            at = draft.node(at, ms=ms * 0.15, output_bytes=num_bytes)
            at = draft.node(at, ms=ms * 0.1, output_bytes=num_bytes)
        return at

    at = draft.node(ms=FREE, output_bytes=5e6)
    at = convolved(at, 5, 6.0, 2e7)
    for block in range(num_blocks):
        num_bytes = 4e6 * (2.0 - block / num_blocks)
        ends = [convolved(at, times, 1.2, num_bytes) for times in (1, 2, 3)]
        pooled = draft.node(at, ms=0.3, output_bytes=num_bytes)
        ends.append(convolved(pooled, 1, 0.8, num_bytes))
        if block >= num_blocks - 2:
            ends += [convolved(ends.pop(1), 1, 0.9, num_bytes / 2)]
            ends += [convolved(ends[1], 1, 0.9, num_bytes / 2)]
        at = draft.node(*ends, ms=FREE, output_bytes=num_bytes * 4)
    return _classified(draft, at)


def residual(rng: np.random.Generator, blocks: tuple[int, ...] = (3, 4, 6, 3)) -> Draft:
    """Operators: bottlenecks with a shortcut, weights and statistics as nodes of their own."""
    draft = Draft(rng)

    def convolved(at: int, ms: float, num_bytes: float, relu: bool = True) -> int:
        at = draft.node(at, draft.weight(num_bytes / 8), ms=ms, output_bytes=num_bytes)
        statistics = [draft.weight(2e3) for _ in range(4)]
        at = draft.node(at, *statistics, ms=ms * 0.2, output_bytes=num_bytes)
        return draft.node(at, ms=ms * 0.1, output_bytes=num_bytes) if relu else at

    at = convolved(draft.node(ms=FREE, output_bytes=6e6), 4.0, 2e7)
    for stage, depth in enumerate(blocks):
        num_bytes = 2.4e7 / 2**stage
        for block in range(depth):
            inner = convolved(at, 0.7, num_bytes / 4)
            inner = convolved(inner, 1.5, num_bytes / 4)
            inner = convolved(inner, 0.8, num_bytes, relu=False)
            short = at if block else convolved(at, 0.9, num_bytes, relu=False)
            at = draft.node(inner, short, ms=0.2, output_bytes=num_bytes)
            at = draft.node(at, ms=0.1, output_bytes=num_bytes)
    return _classified(draft, at)


def transformer(rng: np.random.Generator, num_layers: int = 12) -> Draft:
    """Operators: query, key and value in parallel, a mask for all layers, biases and reshapes."""
    draft = Draft(rng)
    act = 1.5e6

    def dense(at: int, ms: float, held: float = 2e6, out: float = act) -> int:
        at = draft.node(at, draft.weight(held), ms=ms, output_bytes=out)
        return draft.node(at, draft.weight(2e3), ms=ms * 0.3, output_bytes=out)

    def normed(at: int) -> int:
        scale, shift = draft.weight(2e3), draft.weight(2e3)
        return draft.node(at, scale, shift, ms=0.2, output_bytes=act)

    tokens = draft.node(ms=FREE, output_bytes=4e3)
    mask = draft.node(draft.node(ms=FREE, output_bytes=1e3), ms=1e-4, output_bytes=4e3)
    mask = draft.node(mask, ms=1e-4, output_bytes=4e3)
    at = draft.node(tokens, draft.weight(3e7), ms=0.05, output_bytes=act)
    at = normed(draft.node(at, draft.weight(5e5), ms=0.05, output_bytes=act))
    for _ in range(num_layers):
        heads = []
        for _ in range(3):
            projected = draft.node(dense(at, 0.35), ms=0.025, output_bytes=act)
            heads.append(draft.node(projected, ms=0.05, output_bytes=act))
        turned = draft.node(heads[1], ms=0.05, output_bytes=act)
        scores = draft.node(heads[0], turned, ms=0.4, output_bytes=6e6)
        scores = draft.node(scores, draft.weight(4.0), ms=0.2, output_bytes=6e6)
        scores = draft.node(scores, mask, ms=0.2, output_bytes=6e6)
        scores = draft.node(scores, ms=0.5, output_bytes=6e6)
        mixed = draft.node(scores, heads[2], ms=0.4, output_bytes=act)
        mixed = draft.node(draft.node(mixed, ms=0.05, output_bytes=act), ms=0.02, output_bytes=act)
        at = normed(draft.node(at, dense(mixed, 0.35), ms=0.05, output_bytes=act))
        wide = draft.node(dense(at, 1.3, 8e6, 6e6), ms=0.3, output_bytes=6e6)
        at = normed(draft.node(at, dense(wide, 1.3, 8e6), ms=0.05, output_bytes=act))
    for _ in range(2):
        head = normed(dense(at, 0.5))
        draft.node(head, draft.weight(3e7), ms=2.0, output_bytes=1.5e7)
    return draft


def unet(rng: np.random.Generator, depth: int = 4, blocks: int = 2) -> Draft:
    """Layers: down and up with long skips, and an embedding of time that every block reads."""
    draft = Draft(rng)
    step = draft.node(draft.node(ms=FREE, output_bytes=4.0), ms=0.1, output_bytes=5e3)
    at = draft.node(draft.node(ms=FREE, output_bytes=1e6), ms=1.0, output_bytes=1.6e7)
    skips: list[int] = []

    def block(at: int, num_bytes: float, *skip: int) -> int:
        first = draft.node(at, *skip, ms=2.0, output_bytes=num_bytes, held_bytes=1e7)
        shift = draft.node(step, ms=0.02, output_bytes=5e3, held_bytes=1e6)
        inner = draft.node(first, shift, ms=0.1, output_bytes=num_bytes)
        inner = draft.node(inner, ms=2.0, output_bytes=num_bytes, held_bytes=1e7)
        return draft.node(inner, at, ms=0.1, output_bytes=num_bytes)

    for level in range(depth):
        for _ in range(blocks):
            at = block(at, 1.6e7 / 2**level)
            skips.append(at)
        at = draft.node(at, ms=0.5, output_bytes=0.8e7 / 2**level)
    at = block(at, 1e6)
    for level in reversed(range(depth)):
        at = draft.node(at, ms=0.5, output_bytes=1.6e7 / 2**level)
        for _ in range(blocks):
            at = block(at, 1.6e7 / 2**level, skips.pop())
    draft.node(at, ms=1.0, output_bytes=1e6)
    return draft


def translation(rng: np.random.Generator, num_layers: int = 8) -> Draft:
    """Layers: a recurrent encoder, and a decoder whose every layer reads the attention."""
    draft = Draft(rng)
    act = 6e6

    def recurrent(at: int, *more: int) -> int:
        hidden = draft.node(ms=FREE, output_bytes=1e3)
        cell = draft.node(at, hidden, *more, ms=3.0, output_bytes=act, held_bytes=3e7)
        return draft.node(cell, ms=0.1, output_bytes=act)

    source = draft.node(draft.node(ms=FREE, output_bytes=1e4), ms=0.3, output_bytes=act)
    both = [recurrent(source) for _ in range(2)]
    at = draft.node(*both, ms=0.1, output_bytes=2 * act)
    for layer in range(num_layers - 1):
        following = recurrent(at)
        at = draft.node(at, following, ms=0.1, output_bytes=act) if layer else following
    context = at
    target = draft.node(draft.node(ms=FREE, output_bytes=1e4), ms=0.3, output_bytes=act)
    at = recurrent(target)
    looked = draft.node(at, context, ms=2.0, output_bytes=act, held_bytes=1e7)
    for layer in range(num_layers - 1):
        joined = draft.node(at, looked, ms=0.2, output_bytes=2 * act)
        following = recurrent(joined)
        at = draft.node(at, following, ms=0.1, output_bytes=act) if layer else following
    draft.node(at, ms=8.0, output_bytes=3e7, held_bytes=1.3e8)
    return draft


def towers(rng: np.random.Generator, num_towers: int = 3, length: int = 50) -> Draft:
    """Layers: towers of blocks side by side, and one head that reads them all."""
    draft = Draft(rng)
    ends = []
    for tower in range(num_towers):
        at = draft.node(ms=FREE, output_bytes=1e6)
        for _ in range(length):
            at = draft.node(at, ms=1.0 + tower, output_bytes=2e6, held_bytes=1e7)
        ends.append(at)
    draft.node(*ends, ms=2.0, output_bytes=1e4)
    return draft


def experts(rng: np.random.Generator, num_layers: int = 6, num_experts: int = 8) -> Draft:
    """Operators: layers in which a router feeds experts side by side."""
    draft = Draft(rng)
    at = draft.node(ms=FREE, output_bytes=2e6)
    for _ in range(num_layers):
        attended = draft.node(at, ms=1.0, output_bytes=2e6, held_bytes=1e7)
        routed = draft.node(attended, ms=0.1, output_bytes=2e6)
        ends = []
        for _ in range(num_experts):
            inner = draft.node(routed, ms=0.3, output_bytes=1e6, held_bytes=1e7)
            inner = draft.node(inner, ms=0.1, output_bytes=1e6)
            ends.append(draft.node(inner, ms=0.3, output_bytes=5e5, held_bytes=1e7))
        at = draft.node(attended, *ends, ms=0.2, output_bytes=2e6)
    return draft


def series_parallel(rng: np.random.Generator, num_nodes: int = 500) -> Draft:
    """Edges replaced at random by two in a row or two side by side, until there are enough."""
    edges, count = [(0, 1)], 2
    while count < num_nodes:
        index = int(rng.integers(len(edges)))
        source, target = edges[index]
        if rng.random() < 0.85:
            edges[index : index + 1] = [(source, count), (count, target)]
        else:
            edges.append((source, count))
            edges.append((count, target))
        count += 1
    return _from_edges(rng, count, edges)


def layered(rng: np.random.Generator, num_nodes: int = 60, width: int = 5) -> Draft:
    """Rows of nodes that read some of the row above: few nodes and many down-sets."""
    edges = []
    for node in range(width, num_nodes):
        above = (node // width - 1) * width
        reads = rng.choice(width, size=int(rng.integers(1, 3)), replace=False)
        edges += [(above + int(read), node) for read in reads]
    return _from_edges(rng, num_nodes, edges)


def training(forward: Draft) -> Draft:
    """The same with a backward pass; a few backward nodes have no partner, as in real ones."""
    rng, count = forward.rng, len(forward.nodes)
    draft = Draft(rng)
    draft.nodes = [node | {"colorClass": node["id"]} for node in forward.nodes]
    draft.output_bytes, draft.edges = list(forward.output_bytes), list(forward.edges)
    after: list[list[int]] = [[] for _ in range(count)]
    for source, target in forward.edges:
        after[source].append(target)
    partner: dict[int, int] = {}
    for node in reversed(_in_order(count, forward.edges)):
        reads = [partner[other] for other in after[node]]
        alone = rng.random() < 0.03
        if rng.random() < 0.05 and reads:  # a sum of gradients, of no colour
            reads = [draft.node(*reads, ms=0.01, output_bytes=1e5, backward=True)]
        partner[node] = draft.node(
            *reads,
            node,
            ms=2 * forward.nodes[node]["fpgaLatency"],
            output_bytes=forward.output_bytes[node],
            backward=True,
            colour=None if alone else node,
        )
    return draft


SHAPES: dict[str, Callable[[np.random.Generator], Draft]] = {
    "inception": inception,
    "inception_training": lambda rng: training(inception(rng)),
    "residual": residual,
    "residual_training": lambda rng: training(residual(rng)),
    **{f"transformer_{n}": lambda rng, n=n: transformer(rng, n) for n in (3, 6, 12, 24)},
    "transformer_3_training": lambda rng: training(transformer(rng, 3)),
    "transformer_12_training": lambda rng: training(transformer(rng, 12)),
    "unet": unet,
    "unet_training": lambda rng: training(unet(rng)),
    "translation": translation,
    "translation_training": lambda rng: training(translation(rng)),
    "towers_2": lambda rng: towers(rng, 2, 60),
    "towers_3": towers,
    "experts": experts,
    **{f"series_parallel_{n}": lambda rng, n=n: series_parallel(rng, n) for n in (100, 300, 500)},
    **{f"layered_{n}": lambda rng, n=n: layered(rng, n) for n in (60, 120)},
}
# Accelerators, CPUs, and the memory of all accelerators over what the nodes need.
DEVICES = ((2, 0, 8.0), (3, 1, 8.0), (4, 0, 1.3), (6, 1, 8.0), (8, 2, 1.5))


def instances(seed: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Names and contents of files: every shape on every set of devices."""
    for number, (name, draw) in enumerate(SHAPES.items()):
        draft = draw(np.random.default_rng([seed, number]))
        for accelerators, cpus, room in DEVICES:
            yield f"{name}-{accelerators}x{cpus}-{room:g}", draft.instance(accelerators, cpus, room)


def _classified(draft: Draft, at: int) -> Draft:
    """A classifier behind the last features."""
    pooled = draft.node(at, ms=0.3, output_bytes=1e5)
    draft.node(pooled, ms=0.3, output_bytes=4e4, held_bytes=8e6)
    return draft


def _from_edges(rng: np.random.Generator, count: int, edges: list[tuple[int, int]]) -> Draft:
    """Nodes of random times and bytes, in an order that respects the edges."""
    draft, reads = Draft(rng), [[] for _ in range(count)]
    for source, target in edges:
        reads[target].append(source)
    place: dict[int, int] = {}
    for node in _in_order(count, edges):
        place[node] = draft.node(
            *(place[read] for read in reads[node]),
            ms=float(rng.exponential(1.0)),
            output_bytes=float(rng.exponential(2e6)),
            held_bytes=float(rng.exponential(1e7)),
        )
    return draft


def _in_order(count: int, edges: list[tuple[int, int]]) -> list[int]:
    missing, after = [0] * count, [[] for _ in range(count)]
    for source, target in edges:
        missing[target] += 1
        after[source].append(target)
    ready = [node for node in range(count) if not missing[node]]
    order = []
    while ready:
        order.append(ready.pop())
        for other in after[order[-1]]:
            missing[other] -= 1
            if not missing[other]:
                ready.append(other)
    return order
