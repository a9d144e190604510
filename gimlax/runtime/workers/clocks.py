"""How far the clock of a worker's host is ahead of this one's: each host counts from its own start.

A clock that is read between two looks at this one is known to within half of the time between
them, so the shortest of several round trips tells most (the estimate of NTP, RFC 5905, section 8).
Where the two may be equal they are taken to be, as they are on one host. Units: seconds.
"""

import time
from collections.abc import Callable

__all__ = ["ahead_by"]

_TRIPS = 8


def ahead_by(read: Callable[[], float], here: Callable[[], float] | None = None) -> float:
    """How much a clock shows more than the one here.

    Args:
        read: asks for it.
        here: `time.perf_counter` by default.
    """
    here = here or time.perf_counter
    trips: list[tuple[float, float]] = []
    for _ in range(_TRIPS):
        sent_s = here()
        there_s = read()
        came_s = here()
        trips.append((came_s - sent_s, there_s - (sent_s + came_s) / 2))
    took_s, ahead_s = min(trips)
    return 0.0 if abs(ahead_s) <= took_s / 2 else ahead_s
