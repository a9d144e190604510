"""Generation over a runner that counts its passes."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gimlax.errors import SpecError
from gimlax.serving import (
    Finish,
    Request,
    Sampling,
    Statistics,
    Token,
    chunk_length,
    follow,
    generate,
    warm_up,
)
from tests.serving.fakes import FakeRunner

PROMPTS = st.lists(st.integers(0, 10), min_size=1, max_size=32)


def ids(tokens):
    return [token.id for token in tokens]


@given(PROMPTS, st.integers(1, 32), st.sampled_from([0.0, 1.0]))
def test_the_chunk_length_never_changes_the_tokens(prompt, chunk, temperature):
    request = Request(
        prompt=tuple(prompt), max_tokens=6, sampling=Sampling(temperature=temperature, seed=5)
    )
    whole = FakeRunner(chunk=32)
    cut = FakeRunner(chunk=chunk)
    assert ids(generate(cut, request)) == ids(generate(whole, request))
    assert cut.num_prefills == -(-len(prompt) // chunk)


def test_each_token_after_the_first_costs_one_decode():
    runner = FakeRunner()
    tokens = list(generate(runner, Request(prompt=(1, 2, 3), max_tokens=5)))
    assert [token.position for token in tokens] == [3, 4, 5, 6, 7]
    assert (runner.num_prefills, runner.num_decodes) == (1, 4)
    assert [token.finish for token in tokens] == [None] * 4 + [Finish.LENGTH]


def test_a_token_is_handed_on_before_the_next_pass_runs():
    runner = FakeRunner()
    tokens = generate(runner, Request(prompt=(1, 2, 3), max_tokens=5))
    assert (runner.num_prefills, runner.num_decodes) == (0, 0)
    next(tokens)
    assert (runner.num_prefills, runner.num_decodes) == (1, 0)
    next(tokens)
    assert (runner.num_prefills, runner.num_decodes) == (1, 1)


def test_a_stop_token_ends_the_answer():
    free = ids(generate(FakeRunner(), Request(prompt=(1, 2), max_tokens=8)))
    stop = free[3]
    tokens = list(generate(FakeRunner(), Request(prompt=(1, 2), max_tokens=8, stop={stop})))
    assert ids(tokens) == free[: free.index(stop) + 1]
    assert tokens[-1].finish is Finish.STOP


def test_a_full_context_ends_the_answer():
    runner = FakeRunner(context=10)
    tokens = list(generate(runner, Request(prompt=(1,) * 8, max_tokens=50)))
    assert [token.position for token in tokens] == [8, 9, 10]
    assert tokens[-1].finish is Finish.CONTEXT


def test_a_prompt_longer_than_the_context_is_refused_before_any_pass():
    runner = FakeRunner(context=10)
    with pytest.raises(SpecError, match=r"prompt: it has 11 tokens, but the context holds 10"):
        generate(runner, Request(prompt=(1,) * 11))
    assert runner.num_prefills == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"prompt": ()}, "0 tokens"), ({"prompt": (1,), "max_tokens": 0}, "max_tokens is 0")],
)
def test_an_empty_request_is_refused(arguments, message):
    with pytest.raises(SpecError, match=message):
        Request(**arguments)


def test_followed_tokens_give_the_logits_that_they_were_drawn_from():
    request = Request(prompt=(4, 5, 6), max_tokens=7)
    tokens = ids(generate(FakeRunner(), request))
    rows = list(follow(FakeRunner(), request.prompt, tokens))
    assert [int(np.argmax(row)) for row in rows] == tokens


def test_statistics_come_from_the_clock_that_was_given():
    ticks = itertools.count(step=2.0)
    request = Request(prompt=(1, 2, 3), max_tokens=4)
    tokens = list(generate(FakeRunner(), request, clock=lambda: next(ticks)))
    statistics = Statistics.of(request, tokens)
    assert (statistics.prefill_s, statistics.decode_s) == (2.0, 6.0)
    assert statistics.prefill_tokens_per_s == 1.5
    assert statistics.decode_tokens_per_s == 0.5
    twice = Statistics.total([statistics, statistics])
    assert (twice.prefill_s, twice.num_decoded_tokens) == (4.0, 6)
    assert twice.decode_tokens_per_s == 0.5


def test_statistics_of_a_single_token_have_no_decode():
    token = Token(id=1, position=1, elapsed_s=0.5, finish=Finish.LENGTH)
    assert Statistics.of(Request(prompt=(1,)), [token]).decode_tokens_per_s == 0.0


@pytest.mark.parametrize("runner", [FakeRunner(), FakeRunner(context=1, chunk=1)])
def test_warming_up_runs_each_kind_of_pass_once(runner):
    warm_up(runner)
    assert (runner.num_prefills, runner.num_decodes) == (1, 1)


@pytest.mark.parametrize(
    ("num_tokens", "context", "expected"),
    [(1, 256, 16), (16, 256, 16), (17, 256, 32), (300, 256, 256), (300, 2048, 512), (9, 12, 12)],
)
def test_prompts_are_padded_to_few_lengths(num_tokens, context, expected):
    assert chunk_length(num_tokens, context) == expected
