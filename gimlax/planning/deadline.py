"""Until when a search may go on: a question it asks now and then, so that it reads no clock."""

from collections.abc import Callable

IsLate = Callable[[], bool]


class OutOfTime(Exception):
    """A search was stopped before it had proved anything; it never reaches a caller."""


def check_time(is_late: IsLate | None) -> None:
    """Asks whether it is late, if there is a limit.

    Raises:
        OutOfTime: it is.
    """
    if is_late is not None and is_late():
        raise OutOfTime
