"""Rows in any order go into a journal in order, and stop at too many errors."""

import hypothesis
import hypothesis.strategies as st

from gimlax.serving import Journal, Kept, keep


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
