"""Two runners compared position by position."""

import numpy as np

from gimlax.serving import Request, check, compare, generate
from tests.serving.fakes import FakeRunner


class Shifted(FakeRunner):
    """Adds an amount to the logit of token 0 at one position."""

    def __init__(self, *, position, amount):
        super().__init__()
        self.position, self.amount = position, amount

    def _pass(self, state, tokens, position, last):
        logits, state = super()._pass(state, tokens, position, last)
        if position + last == self.position:
            logits[0] += self.amount
        return logits, state


REQUEST = Request(prompt=(1, 2, 3), max_tokens=6)
TOKENS = [token.id for token in generate(FakeRunner(), REQUEST)]


def test_a_runner_agrees_with_itself():
    found = compare(FakeRunner(), FakeRunner(), REQUEST.prompt, TOKENS)
    assert found.agrees
    assert (found.num_equal, found.num_close, found.max_difference) == (6, 0, 0.0)
    assert str(found) == "equal at all 6 positions"


def test_one_wrong_position_is_counted_once():
    found = compare(FakeRunner(), Shifted(position=4, amount=50), REQUEST.prompt, TOKENS)
    assert not found.agrees
    assert (found.num_equal, found.num_close) == (5, 0)
    np.testing.assert_allclose(found.max_difference, 50, rtol=1e-5)
    assert "equal at 5 of 6 positions, 0 near-ties, 1 different" in str(found)


def test_a_near_tie_of_the_reference_is_close():
    found = compare(
        FakeRunner(), Shifted(position=4, amount=50), REQUEST.prompt, TOKENS, margin=1e3
    )
    assert found.agrees
    assert (found.num_equal, found.num_close) == (5, 1)


def test_equal_tokens_need_no_second_run():
    runner = FakeRunner()
    assert check(FakeRunner(), runner, REQUEST, TOKENS).agrees
    assert runner.num_prefills == 0


def test_other_tokens_are_looked_into():
    runner = Shifted(position=4, amount=50)
    tokens = [token.id for token in generate(runner, REQUEST)]
    found = check(FakeRunner(), runner, REQUEST, tokens)
    assert (found.num_positions, found.num_equal) == (6, 5)
