"""Generation of one sequence: the prompt in chunks, then token by token, each handed on at once.

A generator over a `Runner`, with the time as an argument, so that life and simulation run the same
code. Each `Token` says how long its pass took; `Statistics` are computed from the tokens
afterwards, nothing is accumulated on the way. Units: seconds.
"""

import enum
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gimlax.errors import SpecError
from gimlax.serving.runner import Runner
from gimlax.serving.sampling import Sampling, sample


class Finish(enum.Enum):
    """Why a sequence ended."""

    STOP = "the model ended its answer"
    LENGTH = "the number of tokens asked for was reached"
    CONTEXT = "the context is full"


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One prompt as token ids, and what to do with it; `stop` tokens end the answer."""

    prompt: tuple[int, ...]
    max_tokens: int = 64
    stop: frozenset[int] = frozenset()
    sampling: Sampling = field(default_factory=Sampling)

    def __post_init__(self) -> None:
        if not self.prompt:
            raise SpecError("prompt: it has 0 tokens, so nothing can follow; give some text")
        if self.max_tokens < 1:
            raise SpecError(f"max_tokens is {self.max_tokens}; give 1 or more")


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """One generated token.

    Attributes:
      position: its index in the sequence, the prompt included.
      elapsed_s: from the moment its pass began (for the first token: the prompt's first pass).
      finish: why it is the last one, None when more follow.
    """

    id: int
    position: int
    elapsed_s: float
    finish: Finish | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistics:
    """Of one sequence or several. The first new token of each comes out of its prefill, every other
    out of a decode."""

    num_prompt_tokens: int
    num_decoded_tokens: int
    prefill_s: float
    decode_s: float

    @classmethod
    def of(cls, request: Request, tokens: Sequence[Token]) -> "Statistics":
        """Adds up the tokens that `generate` gave for a request."""
        return cls(
            num_prompt_tokens=len(request.prompt),
            num_decoded_tokens=len(tokens[1:]),
            prefill_s=sum(token.elapsed_s for token in tokens[:1]),
            decode_s=sum(token.elapsed_s for token in tokens[1:]),
        )

    @classmethod
    def total(cls, statistics: Sequence["Statistics"]) -> "Statistics":
        """Of several sequences, one after the other."""
        return cls(
            num_prompt_tokens=sum(s.num_prompt_tokens for s in statistics),
            num_decoded_tokens=sum(s.num_decoded_tokens for s in statistics),
            prefill_s=sum(s.prefill_s for s in statistics),
            decode_s=sum(s.decode_s for s in statistics),
        )

    @property
    def prefill_tokens_per_s(self) -> float:
        """Prompt tokens per second, 0 before anything ran."""
        return self.num_prompt_tokens / self.prefill_s if self.prefill_s else 0.0

    @property
    def decode_tokens_per_s(self) -> float:
        """Decoded tokens per second, 0 when there were none."""
        return self.num_decoded_tokens / self.decode_s if self.decode_s else 0.0


def generate(
    runner: Runner, request: Request, *, clock: Callable[[], float] = time.perf_counter
) -> Iterator[Token]:
    """Yields the tokens that follow the prompt.

    Raises:
      SpecError: the prompt is longer than the context; raised before any pass runs.
    """
    check_fits(request.prompt, runner.context)
    return _generate(runner, request, clock)


def follow(runner: Runner, prompt: Sequence[int], tokens: Sequence[int]) -> Iterator[np.ndarray]:
    """Feeds given tokens instead of drawn ones; yields the logits [vocab] that precede each."""
    check_fits([*prompt, *tokens[:-1]], runner.context)
    logits, state = _prefill(runner, prompt)
    yield logits
    for position, token in enumerate(tokens[:-1], start=len(prompt)):
        logits, state = runner.decode(state, token, position)
        yield logits


def check_fits(prompt: Sequence[int], context: int) -> None:
    """Raises `SpecError` when a prompt is longer than the context."""
    if len(prompt) > context:
        raise SpecError(
            f"prompt: it has {len(prompt)} tokens, but the context holds {context}; shorten "
            f"it, or give a larger context"
        )


def _generate(runner: Runner, request: Request, clock: Callable[[], float]) -> Iterator[Token]:
    position = len(request.prompt)
    start_s = clock()
    logits, state = _prefill(runner, request.prompt)
    for num_tokens in range(1, request.max_tokens + 1):
        token = sample(logits, request.sampling, position)
        finish = None
        if token in request.stop:
            finish = Finish.STOP
        elif num_tokens == request.max_tokens:
            finish = Finish.LENGTH
        elif position == runner.context:
            finish = Finish.CONTEXT
        yield Token(id=token, position=position, elapsed_s=clock() - start_s, finish=finish)
        if finish:
            return
        start_s = clock()
        logits, state = runner.decode(state, token, position)
        position += 1


def _prefill(runner: Runner, prompt: Sequence[int]) -> tuple[np.ndarray, Any]:
    """Feeds the prompt chunk by chunk.

    A last chunk that would reach past the context starts earlier instead, and writes rows that are
    there already once more with the same values.
    """
    state, chunk, logits = runner.start(), runner.chunk, np.empty(0)
    for offset in range(0, len(prompt), chunk):
        start = min(offset, runner.context - chunk)
        tokens = prompt[start : start + chunk]
        padded = np.zeros(chunk, np.int32)
        padded[: len(tokens)] = tokens
        logits, state = runner.prefill(state, padded, start, len(tokens) - 1)
    return logits, state
