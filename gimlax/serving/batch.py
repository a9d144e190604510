"""Generation of several sequences at once: one pass takes a token, or a chunk, of each of them.

Rows begin together and end one by one; a row that has ended, and one that nobody asked for, is
computed all the same and looked at no more. So shapes are static, and what a row gives depends on
its place and its companions at most in the last bit: a group that is made again of the same rows
gives the same. Chosen over putting a new sequence in the place of one that has ended, which belongs
to an engine: there a prompt would have to leave the state of other rows alone.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from gimlax.errors import SpecError
from gimlax.serving.generate import Finish, Request, check_fits
from gimlax.serving.sampling import sample


class RowsRunner(Protocol):
    """A fixed number of sequences on one model; see `Runner` for states and padding."""

    @property
    def num_rows(self) -> int:
        """Sequences of one state."""
        ...

    @property
    def context(self) -> int:
        """Positions that a state holds of each."""
        ...

    @property
    def chunk(self) -> int:
        """Tokens of each that one prefill pass takes, at most `context`."""
        ...

    def start(self) -> Any:
        """A fresh state."""
        ...

    def prefill(
        self, state: Any, tokens: np.ndarray, position: np.ndarray, last: np.ndarray
    ) -> tuple[np.ndarray, Any]:
        """Feeds `tokens` (int32 [row, chunk]) at `position` (int32 [row]); returns the logits
        [row, vocab] of `last` (int32 [row]). A row at position 0 begins anew."""
        ...

    def decode(
        self, state: Any, tokens: np.ndarray, position: np.ndarray
    ) -> tuple[np.ndarray, Any]:
        """Feeds a token (int32 [row]) of each at `position`; returns logits [row, vocab]."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRowsRunner:
    """A `RowsRunner` over two callables of the models' signature; see `StepRunner`."""

    prefill_step: Callable[..., tuple[Any, Any]]
    decode_step: Callable[..., tuple[Any, Any]]
    params: Any
    new_cache: Callable[[], Any]
    num_rows: int
    context: int
    chunk: int

    def start(self) -> Any:
        return self.new_cache()

    def prefill(
        self, state: Any, tokens: np.ndarray, position: np.ndarray, last: np.ndarray
    ) -> tuple[np.ndarray, Any]:
        logits, state = self.prefill_step(self.params, state, tokens, position, last)
        return np.asarray(logits)[:, 0], state

    def decode(
        self, state: Any, tokens: np.ndarray, position: np.ndarray
    ) -> tuple[np.ndarray, Any]:
        logits, state = self.decode_step(self.params, state, tokens[:, None], position)
        return np.asarray(logits)[:, 0], state


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a row came to: its tokens and why they end, or the fault that ended it."""

    row: int
    num_prompt_tokens: int
    tokens: tuple[int, ...]
    finish: Finish | None
    fault: str | None = None


def generate_rows(runner: RowsRunner, requests: Sequence[Request | None]) -> Iterator[Answer]:
    """Yields the answer of each row as it ends; None stands for a row that nobody asked for.

    Raises:
      SpecError: there are more requests than rows, or a prompt is longer than the context; raised
        before any pass runs.
    """
    if len(requests) > runner.num_rows:
        raise SpecError(f"{len(requests)} requests, and one pass takes {runner.num_rows} rows")
    asked = {row: request for row, request in enumerate(requests) if request is not None}
    for request in asked.values():
        check_fits(request.prompt, runner.context)
    return _generate(runner, asked)


def _generate(runner: RowsRunner, asked: dict[int, Request]) -> Iterator[Answer]:
    if not asked:
        return
    logits, state = _prefill(runner, asked)
    drawn: dict[int, list[int]] = {row: [] for row in asked}
    while True:
        tokens = np.zeros(runner.num_rows, np.int32)
        position = np.zeros(runner.num_rows, np.int32)
        for row in list(drawn):
            request = asked[row]
            position[row] = len(request.prompt) + len(drawn[row])
            answer = _step(logits[row], request, drawn[row], row, runner.context)
            if answer is None:
                tokens[row] = drawn[row][-1]
            else:
                position[row] = 0  # of a row that has ended any will do
                del drawn[row]
                yield answer
        if not drawn:
            return
        logits, state = runner.decode(state, tokens, position)


def _step(
    logits: np.ndarray, request: Request, drawn: list[int], row: int, context: int
) -> Answer | None:
    """Draws a token of a row; the answer if that was the last one."""
    position = len(request.prompt) + len(drawn)

    def ended(**how: Any) -> Answer:
        num_prompt_tokens = len(request.prompt)
        return Answer(row=row, num_prompt_tokens=num_prompt_tokens, tokens=tuple(drawn), **how)

    try:
        drawn.append(sample(logits, request.sampling, position))
    except SpecError as error:
        return ended(finish=None, fault=str(error))
    if drawn[-1] in request.stop:
        finish = Finish.STOP
    elif len(drawn) == request.max_tokens:
        finish = Finish.LENGTH
    elif position == context:
        finish = Finish.CONTEXT
    else:
        return None
    return ended(finish=finish)


def _prefill(runner: RowsRunner, asked: dict[int, Request]) -> tuple[np.ndarray, Any]:
    """Feeds the prompts chunk by chunk, so that all end in the same pass.

    A row whose prompt takes fewer passes than another's begins later; until then it is fed padding
    at position 0, where it begins anew. As with one sequence, a last chunk that would reach past
    the context starts earlier.
    """
    chunk, num_rows = runner.chunk, runner.num_rows
    starts = {
        row: [min(at, runner.context - chunk) for at in range(0, len(request.prompt), chunk)]
        for row, request in asked.items()
    }
    num_passes = max(map(len, starts.values()))
    state, logits = runner.start(), np.empty(0)
    for number in range(num_passes):
        tokens = np.zeros((num_rows, chunk), np.int32)
        position, last = np.zeros((2, num_rows), np.int32)
        for row, of in starts.items():
            own = number - (num_passes - len(of))
            if own >= 0:
                piece = asked[row].prompt[of[own] : of[own] + chunk]
                tokens[row, : len(piece)] = piece
                position[row], last[row] = of[own], len(piece) - 1
        logits, state = runner.prefill(state, tokens, position, last)
    return logits, state
