"""Which segment of a stage diverges first: by bisection, on the backend of the stage.

Each half is compiled as a stage of its own, with the shardings of the plan, and is given what the
reference makes of all before it. The first half is tried first, so what is found is the first
segment that is wrong though it was given what is right; later ones are not looked at. Of n segments
some 2 log2 n halves are compiled, half as long each time.
"""

from collections.abc import Sequence
from typing import Any

from gimlax.graph import Phase
from gimlax.partition import cut
from gimlax.program import Program, lay_out
from gimlax.runtime.probing.probing import Probe
from gimlax.runtime.probing.report import BREACH, Divergence, Finding
from gimlax.runtime.probing.seam import Given

__all__ = ["find_divergence"]


def find_divergence(
    probe: Probe, phase: Phase, stage: int, given: Given, values: dict[int, Any]
) -> Divergence:
    """The first segment that diverges in a stage that does.

    Args:
        probe: of the program.
        phase: that the program runs, with the segments that it cuts.
        stage: which one breaks the contract.
        given: the arguments of the probe.
        values: what the reference makes of all values.
    """
    of = probe.program.partition.stages[stage]
    first, stop = of.first_segment, of.first_segment + of.num_segments
    search = _Search(probe, phase, probe.program.placement[stage], given, values)
    low, high, finding = search.narrow(first, stop)
    return Divergence(
        stage=stage,
        segments=tuple(segment.name for segment in phase.segments[low:high]),
        finding=finding,
    )


class _Search:
    def __init__(
        self, probe: Probe, phase: Phase, mesh: str, given: Given, values: dict[int, Any]
    ) -> None:
        self.probe = probe
        self.phase = phase
        self.mesh = mesh
        self.given = given
        self.values = dict(values)

    def narrow(self, low: int, high: int) -> tuple[int, int, Finding | None]:
        """The first run in segments `low:high` that diverges, and the worst of what it breaks."""
        found: Finding | None = None
        while legal := [b for b in range(low + 1, high) if not self.phase.segments[b - 1].splits]:
            middle = min(legal, key=lambda b: abs(2 * b - low - high))
            if worst := self.worst(low, middle):
                high, found = middle, worst
            elif worst := self.worst(middle, high):
                low, found = middle, worst
            else:
                break
        return low, high, found

    def worst(self, low: int, high: int) -> Finding | None:
        """The worst breach of segments `low:high` compiled alone; learns the values they make."""
        num = len(self.phase.segments)
        bounds = sorted({0, low, high, num})
        program = self.program(bounds)
        probe = Probe(self.probe.runner.recut(program), self.probe.reference)
        stage = program.partition.stages[bounds.index(low)]
        findings, made = probe.stage(stage, probe.inputs(stage, self.given, self.values))
        self.values.update(made)
        breaches = [finding for finding in findings if finding.verdict == BREACH]
        return max(breaches, key=lambda f: f.absolute / max(f.bound, 1e-300), default=None)

    def program(self, bounds: Sequence[int]) -> Program:
        """The phase cut at these boundaries, all of it on the mesh of the stage."""
        names = [segment.name for segment in self.phase.segments]
        return lay_out(
            cut(self.phase, bounds[1:-1]),
            [self.mesh] * (len(bounds) - 1),
            phase=self.phase.name,
            segments=[tuple(names[a:b]) for a, b in zip(bounds, bounds[1:], strict=False)],
        )
