"""Embeddings of many texts: rows of token ids in batches of few shapes, several in flight.

Shapes are static, so a batch is padded to one of a few lengths, and each length is a phase of one
workload: they share parameters, cut and placement. Rows are sorted by length before they are put
together, because what is padded is computed like everything else.
"""

import itertools
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from gimlax.errors import SpecError
from gimlax.graph import Workload, trace

SHORTEST = 16  # tokens; shorter lengths save next to nothing


class Pending(Protocol):
    """A pass under way."""

    def result(self) -> Any:
        """What it gives, once it is there."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Rows that go through together: `index` says which, the arrays are padded with zeros."""

    index: tuple[int, ...]
    tokens: np.ndarray  # int32 [batch, length]
    mask: np.ndarray  # int32 [batch, length]

    @property
    def length(self) -> int:
        return self.tokens.shape[1]


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderModel:
    """What serving needs to know of an encoder of sentences.

    Attributes:
      apply: (params, tokens [batch, length], mask [batch, length]) -> [batch, width].
      params: parameters, or their `jax.ShapeDtypeStruct`s where only a plan is wanted.
      batch: rows of one pass.
      max_tokens: of the longest row.
    """

    apply: Callable[..., Any]
    params: Any
    batch: int
    max_tokens: int

    def __post_init__(self) -> None:
        if self.batch < 1 or self.max_tokens < 1:
            raise SpecError(
                f"batch is {self.batch} rows of up to {self.max_tokens} tokens; give 1 or more"
            )

    def batches(self, rows: Sequence[np.ndarray]) -> list[Batch]:
        """The rows, each int32 [tokens], in full batches of as equal lengths as can be."""
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        groups = (order[i : i + self.batch] for i in range(0, len(order), self.batch))
        return [self._batch(rows, group) for group in groups]

    def _batch(self, rows: Sequence[np.ndarray], group: Sequence[int]) -> Batch:
        length = self.length_for(max(len(rows[i]) for i in group))
        tokens = np.zeros((self.batch, length), np.int32)
        mask = np.zeros((self.batch, length), np.int32)
        for place, i in enumerate(group):
            tokens[place, : len(rows[i])] = rows[i]
            mask[place, : len(rows[i])] = 1
        return Batch(index=tuple(group), tokens=tokens, mask=mask)

    def length_for(self, num_tokens: int) -> int:
        """What a row of so many tokens is padded to: a power of two, or `max_tokens`."""
        if num_tokens > self.max_tokens:
            raise SpecError(
                f"a row has {num_tokens} tokens, and {self.max_tokens} are the most; cut it"
            )
        return min(max(SHORTEST, 1 << max(num_tokens - 1, 0).bit_length()), self.max_tokens)

    def workload(self, batches: Sequence[Batch]) -> Workload:
        """A phase for each length among the batches, called as often as there are such."""
        counts = Counter(batch.length for batch in batches)
        return Workload(
            {phase_name(length): self._trace(length) for length in sorted(counts)},
            calls={phase_name(length): counts[length] for length in counts},
        )

    def _trace(self, length: int) -> Any:
        rows = jax.ShapeDtypeStruct((self.batch, length), jnp.int32)
        return trace(self.apply, self.params, rows, rows, resident=(0,), name=phase_name(length))


def phase_name(length: int) -> str:
    """The phase of batches that are padded to `length`."""
    return f"length_{length}"


def embed(
    batches: Sequence[Batch],
    steps: Mapping[str, Any],
    params: Any,
    *,
    in_flight: int = 4,
) -> Iterator[tuple[Batch, np.ndarray]]:
    """Yields each batch with the embeddings of its rows, float32 [rows, width], in order.

    Args:
      batches: as `EncoderModel.batches` makes them.
      steps: compiled phases by name, with `submit`.
      params: as the phases placed them.
      in_flight: passes that are under way at once.
    """
    waiting: deque[tuple[Batch, Pending]] = deque()
    for batch in itertools.chain(batches, itertools.repeat(None)):
        if batch is not None:
            step = steps[phase_name(batch.length)]
            waiting.append((batch, step.submit(params, batch.tokens, batch.mask)))
        elif not waiting:
            return
        if batch is None or len(waiting) >= in_flight:
            done, pending = waiting.popleft()
            yield done, np.asarray(pending.result(), np.float32)[: len(done.index)]
