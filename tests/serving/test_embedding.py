"""Many rows in batches of few shapes, and rows on the disk that a killed job goes on from."""

import json
from concurrent.futures import Future

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gimlax.errors import SpecError
from gimlax.serving import EncoderModel, Rows, embed, write_jsonl, write_npy


def summed(params, tokens, mask):
    """Of a row its sum, its number of tokens, and the length it was padded to."""
    length = 0 * tokens.sum(axis=1) + tokens.shape[1]
    return params * jnp.stack([(tokens * mask).sum(axis=1), mask.sum(axis=1), length], axis=1)


def model_of(batch=4, max_tokens=40):
    return EncoderModel(apply=summed, params=np.float32(1), batch=batch, max_tokens=max_tokens)


class Steps(dict):
    """Phases that compute at once, and count what is under way."""

    def __init__(self):
        super().__init__()
        self.under_way, self.most = 0, 0

    def __missing__(self, name):
        steps = self

        class Step:
            def submit(self, params, tokens, mask):
                assert name == f"length_{tokens.shape[1]}"
                steps.under_way += 1
                steps.most = max(steps.most, steps.under_way)

                class Pass(Future):
                    def result(self):
                        steps.under_way -= 1
                        return summed(params, tokens, mask)

                return Pass()

        return Step()


@given(
    lengths=st.lists(st.integers(1, 40), max_size=30),
    batch=st.integers(1, 5),
    in_flight=st.integers(1, 4),
)
def test_every_row_comes_back_once_and_is_its_own(lengths, batch, in_flight):
    rows = [np.full(length, i + 1, np.int32) for i, length in enumerate(lengths)]
    model = model_of(batch)
    batches = model.batches(rows)
    assert sorted(i for b in batches for i in b.index) == list(range(len(rows)))
    assert len(batches) == -(-len(rows) // batch)
    steps, order = Steps(), []
    for group, found in embed(batches, steps, np.float32(1), in_flight=in_flight):
        order.append(group.index)
        assert found.dtype == np.float32 and len(found) == len(group.index)
        for i, row in zip(group.index, found, strict=True):
            assert row[:2].tolist() == [(i + 1) * lengths[i], lengths[i]]
            assert row[2] in (16, 32, 40) and row[2] >= lengths[i]
    assert order == [batch.index for batch in batches]
    assert steps.under_way == 0 and steps.most <= in_flight


def test_rows_of_like_length_go_together():
    lengths = [40, 3, 17, 2, 39, 16, 20, 1]
    rows = [np.ones(length, np.int32) for length in lengths]
    batches = model_of().batches(rows)
    assert [batch.length for batch in batches] == [16, 40]
    workload = model_of().workload(batches)
    assert dict(workload.calls) == {"length_16": 1, "length_40": 1}


def test_what_cannot_be_is_refused():
    with pytest.raises(SpecError, match="batch is 0 rows"):
        model_of(batch=0)
    with pytest.raises(SpecError, match="41 tokens, and 40 are the most"):
        model_of().batches([np.ones(41, np.int32)])


BELONGS = {"input": "abc"}


@pytest.fixture(name="output")
def output_fixture(tmp_path):
    return tmp_path / "out.npy"


def some_rows(first, count):
    return np.arange(first * 3, (first + count) * 3, dtype=np.float32).reshape(count, 3) / 7


def test_rows_are_gone_on_with_wherever_a_kill_cut_them(output):
    rows = Rows(output, belongs=BELONGS, width=3)
    rows.append(some_rows(0, 2))
    rows.append(some_rows(2, 3))
    rows.close()
    whole = rows.path.read_bytes()
    start = len(whole) - 5 * 12
    for kept in range(len(whole) + 1):
        rows.path.write_bytes(whole[:kept])
        again = Rows(output, belongs=BELONGS, width=3)
        assert len(again) == max(0, (kept - start) // 12)
        again.append(some_rows(len(again), 6 - len(again)))
        np.testing.assert_array_equal(again.read(), some_rows(0, 6))
        again.close()


@pytest.mark.parametrize("count", [0, 1, 5])
def test_the_output_is_there_whole_and_the_rows_are_gone(output, count):
    rows = Rows(output, belongs=BELONGS, width=3)
    rows.append(some_rows(0, count))

    def fails(file, found):
        file.write(b"half")
        raise OSError("full")

    with pytest.raises(OSError, match="full"):
        rows.finish(fails)
    assert not output.exists() and len(rows) == count
    rows.finish(write_npy)
    np.testing.assert_array_equal(np.load(output), some_rows(0, count))
    assert [path.name for path in output.parent.iterdir()] == [output.name]


def test_json_lines_hold_every_bit_of_a_float32(output):
    rows = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    with output.open("wb") as file:
        write_jsonl(file, rows)
    found = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row["index"] for row in found] == list(range(50))
    np.testing.assert_array_equal(np.float32([row["embedding"] for row in found]), rows)


@pytest.mark.parametrize("other", [{"belongs": {"input": "def"}}, {"width": 4}])
def test_rows_of_another_job_are_refused(output, other):
    Rows(output, belongs=BELONGS, width=3).close()
    with pytest.raises(SpecError, match=r"rows of another job .* delete it"):
        Rows(output, **{"belongs": BELONGS, "width": 3} | other)


def test_a_place_that_cannot_be_written_is_said(tmp_path):
    with pytest.raises(SpecError, match="cannot be written"):
        Rows(tmp_path / "none" / "out.npy", belongs=BELONGS, width=3)
