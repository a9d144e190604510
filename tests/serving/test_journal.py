"""A journal repeats and loses no row, at whatever byte a run of the job ends."""

import json
import os

import hypothesis
import hypothesis.strategies as st
import pytest

from gimlax.errors import SpecError
from gimlax.serving import Journal

BELONGS = {"input": "abc", "max_tokens": 8}
TEXTS = ["one", "", "zwei\nthree", "é🎉", "}{"]
ROWS = [{"index": i, "text": text} for i, text in enumerate(TEXTS)]


def work(output, rows, *, num=None, at_once=1, belongs=BELONGS, write=None):
    """One run of the job, which is stopped after `num` rows; what it did, by row."""
    journal = Journal(output, belongs=belongs)
    done = []
    if journal.complete:
        return done
    todo = rows[len(journal) :][:num]
    for start in range(0, len(todo), at_once):
        journal.append(todo[start : start + at_once])
        done += todo[start : start + at_once]
    if len(journal) == len(rows):
        journal.finish(write)
    journal.close()
    return done


def read(output):
    return [json.loads(line) for line in output.read_text().splitlines()]


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_rows_become_the_output_and_a_run_that_comes_later_finds_nothing_to_do(tmp_path):
    output = tmp_path / "out.jsonl"
    assert work(output, ROWS) == ROWS
    assert read(output) == ROWS
    assert names(tmp_path) == ["out.jsonl", "out.jsonl.job"]
    before = output.read_bytes()
    assert work(output, ROWS) == []
    assert output.read_bytes() == before
    assert list(Journal(output, belongs=BELONGS).read()) == ROWS
    assert names(tmp_path) == ["out.jsonl", "out.jsonl.job"]


def test_a_run_that_ends_at_any_byte_is_gone_on_with(tmp_path):
    whole = tmp_path / "whole.jsonl"
    work(whole, ROWS)
    held, job = whole.read_bytes(), (tmp_path / "whole.jsonl.job").read_bytes()
    for end in range(len(held) + 1):
        output = tmp_path / f"{end}.jsonl"
        output.with_name(f"{end}.jsonl.job").write_bytes(job)
        output.with_name(f"{end}.jsonl.part").write_bytes(held[:end])
        assert work(output, ROWS) == ROWS[held[:end].count(b"\n") :]
        assert output.read_bytes() == held


@hypothesis.given(
    texts=st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=6), max_size=6),
    ends=st.lists(st.tuples(st.integers(0, 6), st.integers(0, 40)), max_size=4),
    at_once=st.integers(1, 3),
)
def test_any_row_of_kills_gives_what_an_undisturbed_run_gives(
    tmp_path_factory, texts, ends, at_once
):
    folder = tmp_path_factory.mktemp("job")
    rows = [{"index": i, "text": text} for i, text in enumerate(texts)]
    work(folder / "whole.jsonl", rows)
    output = folder / "out.jsonl"
    done = []
    for num, lost_bytes in ends:  # the last of the bytes that a run wrote never reach the disk
        done += work(output, rows, num=num, at_once=at_once)
        part = output.with_name("out.jsonl.part")
        if part.exists():
            held = part.read_bytes()
            part.write_bytes(held[: max(0, len(held) - lost_bytes)])
            done = done[: part.read_bytes().count(b"\n")]
    done += work(output, rows, at_once=at_once)
    assert done == rows
    assert output.read_bytes() == (folder / "whole.jsonl").read_bytes()


def test_a_run_that_ends_between_steps_of_the_end_is_gone_on_with(tmp_path):
    def write(file, rows):
        file.write(b"".join(json.dumps(row).encode() for row in rows))

    output = tmp_path / "out.bin"
    part = tmp_path / "out.bin.part"
    work(output, ROWS, num=3)
    kept = part.read_bytes()
    assert work(output, ROWS, write=write) == ROWS[3:]
    made = output.read_bytes()
    assert names(tmp_path) == ["out.bin", "out.bin.job"]
    # the output is in its place and the lines are not gone yet
    part.write_bytes(b"".join(json.dumps(row).encode() + b"\n" for row in ROWS))
    assert work(output, ROWS, write=write) == []
    assert output.read_bytes() == made
    assert names(tmp_path) == ["out.bin", "out.bin.job"]
    # before that: half of the output under another name
    output.unlink()
    part.write_bytes(kept)
    (tmp_path / "out.bin.new").write_bytes(made[:9])
    assert work(output, ROWS, write=write) == ROWS[3:]
    assert output.read_bytes() == made
    assert names(tmp_path) == ["out.bin", "out.bin.job"]


def test_a_run_that_ends_as_it_begins_leaves_nothing_in_the_way(tmp_path):
    output = tmp_path / "out.jsonl"
    (tmp_path / "out.jsonl.part").write_bytes(b"")
    (tmp_path / "out.jsonl.job.new").write_bytes(b'{"in')
    assert work(output, ROWS) == ROWS
    other = tmp_path / "other.jsonl"
    Journal(other, belongs=BELONGS).close()
    assert names(tmp_path) == ["other.jsonl.job", "out.jsonl", "out.jsonl.job"]
    assert work(other, ROWS, belongs={"input": "another"}) == ROWS  # nothing was there yet


def test_rows_of_another_job_are_refused_with_what_differs(tmp_path):
    output = tmp_path / "out.jsonl"
    for num in (2, None):
        work(output, ROWS, num=num)
        with pytest.raises(SpecError, match="of another job: its max_tokens is 8, not 9"):
            Journal(output, belongs=BELONGS | {"max_tokens": 9})
    assert read(output) == ROWS


@pytest.mark.parametrize("name", ["out.jsonl", "out.jsonl.part"])
def test_a_file_that_no_job_made_is_left_alone(tmp_path, name):
    (tmp_path / name).write_text("mine\n")
    with pytest.raises(SpecError, match=rf"{name}' is there already, and no 'out.jsonl.job'"):
        Journal(tmp_path / "out.jsonl", belongs=BELONGS)
    assert (tmp_path / name).read_text() == "mine\n"
    assert names(tmp_path) == [name]


def test_every_run_of_a_job_says_when_it_began(tmp_path):
    output, job = tmp_path / "out.jsonl", tmp_path / "out.jsonl.job"
    work(output, ROWS, num=2)
    os.utime(job, (1234.5, 1234.5))
    for num in (1, None, None):
        journal = Journal(output, belongs=BELONGS)
        assert journal.began_s == 1234
        journal.close()
        work(output, ROWS, num=num)


def test_one_run_at_a_time(tmp_path):
    output = tmp_path / "out.jsonl"
    first = Journal(output, belongs=BELONGS)
    with pytest.raises(SpecError, match=r"out.jsonl.part' is being written by another run"):
        Journal(output, belongs=BELONGS)
    first.append(ROWS[:1])
    first.close()
    assert len(Journal(output, belongs=BELONGS)) == 1


def test_a_damaged_line_is_named(tmp_path):
    output = tmp_path / "out.jsonl"
    work(output, ROWS, num=3)
    part = tmp_path / "out.jsonl.part"
    part.write_bytes(part.read_bytes().replace(b'{"index": 1', b'{"index" 1'))
    journal = Journal(output, belongs=BELONGS)
    with pytest.raises(SpecError, match=r"out.jsonl.part', line 2 is damaged"):
        list(journal.read())


def test_what_cannot_be_written_is_said(tmp_path):
    with pytest.raises(SpecError, match=r"none/out.jsonl.part' cannot be written: No such file"):
        Journal(tmp_path / "none" / "out.jsonl", belongs=BELONGS)
    (tmp_path / "out.jsonl.job").write_text("[]")
    (tmp_path / "out.jsonl").write_text("{}\n")
    with pytest.raises(SpecError, match=r"out.jsonl.job' is no description of a job, but a list"):
        Journal(tmp_path / "out.jsonl", belongs=BELONGS)
