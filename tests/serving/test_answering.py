"""Rows of a job come to the same from wherever it goes on, and each becomes a line."""

import dataclasses

import pytest

from gimlax.errors import SpecError
from gimlax.serving import Answer, Asked, Finish, Request, TextLines, answer_rows, line_of
from tests.serving.fakes import FakeRowsRunner

BAD = SpecError("bad row")
ROWS = [Request(prompt=(n, 2), max_tokens=1 + n % 4) for n in range(1, 9)]
ROWS[1:1] = [BAD]
ROWS[6:6] = [BAD]


@pytest.mark.parametrize("num_done", range(len(ROWS) + 1))
def test_a_job_goes_on_with_the_batch_that_was_interrupted(num_done):
    whole = dict(answer_rows(FakeRowsRunner(), ROWS, 0, lambda done: None))
    assert sorted(whole) == list(range(len(ROWS)))
    assert [place for place, row in whole.items() if row is BAD] == [1, 6]
    seen = []
    found = dict(answer_rows(FakeRowsRunner(), ROWS, num_done, seen.append))
    assert sorted(found) == list(range(num_done - num_done % 3, len(ROWS)))
    assert seen == [done for done in (3, 6, 9, 10) if done > num_done - num_done % 3]
    for place, answer in found.items():
        assert answer == whole[place]


class Letters:
    """A letter a token, and one that is held back."""

    def push(self, token_id):
        return chr(ord("a") + token_id)

    def flush(self):
        return "."


ANSWER = Answer(row=0, num_prompt_tokens=3, tokens=(0, 1, 2), finish=Finish.LENGTH)
LINES = {
    "all tokens": (Asked(prompt=""), {}, ("abc.", "length", 3)),
    "an end that is no text": (Asked(prompt=""), {"finish": Finish.STOP}, ("ab.", "stop", 3)),
    "a text that ends it": (Asked(prompt="", stop=("b",)), {}, ("a", "stop", 2)),
    "what is left ends it": (Asked(prompt="", stop=(".",)), {}, ("abc", "stop", 3)),
}


@pytest.mark.parametrize("name", LINES)
def test_an_answer_becomes_a_line(name):
    asked, changed, (text, finish, num_tokens) = LINES[name]
    answer = dataclasses.replace(ANSWER, **changed)
    row = line_of(TextLines(), 7, "hello", asked, answer, Letters())
    assert (row["index"], row["text"], row["finish"]) == (7, text, finish)
    assert (row["num_prompt_tokens"], row["num_new_tokens"]) == (3, num_tokens)


def test_faults_of_a_row_and_of_its_answer_become_lines():
    failed = dataclasses.replace(ANSWER, finish=None, fault="no numbers")
    for asked, answer, words in ((BAD, BAD, "bad row"), (Asked(prompt=""), failed, "no numbers")):
        row = line_of(TextLines(), 7, "hello", asked, answer, Letters())
        assert row == {"index": 7, "error": words}
