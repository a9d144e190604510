"""The rows of a job, batch by batch, and the line that each becomes.

Batches of rows are the same in every run of a job, so a row has the same companions and comes to
the same: the batch that was interrupted is made again, of which some rows are there already.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from gimlax.errors import SpecError
from gimlax.serving.batch import Answer, RowsRunner, generate_rows
from gimlax.serving.generate import Finish, Request
from gimlax.serving.lines import Asked, Format, Reply, up_to_stop

__all__ = ["answer_rows", "line_of"]


class Stream(Protocol):
    """Turns one token at a time into text."""

    def push(self, token_id: int) -> str:
        """Text that a token completes."""
        ...

    def flush(self) -> str:
        """What is left at the end."""
        ...


def answer_rows(
    runner: RowsRunner,
    rows: Sequence[Request | SpecError],
    num_done: int,
    progress: Callable[[int], None],
) -> Iterator[tuple[int, Answer | SpecError]]:
    """Yields the place of each row that is left with what it came to, faults of a batch first.

    Args:
      runner: one pass of it takes a batch.
      rows: all rows of the job.
      num_done: rows that are there; others of their batch come again.
      progress: called with the number of rows up to which all are done.
    """
    size = runner.num_rows
    for at in range(num_done - num_done % size, len(rows), size):
        group = rows[at : at + size]
        yield from ((at + i, row) for i, row in enumerate(group) if isinstance(row, SpecError))
        wanted = [row if isinstance(row, Request) else None for row in group]
        for answer in generate_rows(runner, wanted):
            yield at + answer.row, answer
        progress(at + len(group))


def line_of(
    form: Format,
    index: int,
    line: str,
    asked: Asked | SpecError,
    answer: Answer | SpecError,
    stream: Stream,
) -> dict[str, Any]:
    """The record of a row.

    Args:
      form: how rows and answers are written.
      index: the place of the row in its file.
      line: what stands there.
      asked: what that asks.
      answer: what it came to.
      stream: a fresh one.
    """
    if isinstance(asked, SpecError) or isinstance(answer, SpecError):
        return form.fault(index, line, str(answer))
    if answer.finish is None:
        return form.fault(index, line, str(answer.fault))
    ended = answer.finish is Finish.STOP
    pieces = [stream.push(token) for token in answer.tokens[: -1 if ended else None]]
    text, num_tokens = up_to_stop([*pieces, stream.flush()], asked.stop)
    reply = Reply(
        text=text,
        finish=answer.finish if num_tokens is None else Finish.STOP,
        num_prompt_tokens=answer.num_prompt_tokens,
        num_new_tokens=min(num_tokens or len(answer.tokens), len(answer.tokens)),
    )
    return form.answer(index, asked, reply)
