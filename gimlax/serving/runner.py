"""What generation needs from a model: a fresh state, and two kinds of pass over it.

A `Runner` is the seam between serving and whatever computes: compiled stages on several meshes, one
plain `jax.jit`, a simulation. Shapes are static: a prompt is fed in chunks of `chunk` tokens, the
last one padded, then tokens one by one. Padding writes rows to the state that lie beyond every true
position; they are never attended to and are overwritten as the sequence grows.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np


class Runner(Protocol):
    """One sequence on one model. A state is used once: each pass returns the next one."""

    @property
    def context(self) -> int:
        """Positions that a state holds."""
        ...

    @property
    def chunk(self) -> int:
        """Tokens that one prefill pass takes, at most `context`."""
        ...

    def start(self) -> Any:
        """A fresh state, with nothing in it."""
        ...

    def prefill(
        self, state: Any, tokens: np.ndarray, position: int, last: int
    ) -> tuple[np.ndarray, Any]:
        """Feeds `tokens` (int32 [chunk]) at `position`; returns the logits of row `last`."""
        ...

    def decode(self, state: Any, token: int, position: int) -> tuple[np.ndarray, Any]:
        """Feeds one token at `position`; returns its logits ([vocab], float32)."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRunner:
    """A `Runner` over two callables of the models' signature, compiled stages and `jax.jit` alike.

    Attributes:
      prefill_step: (params, cache, tokens [1, chunk], position, last) -> (logits, cache).
      decode_step: (params, cache, tokens [1, 1], position) -> (logits, cache), both [1, 1, vocab].
      params: what both take first, placed already.
      new_cache: makes a fresh cache for one sequence.
    """

    prefill_step: Callable[..., tuple[Any, Any]]
    decode_step: Callable[..., tuple[Any, Any]]
    params: Any
    new_cache: Callable[[], Any]
    context: int
    chunk: int

    def start(self) -> Any:
        return self.new_cache()

    def prefill(
        self, state: Any, tokens: np.ndarray, position: int, last: int
    ) -> tuple[np.ndarray, Any]:
        logits, state = self.prefill_step(
            self.params, state, tokens[None], np.int32(position), np.int32(last)
        )
        return np.asarray(logits)[0, 0], state

    def decode(self, state: Any, token: int, position: int) -> tuple[np.ndarray, Any]:
        tokens = np.full((1, 1), token, np.int32)
        logits, state = self.decode_step(self.params, state, tokens, np.int32(position))
        return np.asarray(logits)[0, 0], state


def warm_up(runner: Runner) -> None:
    """Runs each kind of pass once on a state of its own, so that no measured pass is the first."""
    tokens = np.zeros(runner.chunk, np.int32)
    _, state = runner.prefill(runner.start(), tokens, 0, 0)
    runner.decode(state, 0, min(1, runner.context - 1))


def chunk_length(num_tokens: int, context: int, *, longest: int = 512) -> int:
    """The prefill length for prompts of up to `num_tokens`: a power of two, so few are compiled."""
    return min(max(16, 1 << max(num_tokens - 1, 0).bit_length()), longest, context)
