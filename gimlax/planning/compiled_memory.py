"""Memory of stages that a compiler has seen, in the place of what the graph lets one expect.

A graph knows arguments and the largest live values; a compiler adds tiles, scratch memory and the
program. What it said of a stage holds for that stage. A stage that contains it needs at least as
much beside its own arguments, as the largest of its temporaries counts; of others it says nothing.
Units: bytes of one device.
"""

import numpy as np

from gimlax.devices import Calibration, Cluster
from gimlax.graph import Chain
from gimlax.planning.problem import Array

__all__ = ["passing_as_compiled"]


def passing_as_compiled(
    passing: Array, held: Array, chain: Chain, cluster: Cluster, calibration: Calibration | None
) -> Array:
    """What each stage needs beside its arguments.

    Args:
        passing: the same from the graph. [mesh, first, stop]
        held: of the arguments of each stage. [mesh, first, stop]
        chain: what runs.
        cluster: where; meshes with axes.
        calibration: what compilers said, of this model and others.
    """
    memories = calibration.memories if calibration is not None else ()
    model = chain.fingerprint() if memories else ""
    named = {mesh.name: (index, mesh) for index, mesh in enumerate(cluster.meshes)}
    mine = [
        (named[memory.mesh][0], memory.first_segment, memory.num_segments, memory.needed_bytes)
        for memory in memories
        if memory.model == model
        and memory.mesh in named
        and memory.axes == named[memory.mesh][1].axes
        and memory.first_segment + memory.num_segments <= chain.num_segments
    ]
    if not mine:
        return passing
    result = np.array(passing)
    for mesh, first, count, needed in mine:
        beside = max(needed - held[mesh, first, first + count], 0.0)
        larger = result[mesh, : first + 1, first + count :]
        np.maximum(larger, beside, out=larger)
    for mesh, first, count, needed in mine:
        result[mesh, first, first + count] = max(needed - held[mesh, first, first + count], 0.0)
    return result
