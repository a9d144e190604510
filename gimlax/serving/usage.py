"""Where the time of a generation went, read from its programs and a measured timeline.

Shares are of the busy time of stages and links, not of the wall clock: what is missing to the wall
clock is the host's. Units: seconds, bytes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from gimlax import _jax
from gimlax.program import Program, Run, Timeline


@dataclass(frozen=True, slots=True, kw_only=True)
class Busy:
    """Seconds that a stage on a mesh or a link (`what` reads `a -> b`) was busy, and its share."""

    what: str
    mesh: str
    busy_s: float
    share: float


def shares(programs: Sequence[Program], timeline: Timeline) -> tuple[Busy, ...]:
    """Busy time per stage and per link over all phases, stages first."""
    found: dict[tuple[str, str], float] = {}
    for program in programs:
        for mesh, todo in program.meshes:
            for instruction in todo:
                if isinstance(instruction, Run):
                    key = (f"stage {instruction.stage}", mesh)
                    busy_s = timeline.busy_s(mesh, program.task(instruction))
                    found[key] = found.get(key, 0.0) + busy_s
    for program in programs:
        for (source, target), todo in program.links:
            track = f"{source} -> {target}"
            tasks = {program.task(transfer) for transfer in todo}
            busy_s = sum(timeline.busy_s(track, task) for task in tasks)
            found[track, track] = found.get((track, track), 0.0) + busy_s
    total_s = sum(found.values())
    return tuple(
        Busy(what=what, mesh=mesh, busy_s=busy_s, share=busy_s / total_s if total_s else 0.0)
        for (what, mesh), busy_s in sorted(found.items(), key=lambda item: _order(item[0][0]))
    )


def _order(what: str) -> tuple[bool, int, str]:
    """Stages by their number, then links."""
    return " -> " in what, len(what), what


def moved_bytes(program: Program) -> int:
    """Bytes that one pass of a phase sends between meshes."""
    avals = program.partition.avals
    return sum(
        _jax.nbytes(avals[value])
        for _, todo in program.links
        for transfer in todo
        for value in transfer.values
    )
