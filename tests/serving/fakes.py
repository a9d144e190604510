"""A runner that needs no model: the logits are a fixed function of the tokens before them."""

import dataclasses

import numpy as np


@dataclasses.dataclass
class FakeState:
    """Token per position as a cache would hold them; usable once."""

    tokens: np.ndarray
    used: bool = False


@dataclasses.dataclass
class FakeRunner:
    """Counts its passes and fails when a state is used twice or a row is written outside it."""

    context: int = 32
    chunk: int = 8
    vocab: int = 11
    noise: float = 0.0
    num_prefills: int = 0
    num_decodes: int = 0

    def start(self):
        return FakeState(np.full(self.context, -1))

    def prefill(self, state, tokens, position, last):
        self.num_prefills += 1
        assert tokens.shape == (self.chunk,) and tokens.dtype == np.int32
        return self._pass(state, tokens, position, last)

    def decode(self, state, token, position):
        self.num_decodes += 1
        return self._pass(state, np.array([token]), position, 0)

    def _pass(self, state, tokens, position, last):
        assert not state.used, "state used twice"
        assert 0 <= position and position + len(tokens) <= self.context, "outside the context"
        state.used = True
        held = state.tokens.copy()
        held[position : position + len(tokens)] = tokens
        seen = held[: position + last + 1]
        assert (seen >= 0).all(), "a position was skipped"
        rng = np.random.default_rng(seen.tolist())
        logits = rng.normal(size=self.vocab) + self.noise * np.arange(self.vocab)
        return logits.astype(np.float32), FakeState(held)


@dataclasses.dataclass
class FakeRowsRunner:
    """Several rows, each on a runner of its own; a row at position 0 begins anew."""

    num_rows: int = 3
    context: int = 32
    chunk: int = 8
    noise: float = 0.0
    num_prefills: int = 0
    num_decodes: int = 0

    def start(self):
        return [FakeState(np.full(self.context, -1)) for _ in range(self.num_rows)]

    def prefill(self, state, tokens, position, last):
        self.num_prefills += 1
        assert tokens.shape == (self.num_rows, self.chunk)
        return self._pass(state, tokens, position, last)

    def decode(self, state, tokens, position):
        self.num_decodes += 1
        return self._pass(state, tokens[:, None], position, np.zeros_like(position))

    def _pass(self, state, tokens, position, last):
        assert {a.dtype for a in (tokens, position, last)} == {np.dtype(np.int32)}
        one = FakeRunner(context=self.context, chunk=self.chunk, noise=self.noise)
        rows = [
            one._pass(one.start() if at == 0 else held, row, at, end)
            for held, row, at, end in zip(state, tokens, position, last, strict=True)
        ]
        return np.stack([logits for logits, _ in rows]), [held for _, held in rows]
