"""Local search over the order of meshes, for clusters of too many kinds to try all orders.

A neighbour puts another mesh in place of one, adds one, leaves one out, or exchanges two. The best
cuts for a given order are found exactly, so only the order is searched; it stops where no neighbour
is better, after so many tries or when it is late. Chosen over moving cuts as well: an order has few
neighbours, and its best cuts cost milliseconds.
"""

from collections.abc import Callable, Iterator, Sequence

Order = tuple[int, ...]


def improve(
    start: Order,
    value: float,
    solve: Callable[[Order], float | None],
    num_meshes: int,
    *,
    keep_length: bool,
    most_tries: int,
    is_late: Callable[[], bool],
) -> Order:
    """The best order that is found by going from neighbour to neighbour.

    Args:
        start: an order that is possible.
        value: of it.
        solve: the value of an order, None if it is not possible.
        num_meshes: to choose from.
        keep_length: whether the number of stages is fixed.
        most_tries: how often `solve` may be asked.
        is_late: asked before each of them; once it is late the best so far is the answer.
    """
    best, tried = start, {start}
    found = True
    while found:
        found = False
        for order in neighbours(best, num_meshes, keep_length=keep_length):
            if order in tried:
                continue
            if len(tried) > most_tries or is_late():
                return best
            tried.add(order)
            at = solve(order)
            if at is not None and at < value * (1 - 1e-9):
                best, value, found = order, at, True
                break
    return best


def neighbours(order: Sequence[int], num_meshes: int, *, keep_length: bool) -> Iterator[Order]:
    """All orders that differ from one by a step, each mesh at most once."""
    order = tuple(order)
    others = [mesh for mesh in range(num_meshes) if mesh not in order]
    for at in range(len(order)):
        for mesh in others:
            yield (*order[:at], mesh, *order[at + 1 :])
    for a in range(len(order)):
        for b in range(a + 1, len(order)):
            swapped = list(order)
            swapped[a], swapped[b] = order[b], order[a]
            yield tuple(swapped)
    if keep_length:
        return
    for at in range(len(order)):
        if len(order) > 1:
            yield (*order[:at], *order[at + 1 :])
    for at in range(len(order) + 1):
        for mesh in others:
            yield (*order[:at], mesh, *order[at:])
