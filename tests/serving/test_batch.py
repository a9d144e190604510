"""Rows at once say what each says alone."""

import jax
import numpy as np
import pytest

from gimlax import models
from gimlax.errors import SpecError
from gimlax.serving import Finish, Request, Sampling, TextModel, generate, generate_rows
from tests import specimens
from tests.serving.fakes import FakeRowsRunner, FakeRunner
from tests.serving.test_text import CONFIG

REQUESTS = {
    "equal lengths": [(3, 5, 2), (3, 5, 3), (3, 5, 4)],
    "passes": [(1,), range(17), range(8)],
    "to the end of the context": [range(29), range(27), (4,)],
    "places nobody asked for": [None, (9, 1), None],
}


def alone(runner, request):
    tokens = list(generate(runner, request))
    return tuple(token.id for token in tokens), tokens[-1].finish


@pytest.mark.parametrize("name", REQUESTS)
@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=1.0, top_p=0.9, seed=4)])
def test_rows_say_what_each_says_alone(name, sampling):
    requests = [
        p
        and Request(
            prompt=tuple(n % 11 for n in p),
            max_tokens=5 + i,
            sampling=sampling,
            stop=frozenset({7}),
        )
        for i, p in enumerate(REQUESTS[name])
    ]
    runner = FakeRowsRunner(context=29)
    found = {a.row: (a.tokens, a.finish) for a in generate_rows(runner, requests)}
    expected = {i: alone(FakeRunner(context=29), r) for i, r in enumerate(requests) if r}
    assert found == expected
    longest = max(len(r.prompt) for r in requests if r)
    assert runner.num_prefills == -(-longest // runner.chunk)
    assert runner.num_decodes == max(len(tokens) for tokens, _ in found.values()) - 1


def test_a_row_is_handed_on_as_it_ends():
    requests = [Request(prompt=(1,), max_tokens=n) for n in (9, 2, 4)]
    runner = FakeRowsRunner()
    seen = [(a.row, len(a.tokens), runner.num_decodes) for a in generate_rows(runner, requests)]
    assert seen == [(1, 2, 1), (2, 4, 3), (0, 9, 8)]


def test_nobody_asked():
    runner = FakeRowsRunner()
    assert list(generate_rows(runner, [None, None])) == []
    assert runner.num_prefills == 0


def test_a_row_that_is_no_number_ends_alone():
    class Broken(FakeRowsRunner):
        def decode(self, state, tokens, position):
            logits, state = super().decode(state, tokens, position)
            logits[1] = np.nan if self.num_decodes == 2 else logits[1]
            return logits, state

    requests = [Request(prompt=(i,), max_tokens=6) for i in range(3)]
    found = {a.row: a for a in generate_rows(Broken(), requests)}
    assert "logits at position 3" in found[1].fault and found[1].finish is None
    assert {found[i].finish for i in (0, 2)} == {Finish.LENGTH}
    assert found[1].tokens == alone(FakeRunner(), requests[1])[0][:2]


def test_what_does_not_fit_is_refused_before_any_pass():
    runner = FakeRowsRunner()
    with pytest.raises(SpecError, match="4 requests, and one pass takes 3 rows"):
        generate_rows(runner, [None] * 4)
    with pytest.raises(SpecError, match="33 tokens, but the context holds 32"):
        generate_rows(runner, [Request(prompt=(1,) * 33)])
    assert runner.num_prefills == 0


def llama(batch):
    return TextModel(
        apply=models.llama_apply(CONFIG),
        params=models.init_params(CONFIG, seed=1),
        cache=models.abstract_cache(CONFIG, batch or 1, 24),
        context=24,
        chunk=8,
        batch=batch,
    )


MODEL_REQUESTS = [
    Request(prompt=tuple((7 * i + n) % 61 for i in range(n)), max_tokens=m)
    for n, m in ((19, 5), (11, 9), (8, 2))
]


def test_a_model_says_in_rows_what_it_says_alone():
    rows, one = llama(4).uncut_rows(), llama(None).uncut()
    found = {a.row: (a.tokens, a.finish) for a in generate_rows(rows, MODEL_REQUESTS)}
    assert found == {i: alone(one, request) for i, request in enumerate(MODEL_REQUESTS)}
    traced = llama(4).workload().phases["decode"]
    assert [o.aval.shape for o in traced.outputs if o.carried is None] == [(4, 1, 61)]


def test_rows_of_a_recurrent_model_do_not_feel_their_companions():
    specimen = specimens.LANGUAGE["mamba2"]()
    rows = TextModel(
        apply=specimen.apply,
        params=specimen.params,
        cache=jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct((3, *leaf.shape[1:]), leaf.dtype), specimen.state
        ),
        context=24,
        chunk=8,
        recurrent=True,
        batch=3,
    ).uncut_rows()
    together = {a.row: a.tokens for a in generate_rows(rows, MODEL_REQUESTS)}
    for row, request in enumerate(MODEL_REQUESTS):
        (answer,) = generate_rows(rows, [None] * row + [request])
        assert answer.tokens == together[row]


def test_one_at_a_time_and_rows_are_not_mixed_up():
    with pytest.raises(SpecError, match="one sequence at a time; give it a `batch`"):
        llama(None).uncut_rows()
    with pytest.raises(SpecError, match="runs 2 rows at once"):
        llama(2).uncut()
