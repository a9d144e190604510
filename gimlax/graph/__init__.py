"""From a callable to a chain of segments: jaxprs only, no device."""

from gimlax.graph.dataflow import Graph, build_graph
from gimlax.graph.reordering import arrows, reordered, units
from gimlax.graph.segments import Segment
from gimlax.graph.static import StaticArguments
from gimlax.graph.traced import Argument, Output, Part, Role, Traced, part_aval, part_bytes
from gimlax.graph.tracing import trace
from gimlax.graph.workload import Chain, Phase, Workload, chain

__all__ = [
    "Argument",
    "Chain",
    "Graph",
    "Output",
    "Part",
    "Phase",
    "Role",
    "Segment",
    "StaticArguments",
    "Traced",
    "Workload",
    "arrows",
    "build_graph",
    "chain",
    "part_aval",
    "part_bytes",
    "reordered",
    "trace",
    "units",
]
