"""Finds the runs of equations that a cut never splits: embedding, attention, MLP, head.

Where a model can sensibly be cut shows in its data flow: between two blocks few values cross (in a
transformer only the residual stream), inside a block more do. *Anchors* are the equations that
carry the weight of a model (contractions, convolutions, gathers of a table, iterations of a scan,
composites); between two anchors the best cut is where the fewest values and bytes cross, and it
becomes a boundary if no fewer values cross at the cuts next to it. Scopes and parameter paths only
give names. Chosen over reading module names, which user code need not have. Units: bytes, FLOPs.
"""

import math
import os.path
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import numpy as np

from gimlax import _jax
from gimlax.graph.counting import CHEAP, Count
from gimlax.graph.dataflow import Graph
from gimlax.graph.operations import Operation
from gimlax.graph.traced import Part, Role, merge_parts
from gimlax.graph.work import work_of

_ANCHORS = re.compile(
    r"dot_general|ragged_dot|conv_general_dilated|gather|scan|while|cond|composite|custom_call|fft|jit"
)
_OWN_KINDS = {
    "gimlax.attention": "attention",
    "gimlax.bidirectional_attention": "attention",
    "gimlax.distance_attention": "attention",
    "gimlax.gated_gelu_mlp": "mlp",
    "gimlax.gated_mlp": "mlp",
    "gimlax.mlp": "mlp",
    "gimlax.expert_layer": "moe",
    "gimlax.selective_scan": "scan",
    "gimlax.state_space_dual": "scan",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """Nodes `start:stop` of a graph, which always run on one mesh.

    `flops` pairs dtype names with FLOPs; `bytes_accessed` is memory traffic of one call with
    elementwise chains fused; `operations` the same work by class; `temp_bytes` the most
    intermediate memory that is live at once; `resident`, `carried` the rows of arguments that it
    uses, `streamed` the streamed leaves and `constants` the closed-over arrays.
    `boundary` are the values that cross a cut put right after it, `splits` the paths of the carried
    leaves that such a cut would tear apart, which makes it illegal.
    """

    index: int
    name: str
    kind: str
    start: int
    stop: int
    flops: tuple[tuple[str, float], ...]
    bytes_accessed: float
    operations: tuple[Operation, ...]
    temp_bytes: int
    resident: tuple[Part, ...]
    carried: tuple[Part, ...]
    streamed: tuple[int, ...]
    constants: tuple[int, ...]
    boundary: tuple[jax.ShapeDtypeStruct, ...]
    splits: tuple[str, ...]

    @property
    def boundary_bytes(self) -> int:
        """Bytes that cross a cut right after this segment."""
        return sum(_jax.nbytes(aval) for aval in self.boundary)


def find_boundaries(graph: Graph) -> tuple[int, ...]:
    """Node indices before which a segment starts, without 0: the natural cuts of the model."""
    anchors = [i for i, node in enumerate(graph.nodes) if _is_anchor(graph, i)]
    if len(anchors) < 2:
        return ()
    values, sizes = _crossings(graph)
    cuts = [
        _best_cut(values, sizes, first, second)
        for first, second in zip(anchors, anchors[1:], strict=False)
    ]
    crossing = [math.inf, *(values[cut] for cut in cuts), math.inf]
    chosen = []
    for i, cut in enumerate(cuts, start=1):
        inside_scan = (
            graph.nodes[cut].iteration > 0
            and graph.nodes[cut - 1].equation == graph.nodes[cut].equation
        )
        if inside_scan or crossing[i] <= min(crossing[i - 1], crossing[i + 1]):
            chosen.append(cut)
    return tuple(chosen)


def build_segments(graph: Graph, boundaries: Sequence[int]) -> tuple[Segment, ...]:
    """Segments between the given boundaries, each with work, arguments and crossings."""
    edges = [0, *boundaries, len(graph.nodes)]
    last = graph.last_reader()
    spans = [
        (graph.traced.arguments[leaf].path, nodes[0], nodes[-1])
        for leaf, nodes in graph.ties().items()
        if nodes
    ]
    head = _output_anchor(graph)
    spots = list(zip(edges, edges[1:], strict=False))
    used = [used_parts(graph, start, stop) for start, stop in spots]
    kinds = [_kind(graph, start, stop, head) for start, stop in spots]
    names = _names(graph, spots, used, kinds)
    segments: list[Segment] = []
    for index, ((start, stop), parts) in enumerate(zip(spots, used, strict=True)):
        work = sum((n.work for n in graph.nodes[start:stop] if not n.shadow), Count())
        operations = work_of(graph, last, start, stop)
        segment = Segment(
            index=index,
            name=names[index],
            kind=kinds[index],
            start=start,
            stop=stop,
            flops=tuple(sorted(work.flops.items())),
            bytes_accessed=sum(op.count * op.num_bytes for op in operations),
            operations=operations,
            temp_bytes=_temp_bytes(graph, last, start, stop),
            resident=_with_role(graph, parts, Role.RESIDENT),
            carried=_with_role(graph, parts, Role.CARRIED),
            streamed=tuple(sorted({p.leaf for p in _with_role(graph, parts, Role.STREAMED)})),
            constants=used_constants(graph, start, stop),
            boundary=tuple(graph.avals[v] for v in crossing_values(graph, last, stop)),
            splits=tuple(path for path, low, high in spans if low < stop <= high),
        )
        segments.append(segment)
    return tuple(segments)


def crossing_values(graph: Graph, last_reader: np.ndarray, position: int) -> tuple[int, ...]:
    """Values written before node `position` and read by it or after it; shadows never cross."""
    producer = np.asarray(graph.producer, dtype=int)
    found = np.flatnonzero((producer < position) & (last_reader >= position))
    return tuple(int(v) for v in found if not graph.nodes[producer[v]].shadow)


def used_parts(graph: Graph, start: int, stop: int) -> frozenset[Part]:
    """Argument rows that nodes `start:stop` read, also through the shadows that they need."""
    found: set[Part] = set()
    for node in graph.nodes[start:stop]:
        if not node.shadow:
            found.update(node.parts)
            for shadow in graph.shadows_of(node.reads):
                found.update(graph.nodes[shadow].parts)
    return frozenset(found)


def used_constants(graph: Graph, start: int, stop: int) -> tuple[int, ...]:
    """Constants that nodes `start:stop` use, also through the shadows that they need."""
    found: set[int] = set()
    for node in graph.nodes[start:stop]:
        if not node.shadow:
            found.update(node.consts)
            for shadow in graph.shadows_of(node.reads):
                found.update(graph.nodes[shadow].consts)
    return tuple(sorted(found))


def _with_role(graph: Graph, parts: frozenset[Part], role: Role) -> tuple[Part, ...]:
    arguments = graph.traced.arguments
    return merge_parts((p for p in parts if arguments[p.leaf].role is role), graph.traced)


def _is_anchor(graph: Graph, index: int) -> bool:
    node = graph.nodes[index]
    if node.shadow or node.primitive in CHEAP or not _ANCHORS.match(node.primitive):
        return False
    if node.primitive == "gather":  # the look-up of a table, not a shuffle of activations
        return any(graph.traced.arguments[p.leaf].role is Role.RESIDENT for p in node.parts)
    if node.primitive == "composite":
        eqn = graph.traced.jaxpr.jaxpr.eqns[node.equation]
        return any(_has_contraction(body) for body in _jax.inner_jaxprs(eqn))
    return True


def _has_contraction(closed: _jax.ClosedJaxpr) -> bool:
    return any(
        eqn.primitive.name in ("dot_general", "conv_general_dilated", "scan")
        or any(_has_contraction(body) for body in _jax.inner_jaxprs(eqn))
        for eqn in closed.jaxpr.eqns
    )


def _crossings(graph: Graph) -> tuple[np.ndarray, np.ndarray]:
    """Number and bytes of the values that cross before each node. # [node + 1] each"""
    number, size = np.zeros(len(graph.nodes) + 2), np.zeros(len(graph.nodes) + 2)
    for value, last in enumerate(graph.last_reader()):
        first = graph.producer[value]
        if last > first and not graph.nodes[first].shadow:
            amount = _jax.nbytes(graph.avals[value])
            number[first + 1] += 1
            number[last + 1] -= 1
            size[first + 1] += amount
            size[last + 1] -= amount
    return np.cumsum(number), np.cumsum(size)


def _best_cut(values: np.ndarray, sizes: np.ndarray, first: int, second: int) -> int:
    """Where between two anchors the fewest values and bytes cross; the latest place among equals,
    so that activations and norms stay with what they follow."""
    return min(range(first + 1, second + 1), key=lambda p: (values[p], sizes[p], -p))


def _temp_bytes(graph: Graph, last: np.ndarray, start: int, stop: int) -> int:
    """Most bytes of values written in `start:stop` that are live at once."""
    changes = np.zeros(stop - start + 1)
    for index in range(start, stop):
        for value in graph.nodes[index].writes:
            changes[index - start] += _jax.nbytes(graph.avals[value])
            end = min(max(int(last[value]), index), stop - 1)
            changes[end + 1 - start] -= _jax.nbytes(graph.avals[value])
    return int(np.cumsum(changes).max(initial=0))


def _output_anchor(graph: Graph) -> int:
    """The last anchor, if it is a contraction with parameters: what a head is made of; else -1."""
    anchors = [i for i in range(len(graph.nodes)) if _is_anchor(graph, i)]
    last = anchors[-1] if anchors else -1
    contracts = last >= 0 and graph.nodes[last].primitive == "dot_general"
    return last if contracts and _weights(graph, last) else -1


def _weights(graph: Graph, index: int) -> bool:
    parts = used_parts(graph, index, index + 1)
    return any(graph.traced.arguments[p.leaf].role is Role.RESIDENT for p in parts)


def _kind(graph: Graph, start: int, stop: int, head: int) -> str:
    anchors = [i for i in range(start, stop) if _is_anchor(graph, i)]
    primitives = {graph.nodes[i].primitive for i in anchors}
    eqns = graph.traced.jaxpr.jaxpr.eqns
    named = [
        _OWN_KINDS[eqns[graph.nodes[i].equation].params["name"]]
        for i in anchors
        if graph.nodes[i].primitive == "composite"
        and eqns[graph.nodes[i].equation].params["name"] in _OWN_KINDS
    ]
    dots = [i for i in anchors if graph.nodes[i].primitive == "dot_general"]
    if named:
        return "attention" if "attention" in named else named[0]
    if any(p.startswith("ragged_dot") for p in primitives):
        return "moe"
    if any(not _weights(graph, i) for i in dots):
        return "attention"
    if "conv_general_dilated" in primitives:
        return "conv"
    if "scan" in primitives:
        return "scan"
    if start <= head < stop and len(anchors) == 1 and start > 0:
        return "head"
    if primitives == {"gather"}:
        return "embedding"
    return "mlp" if dots else "other"


def _names(
    graph: Graph,
    spots: Sequence[tuple[int, int]],
    used: Sequence[frozenset[Part]],
    kinds: Sequence[str],
) -> list[str]:
    """One name for each segment: its place in the model, and its kind where two share a place."""
    places = [_place(graph, *spot, parts) for spot, parts in zip(spots, used, strict=True)]
    shared = Counter(places)
    taken: Counter[str] = Counter()
    names = []
    for index, (place, kind) in enumerate(zip(places, kinds, strict=True)):
        name = place if place else f"{kind}.{index}"
        if place and shared[place] > 1:
            name = f"{place}.{kind}"
        taken[name] += 1
        names.append(name if taken[name] == 1 else f"{name}.{taken[name]}")
    return names


def _place(graph: Graph, start: int, stop: int, parts: frozenset[Part]) -> str:
    """From the scopes of the anchors, else from the paths of the parameters, else empty."""
    scopes = [graph.nodes[i].scope for i in range(start, stop) if _is_anchor(graph, i)]
    arguments = graph.traced.arguments
    paths = [
        arguments[p.leaf].path for p in parts if arguments[p.leaf].role is Role.RESIDENT and p.whole
    ]
    keys = ["/".join(re.findall(r"[\w.]+", path)[1:]) for path in sorted(paths)]
    for words in (scopes, keys):
        common = os.path.commonpath(words) if words and all(words) else ""
        if common:
            return common.replace("/", ".")
    return ""
