"""A layout that serves many tokens per second, by local search over series of stages.

A layout is a series of stages, each with a number of layers and the machines of one kind that hold
it. It is varied by moving layers between stages, by moving a machine to another stage, and by
splitting and joining stages; what serves more is kept. The same answer on every machine.
"""

from collections.abc import Iterator
from typing import NamedTuple

from gimlax.planning.solvers.decode_loop import serve
from gimlax.planning.solvers.serving_problem import Held, ServingProblem

__all__ = ["propose"]

_FEW, _SOME, _MANY = 2, 16, 64  # samples: to choose starts, to climb, to decide
_MOST_STARTS = 600
_MOST_TRIES = 200
_NUM_CLIMBS = 4


class _Stage(NamedTuple):
    machine: str
    num_layers: int
    copies: int


_Series = tuple[_Stage, ...]


def propose(problem: ServingProblem) -> list[Held]:
    """The best layout that local search finds; empty if no series of stages can be."""
    starts = {series: _value(problem, series, _FEW) for series in _starts(problem)}
    promising = sorted(starts, key=lambda series: (-starts[series], series))[:_NUM_CLIMBS]
    tops = [_climbed(problem, series) for series in promising]
    best = max(tops, key=lambda series: (_value(problem, series, _MANY), series), default=())
    return _layout(best)


def _climbed(problem: ServingProblem, series: _Series) -> _Series:
    """From a series to a better neighbour, until there is none or enough were tried."""
    best = (_value(problem, series, _SOME), series)
    tried = {series}
    improved = True
    while improved:
        improved = False
        for other in _neighbours(problem, best[1]):
            if other in tried:
                continue
            if len(tried) >= _MOST_TRIES:
                break
            tried.add(other)
            value = _value(problem, other, _SOME)
            if value > best[0] * (1 + 1e-6):
                best, improved = (value, other), True
                break
    return best[1]


def _value(problem: ServingProblem, series: _Series, num_samples: int) -> float:
    return serve(problem, _layout(series), num_samples=num_samples).tokens_per_s


def _layout(series: _Series) -> list[Held]:
    layout: list[Held] = []
    first = 0
    for machine, num_layers, copies in series:
        held = Held(first_layer=first, num_layers=num_layers, machine=machine)
        layout += [held] * copies
        first += num_layers
    return layout


def _starts(problem: ServingProblem) -> Iterator[_Series]:
    """Series in which each kind has stages of one number of layers and of copies."""
    kinds = sorted(problem.machines)

    def filled(at: int, left: int, series: _Series) -> Iterator[_Series]:
        if left == 0:
            yield series
            return
        if at == len(kinds):
            return
        machine = problem.machines[kinds[at]]
        yield from filled(at + 1, left, series)
        for copies in range(1, min(machine.count, 4) + 1):
            num_stages = machine.count // copies
            for num_layers in range(1, machine.max_layers + 1):
                if num_stages * num_layers <= left:
                    own = (_Stage(kinds[at], num_layers, copies),) * num_stages
                    yield from filled(at + 1, left - num_stages * num_layers, series + own)

    found = list(filled(0, problem.num_layers, ()))
    found.sort(key=lambda series: (len(series), series))
    step = max(1, len(found) // _MOST_STARTS)
    yield from found[::step]


def _neighbours(problem: ServingProblem, series: _Series) -> Iterator[_Series]:
    used: dict[str, int] = {}
    for stage in series:
        used[stage.machine] = used.get(stage.machine, 0) + stage.copies
    for changed in _changes(problem, series, used):
        if all(
            1 <= s.num_layers <= problem.machines[s.machine].max_layers and s.copies >= 1
            for s in changed
        ):
            yield changed


def _changes(problem: ServingProblem, series: _Series, used: dict[str, int]) -> Iterator[_Series]:
    for a, one in enumerate(series):
        if used[one.machine] < problem.machines[one.machine].count:
            yield _replaced(series, a, (one._replace(copies=one.copies + 1),))
        for b, other in enumerate(series):
            if a == b:
                continue
            moved = _replaced(series, a, (one._replace(num_layers=one.num_layers + 1),))
            yield _replaced(moved, b, (other._replace(num_layers=other.num_layers - 1),))
            if one.machine == other.machine:
                moved = _replaced(series, a, (one._replace(copies=one.copies + 1),))
                yield _replaced(moved, b, (other._replace(copies=other.copies - 1),))
        if a and one.machine != series[a - 1].machine:
            yield (*series[: a - 1], one, series[a - 1], *series[a + 1 :])
        if a and one.machine == series[a - 1].machine:
            before = series[a - 1]
            layers, copies = before.num_layers + one.num_layers, before.copies + one.copies
            joined = _Stage(one.machine, layers, copies)
            yield (*series[: a - 1], joined, *series[a + 1 :])
        if one.copies > 1 and one.num_layers > 1:
            first = _Stage(one.machine, one.num_layers // 2, one.copies // 2)
            second = _Stage(
                one.machine, one.num_layers - first.num_layers, one.copies - first.copies
            )
            yield _replaced(series, a, (first, second))


def _replaced(series: _Series, at: int, stages: tuple[_Stage, ...]) -> _Series:
    return (*series[:at], *stages, *series[at + 1 :])
