"""The same model with its segments in another order: what stands side by side, the other way round.

A program writes two towers one after the other, though neither needs the other. Every order of the
segments in which each comes after all that it reads from is the same model, and for each run of
segments that a cut can single out among all of them there is an order that makes it a run. So a
plan may choose the order first, and everything behind it goes on seeing a chain.
"""

from collections.abc import Sequence
from dataclasses import replace

from gimlax import _jax
from gimlax.errors import SpecError
from gimlax.graph.dataflow import Graph, build_graph
from gimlax.graph.segments import build_segments
from gimlax.graph.workload import Chain, Phase


def arrows(chain: Chain) -> frozenset[tuple[int, int]]:
    """Pairs of segments of which the second reads what the first writes, in any phase."""
    found: set[tuple[int, int]] = set()
    for phase in chain.phases:
        home = _homes(phase)
        for node, segment in home.items():
            for value in phase.graph.needs(node):
                found.add((home[phase.graph.producer[value]], segment))
    return frozenset((first, second) for first, second in found if first != second)


def units(chain: Chain) -> tuple[tuple[int, ...], ...]:
    """Segments that stay together: the iterations of one scan are one equation."""
    joined = [False] * chain.num_segments  # with the segment before
    for phase in chain.phases:
        nodes = phase.graph.nodes
        for segment in phase.segments[1:]:
            if 0 < segment.start < segment.stop:  # it is not empty in this phase, nor all before it
                same = nodes[segment.start].equation == nodes[segment.start - 1].equation
                joined[segment.index] |= same
    found: list[list[int]] = []
    for index, with_last in enumerate(joined):
        if with_last and found:
            found[-1].append(index)
        else:
            found.append([index])
    return tuple(map(tuple, found))


def reordered(chain: Chain, order: Sequence[int]) -> Chain:
    """The chain with its segments in this order.

    Args:
        chain: with the segments in the order of the program.
        order: the index of the segment at each place.

    Raises:
        SpecError: the order leaves a segment out, comes to one before what it reads, or parts what
            has to stay together.
    """
    _check(chain, order)
    if list(order) == list(range(chain.num_segments)):
        return chain
    return replace(
        chain,
        phases=tuple(_reordered(phase, order) for phase in chain.phases),
        order=tuple(order),
    )


def _check(chain: Chain, order: Sequence[int]) -> None:
    n = chain.num_segments
    if chain.order:
        raise SpecError("order: the segments are in another order than the program's already")
    if sorted(order) != list(range(n)):
        raise SpecError(
            f"order {tuple(order)}: there are {n} segments; name 0 to {n - 1} once each"
        )
    place = {segment: k for k, segment in enumerate(order)}
    names = chain.names
    for first, second in sorted(arrows(chain)):
        if place[first] > place[second]:
            raise SpecError(
                f"order: segment {names[second]!r} comes before {names[first]!r}, which it reads"
            )
    for unit in units(chain):
        for first, second in zip(unit, unit[1:], strict=False):
            if place[second] != place[first] + 1:
                raise SpecError(
                    f"order: segment {names[second]!r} is apart from {names[first]!r}, with which "
                    "it shares an equation"
                )


def _reordered(phase: Phase, order: Sequence[int]) -> Phase:
    equations = _equations(phase, order)
    old = phase.traced.jaxpr
    jaxpr = _jax.close_jaxpr(
        constvars=old.jaxpr.constvars,
        consts=old.consts,
        invars=old.jaxpr.invars,
        outvars=old.jaxpr.outvars,
        eqns=[old.jaxpr.eqns[equation] for equation in equations],
        like=old,
    )
    found = build_graph(replace(phase.traced, jaxpr=jaxpr))
    segments = build_segments(found, _boundaries(phase, found, equations, order))
    return replace(
        phase,
        traced=found.traced,
        graph=found,
        segments=tuple(
            replace(segment, name=phase.segments[was].name, kind=phase.segments[was].kind)
            for segment, was in zip(segments, order, strict=True)
        ),
    )


def _equations(phase: Phase, order: Sequence[int]) -> list[int]:
    """Equations in the new order; shadows right before the first that needs them."""
    graph = phase.graph
    found: dict[int, None] = {}
    for index in order:
        segment = phase.segments[index]
        for node in range(segment.start, segment.stop):
            if not graph.nodes[node].shadow:
                for needed in (*graph.shadows_of(graph.nodes[node].reads), node):
                    found.setdefault(graph.nodes[needed].equation)
    for node in graph.nodes:  # shadows that only outputs need
        found.setdefault(node.equation)
    return list(found)


def _boundaries(
    phase: Phase, found: Graph, equations: Sequence[int], order: Sequence[int]
) -> list[int]:
    """Nodes of the new graph before which a segment starts, without 0."""
    nodes = phase.graph.nodes
    home = {
        (nodes[node].equation, nodes[node].iteration): segment
        for node, segment in _homes(phase).items()
    }
    stops: dict[int, int] = {}
    for index, node in enumerate(found.nodes):
        if not node.shadow:
            stops[home[equations[node.equation], node.iteration]] = index + 1
    boundaries = [0]
    for segment in order[:-1]:
        boundaries.append(stops.get(segment, boundaries[-1]))  # where it is empty it ends at once
    return boundaries[1:]


def _homes(phase: Phase) -> dict[int, int]:
    """The segment of each node that is no shadow."""
    return {
        node: segment.index
        for segment in phase.segments
        for node in range(segment.start, segment.stop)
        if not phase.graph.nodes[node].shadow
    }
