"""Noticing a stage that never ends on a device whose process lives and answers.

Time is counted in looks at equal distances, as silence is in `noticing`: a process that was kept
from running has not looked either. What takes less than a look need not be timed at all, since a
stage is given a minute anyway; so nothing is done when a stage begins or ends.
"""

from collections.abc import Mapping, Sequence

from gimlax.runtime.compilation import CompiledStage
from gimlax.runtime.passes import CompiledPhase

__all__ = ["Hangs"]

_LEAST_S = 60.0
_MOST_TIMES = 100  # as long as it ever took


class Hangs:
    """What stages took, and whether one takes far too long; of phases that have come through once:
    the first pass may wait for a device to be made ready."""

    def __init__(self, phases: Sequence[CompiledPhase], every_s: float) -> None:
        """`every_s` is the time between two looks."""
        self._every_s = every_s
        self._phase_of = {
            stage: index
            for index, phase in enumerate(phases)
            for stage in phase.stages
            if stage is not None
        }
        self._came_through: set[int] = set()
        self._looks: dict[tuple[int, CompiledStage], int] = {}  # by pass and stage: seen so often
        self._longest: dict[CompiledStage, int] = {}

    def came_through(self, phase: int) -> None:
        """Notes that a pass of this phase has ended."""
        self._came_through.add(phase)

    def look(self, under_way: Mapping[str, tuple[int, CompiledStage]]) -> str:
        """What hangs, in words; empty if nothing does.

        Args:
            under_way: by mesh the number of a pass and the stage that its device is at.
        """
        looks = {of: self._looks.get(of, 0) + 1 for of in under_way.values()}
        for of, count in self._looks.items():
            if of not in looks:
                self._longest[of[1]] = max(count, self._longest.get(of[1], 0))
        self._looks = looks
        for (_, stage), count in looks.items():
            longest = self._longest.get(stage, 1)
            # The first look was at some time after it began, so one look is no time.
            took_s = (count - 1) * self._every_s
            if self._phase_of[stage] in self._came_through and took_s > max(
                _LEAST_S, _MOST_TIMES * longest * self._every_s
            ):
                return (
                    f"{stage.description} has not ended for {took_s:.0f} s, and never took more"
                    f" than {longest * self._every_s:g} s before"
                )
        return ""
