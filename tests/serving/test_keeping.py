"""Rows in any order go into a journal in order, and stop at too many errors."""

import hypothesis
import hypothesis.strategies as st
import pytest

from gimlax.errors import SpecError
from gimlax.serving import Journal, Kept, keep, shard_of


def is_error(row):
    return row["bad"]


@hypothesis.given(
    order=st.permutations(range(6)),
    bad=st.sets(st.integers(0, 5)),
    there=st.integers(0, 6),
    max_errors=st.none() | st.integers(0, 3),
)
def test_rows_come_in_order_until_there_are_too_many_errors(
    tmp_path_factory, order, bad, there, max_errors
):
    rows = [{"index": i, "bad": i in bad} for i in range(6)]
    journal = Journal(tmp_path_factory.mktemp("job") / "out.jsonl", belongs={})
    journal.append(rows[:there])
    kept = keep(journal, ((i, rows[i]) for i in order), is_error=is_error, max_errors=max_errors)
    end, limit = there, float("inf") if max_errors is None else max_errors
    while end < 6 and sum(map(is_error, rows[:end])) <= limit:
        end += 1
    assert list(journal.read()) == rows[:end]
    num_errors = sum(map(is_error, rows[:end]))
    assert kept == Kept(num_rows=end, num_errors=num_errors, stopped=num_errors > limit)
    journal.close()


def test_a_job_that_had_too_many_errors_computes_nothing(tmp_path):
    journal = Journal(tmp_path / "out.jsonl", belongs={})
    journal.append([{"bad": True}])

    def never():
        raise AssertionError
        yield

    assert keep(journal, never(), is_error=is_error, max_errors=0).stopped


@pytest.mark.parametrize("num_rows", [0, 1, 7, 100])
@pytest.mark.parametrize("of", [1, 3, 8])
def test_shards_in_order_are_the_whole(num_rows, of):
    parts = [shard_of(f"{i}/{of}", num_rows) for i in range(of)]
    assert [row for start, end in parts for row in range(start, end)] == list(range(num_rows))
    sizes = [end - start for start, end in parts]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("shard", ["4/4", "1", "-1/2", "0/0", "a/b", "1/2/3", "\u00b2/3"])
def test_a_shard_that_is_none_is_refused(shard):
    with pytest.raises(SpecError, match=r"give i/n with i from 0 to n - 1"):
        shard_of(shard, 9)
