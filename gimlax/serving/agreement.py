"""Whether two runners of one model say the same, position by position.

Two sequences that were generated apart diverge for good after the first near-tie, so one rounding
difference would look like many. Here both runners are fed the tokens of the reference, and at every
position their most probable tokens are compared; a position where the reference itself can hardly
decide (its two largest logits lie within `margin`) counts as close.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gimlax.serving.generate import Request, follow, generate
from gimlax.serving.runner import Runner


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """Positions compared, those with the same most probable token, near-ties among the rest.

    `max_difference` is the largest absolute difference of two logits, 0 when the drawn tokens were
    the same and logits were not looked at.
    """

    num_positions: int
    num_equal: int
    num_close: int
    max_difference: float

    @classmethod
    def total(cls, found: Sequence["Agreement"]) -> "Agreement":
        """Of several sequences."""
        return cls(
            num_positions=sum(f.num_positions for f in found),
            num_equal=sum(f.num_equal for f in found),
            num_close=sum(f.num_close for f in found),
            max_difference=max((f.max_difference for f in found), default=0.0),
        )

    @property
    def agrees(self) -> bool:
        """Whether every position is equal or close."""
        return self.num_equal + self.num_close == self.num_positions

    def __str__(self) -> str:
        if self.num_equal == self.num_positions:
            return f"equal at all {self.num_positions} positions"
        rest = self.num_positions - self.num_equal - self.num_close
        return (
            f"equal at {self.num_equal} of {self.num_positions} positions, {self.num_close} "
            f"near-ties, {rest} different; logits differ by up to {self.max_difference:.2g}"
        )


def compare(
    reference: Runner,
    runner: Runner,
    prompt: Sequence[int],
    tokens: Sequence[int],
    *,
    margin: float = 1e-3,
) -> Agreement:
    """Feeds `tokens` (the reference's own) after `prompt` to both and compares the logits."""
    num_equal = num_close = 0
    max_difference = 0.0
    pairs = zip(follow(reference, prompt, tokens), follow(runner, prompt, tokens), strict=True)
    for expected, found in pairs:
        max_difference = max(max_difference, float(np.abs(expected - found).max()))
        if np.argmax(expected) == np.argmax(found):
            num_equal += 1
        elif np.ptp(np.partition(expected, -2)[-2:]) <= margin:
            num_close += 1
    return Agreement(
        num_positions=len(tokens),
        num_equal=num_equal,
        num_close=num_close,
        max_difference=max_difference,
    )


def check(reference: Runner, runner: Runner, request: Request, tokens: Sequence[int]) -> Agreement:
    """Compares `tokens`, the runner's answer to a request, with the answer of the reference."""
    expected = [token.id for token in generate(reference, request)]
    if list(tokens) == expected:
        return Agreement(
            num_positions=len(expected), num_equal=len(expected), num_close=0, max_difference=0.0
        )
    return compare(reference, runner, request.prompt, expected)
