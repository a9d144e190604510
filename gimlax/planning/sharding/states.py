"""How arrays lie along one mesh axis, and what it takes to bring them from one way to another.

Along one axis an array is split along one of its dims (a number from 0) or whole on every device
(`WHOLE`). The specs of a mesh with two axes are one state for each of them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from gimlax.graph import Chain
from gimlax.graph.segments import crossing_values
from gimlax.partition import (
    ALL_GATHER,
    ALL_TO_ALL,
    Collective,
    Group,
    Run,
    Source,
    Split,
    find_groups,
    find_runs,
)
from gimlax.planning.sharding.alike import first_alike
from gimlax.planning.sharding.pricing import Works

__all__ = [
    "WHOLE",
    "AxisLayout",
    "Name",
    "Pieces",
    "collectives_between",
    "name_of",
    "source_name",
    "state_after",
    "state_before",
    "take_apart",
]

WHOLE = -1

# ('edge', phase, graph value), ('resident' or 'carried', leaf), ('streamed' or 'constant', phase,
# index), ('value', phase, segment, value): whatever lies somewhere and is not gone at once.
Name = tuple[object, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pieces:
    """A chain taken apart: runs and groups by [phase][segment].

    `alike` has the first segment of the phase that takes the same steps, by [phase][segment];
    `named` the values of a run that have a name of their own, by [phase][segment]: its sources,
    what crosses, and what several groups read; `crossing` the graph values that cross each
    boundary, by [phase][boundary]; `users` first and last segment of each source; `whole` are
    sources that cannot be split, since they are used both as a whole and by rows; `rows` are those
    that are used by rows alone. `works` has what steps do on any device.
    """

    chain: Chain
    runs: Sequence[Sequence[Run]]
    groups: Sequence[Sequence[Sequence[Group]]]
    alike: Sequence[Sequence[int]]
    named: Sequence[Sequence[tuple[int, ...]]]
    crossing: Sequence[Sequence[tuple[int, ...]]]
    users: Mapping[tuple[str, int], tuple[int, int]]
    whole: frozenset[tuple[str, int]]
    rows: frozenset[tuple[str, int]]
    works: Works = field(default_factory=Works)

    def shared(self, name: Name) -> bool:
        """Whether this is a source of several segments."""
        first, last = self.users.get((str(name[0]), int(str(name[-1]))), (0, 0))
        return first < last

    def names(self, segment: int) -> list[Name]:
        """What the named values of a segment are called, over all phases."""
        return [
            name_of(row[segment], phase, segment, value)
            for phase, row in enumerate(self.runs)
            for value in self.named[phase][segment]
        ]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AxisLayout:
    """How everything lies along one axis.

    `splits` has the way to split each group, by [phase][segment][group]; `states` how named arrays
    lie: sources, what crosses, and values with several readers (once they are brought there);
    `made` how a group leaves a value, by (phase, segment, value); `exact` whether nothing along
    this axis takes less time.
    """

    axis: str
    num_devices: int
    splits: Sequence[Sequence[Sequence[Split]]]
    states: Mapping[Name, int]
    made: Mapping[tuple[int, int, int], int]
    exact: bool = True

    def state(self, pieces: Pieces, phase: int, segment: int, value: int) -> int:
        """How a value of a run lies for its readers."""
        run = pieces.runs[phase][segment]
        name = name_of(run, phase, segment, value)
        if name in self.states:
            return self.states[name]
        return self.made.get((phase, segment, value), WHOLE)


def take_apart(chain: Chain) -> Pieces:
    """Runs and groups of every segment of every phase; segments that are alike share them."""
    found = [find_runs(phase) for phase in chain.phases]
    alike = [first_alike(row) for row in found]
    runs = [
        [replace(run, flat=row[first].flat) for run, first in zip(row, of, strict=True)]
        for row, of in zip(found, alike, strict=True)
    ]
    groups: list[list[list[Group]]] = []
    named: list[list[tuple[int, ...]]] = []
    for row, of in zip(runs, alike, strict=True):
        mine = {i: find_groups(row[i].flat, row[i].escaping) for i in dict.fromkeys(of)}
        groups.append([mine[first] for first in of])
        values = {i: _named(row[i], mine[i]) for i in mine}
        named.append([values[first] for first in of])
    users: dict[tuple[str, int], tuple[int, int]] = {}
    forms: dict[tuple[str, int], set[bool]] = {}
    for of_phase in runs:
        for segment, run in enumerate(of_phase):
            for source in (*run.sources.values(), *(source for source, _ in run.updates)):
                key = (source.kind, source.index)
                low, high = users.get(key, (segment, segment))
                users[key] = (min(low, segment), max(high, segment))
                forms.setdefault(key, set()).add(source.row)
    crossing: list[list[tuple[int, ...]]] = []
    for phase in chain.phases:
        last = phase.graph.last_reader()
        stops = [segment.stop for segment in phase.segments[:-1]]
        crossing.append([(), *(crossing_values(phase.graph, last, stop) for stop in stops), ()])
    return Pieces(
        chain=chain,
        runs=runs,
        groups=groups,
        alike=alike,
        named=named,
        crossing=crossing,
        users=users,
        whole=frozenset(key for key, rows in forms.items() if len(rows) > 1),
        rows=frozenset(key for key, rows in forms.items() if rows == {True}),
    )


def _named(run: Run, groups: Sequence[Group]) -> tuple[int, ...]:
    readers = [value for group in groups for value in group.reads]
    readers += [value for _, value in run.updates for _ in range(2)]
    several = {value for value in readers if readers.count(value) > 1}
    written = [value for group in groups for value in group.writes if value in several]
    return tuple(dict.fromkeys([*run.sources, *run.leaving.values(), *written]))


def source_name(phase: int, source: Source) -> Name:
    """The name of a source; parameters and state are the same in all phases."""
    if source.kind in ("resident", "carried"):
        return (source.kind, source.index)
    return ("edge" if source.kind == "received" else source.kind, phase, source.index)


def name_of(run: Run, phase: int, segment: int, value: int) -> Name:
    """The name of a value of a run."""
    if value in run.sources:
        return source_name(phase, run.sources[value])
    for crossing, own in run.leaving.items():
        if own == value:
            return ("edge", phase, crossing)
    return ("value", phase, segment, value)


def state_before(group: Group, split: Split, value: int) -> int:
    """How a group needs a value to lie."""
    dim = group.before(split, value)
    return WHOLE if dim is None else dim


def state_after(group: Group, split: Split, value: int) -> int:
    """How a group leaves a value."""
    dim = group.after(split, value)
    return WHOLE if dim is None else dim


def collectives_between(
    before: int, after: int, num_bytes: int, axis: str, num_devices: int
) -> tuple[Collective, ...]:
    """What brings an array of `num_bytes`, all devices together, from one state to another."""
    if before in (after, WHOLE):
        return ()
    gathers = after == WHOLE
    return (
        Collective(
            kind=ALL_GATHER if gathers else ALL_TO_ALL,
            num_bytes=num_bytes if gathers else num_bytes // num_devices,
            axis=axis,
            num_devices=num_devices,
        ),
    )
