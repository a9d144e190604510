"""The operations of a run of nodes: what a stage does when it holds them and nothing else.

Shadows are in it, since each stage repeats those that it needs, but their FLOPs are not: they are
cheap, and casts of weights, which are not, have none.
"""

import dataclasses

import numpy as np

from gimlax import _jax
from gimlax.graph.dataflow import Graph
from gimlax.graph.fusing import fuse
from gimlax.graph.operations import Operation
from gimlax.graph.traced import Role

__all__ = ["work_of"]


def work_of(graph: Graph, last_reader: np.ndarray, start: int, stop: int) -> tuple[Operation, ...]:
    """Operations of nodes `start:stop` in order; `last_reader` is the graph's."""
    found: list[Operation] = []
    run: list[int] = []
    for index in range(start, stop):
        node = graph.nodes[index]
        if node.iteration >= 0:
            found += _run(graph, last_reader, run)
            found += _iteration(graph, node.equation)
            run = []
        elif not node.shadow:
            run.append(index)
    return (*found, *_run(graph, last_reader, run))


def _run(graph: Graph, last_reader: np.ndarray, nodes: list[int]) -> tuple[Operation, ...]:
    """Operations of nodes that are no iterations."""
    if not nodes:
        return ()
    eqns = graph.traced.jaxpr.jaxpr.eqns
    results = {v for v in graph.traced.jaxpr.jaxpr.outvars if isinstance(v, _jax.Var)}
    shadows = {s for n in nodes for s in graph.shadows_of(graph.nodes[n].reads)}
    order = sorted(shadows.union(nodes))
    written = [v for n in nodes for v in eqns[graph.nodes[n].equation].outvars]
    return fuse(
        [eqns[graph.nodes[n].equation] for n in order],
        escaping=[
            v
            for v in written
            if v in results or (v in graph.ids and last_reader[graph.ids[v]] > nodes[-1])
        ],
        resident=_resident(graph),
        uncounted=frozenset(i for i, n in enumerate(order) if n in shadows),
    )


def _iteration(graph: Graph, equation: int) -> list[Operation]:
    """Operations of one trip of a scan that can be cut between trips."""
    eqn = graph.traced.jaxpr.jaxpr.eqns[equation]
    whole = fuse([eqn], escaping=eqn.outvars, resident=_resident(graph))
    length = graph.scans[equation].parts.length
    return [dataclasses.replace(op, count=op.count / length) for op in whole]


def _resident(graph: Graph) -> set[_jax.Var]:
    arguments = graph.traced.arguments
    own = {v for v, leaf in graph.leaf_of.items() if arguments[leaf].role is Role.RESIDENT}
    return own.union(graph.const_of)
