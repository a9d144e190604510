"""What is told for every pass, as numbers alone: a message of them costs little to write and read.

What a worker has to be told first, such as what an argument is made of, goes in a message before.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple, Self

from gimlax.runtime.compilation import CompiledStage
from gimlax.runtime.passes import Key

__all__ = ["PassOrder", "streamed_keys"]

_WANTED, _TELLS, _TAPPED = 1, 2, 4


class PassOrder(NamedTuple):
    """A pass that a worker has to run its part of.

    Attributes:
        number: of the pass.
        epoch: to which it belongs.
        phase: which.
        is_wanted: whether its outputs are to be sent.
        tells: whether its end has to be told; else another worker's end says so.
        is_tapped: whether it is to be checked.
        finished: passes whose values need not be kept any more.
        placed: its placed arguments.
        before, after: its cells, by carried tree and stage of this worker.
    """

    number: int
    epoch: int
    phase: int
    is_wanted: bool
    tells: bool
    is_tapped: bool
    finished: Sequence[int]
    placed: Sequence[int]
    before: Sequence[int]
    after: Sequence[int]

    def numbers(self) -> list[int]:
        """All of it; see `of`."""
        flags = self.is_wanted * _WANTED + self.tells * _TELLS + self.is_tapped * _TAPPED
        counts = len(self.finished), len(self.placed)
        return [
            *(self.number, self.epoch, self.phase, flags, *counts),
            *(*self.finished, *self.placed, *self.before, *self.after),
        ]

    @classmethod
    def of(cls, numbers: Sequence[int]) -> Self:
        """What such numbers say."""
        number, epoch, phase, flags, num_finished, num_placed = numbers[:6]
        placed_at = 6 + num_finished
        before_at = placed_at + num_placed
        after_at = (before_at + len(numbers)) // 2
        return cls(
            number,
            epoch,
            phase,
            bool(flags & _WANTED),
            bool(flags & _TELLS),
            bool(flags & _TAPPED),
            numbers[6:placed_at],
            numbers[placed_at:before_at],
            numbers[before_at:after_at],
            numbers[after_at:],
        )


def streamed_keys(stages: Iterable[CompiledStage]) -> list[Key]:
    """The streamed leaves that the stages of a worker read, in the order in which they are sent."""
    return list(dict.fromkeys(key for stage in stages for key in stage.streamed))
