"""Rows that come in any order, into a journal in order, until too many of them are errors."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from gimlax.errors import SpecError
from gimlax.serving.journal import Journal


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """What a journal holds in the end; `stopped` says whether more errors came than are allowed."""

    num_rows: int
    num_errors: int
    stopped: bool


def shard_of(shard: str, num_rows: int) -> tuple[int, int]:
    """First row of a shard i/n, and the one behind its last; shards in order are the whole.

    Raises:
      SpecError: it is not of that form, or i is not from 0 to n - 1.
    """
    part, _, of = shard.partition("/")
    if not (part.isdecimal() and of.isdecimal() and int(part) < int(of)):
        raise SpecError(f"shard is {shard[:40]!r}; give i/n with i from 0 to n - 1, as in 0/4")
    return int(part) * num_rows // int(of), (int(part) + 1) * num_rows // int(of)


def keep(
    journal: Journal,
    found: Iterable[tuple[int, Mapping[str, Any]]],
    *,
    is_error: Callable[[Mapping[str, Any]], bool],
    max_errors: int | None = None,
) -> Kept:
    """Appends rows as soon as all before them are there.

    Args:
      journal: may hold rows already, whose errors count too.
      found: (place in the job, row); places that the journal has are passed over.
      is_error: whether a row is the record of an error.
      max_errors: stop when there are more; None for any number.
    """
    num_errors = sum(map(is_error, journal.read()))
    waiting: dict[int, Mapping[str, Any]] = {}

    def too_many() -> bool:
        return max_errors is not None and num_errors > max_errors

    for place, row in () if too_many() else found:
        waiting[place] = row
        while len(journal) in waiting and not too_many():
            ready = waiting.pop(len(journal))
            journal.append([ready])
            num_errors += is_error(ready)
        if too_many():
            break
    return Kept(num_rows=len(journal), num_errors=num_errors, stopped=too_many())
