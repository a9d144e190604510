"""The choices of a segment along one axis as variables, and their costs as small tables.

A variable is how a group is split, or how a named array lies. A table holds the seconds of a group
for each split, or of bringing an array from where one variable has it to where another wants it.
Arrays with one reader need no variable of their own. Units: seconds, bytes.
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from gimlax import _jax
from gimlax.errors import PlanError
from gimlax.graph import Role
from gimlax.partition import ALL_REDUCE, REDUCE_SCATTER, Collective, Group, Run, Split
from gimlax.planning.rates.collectives import Collectives
from gimlax.planning.sharding.elimination import Factor
from gimlax.planning.sharding.pricing import Pricer
from gimlax.planning.sharding.states import (
    WHOLE,
    AxisLayout,
    Name,
    Pieces,
    collectives_between,
    name_of,
    source_name,
    state_after,
    state_before,
)

__all__ = ["Axis", "SegmentFactors", "build_all"]

# A tie goes to what takes less memory: this is far below any time.
_HOLD_S_PER_BYTE = 1e-22


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Axis:
    """What a search along one axis is given.

    `others` are layouts along other axes, `fixed` states of sources that the caller wants.
    """

    name: str
    num_devices: int
    others: Sequence[AxisLayout]
    fixed: Mapping[Name, int]
    pricer: Pricer
    collectives: Collectives

    def reshard_s(self, num_bytes: int, before: int, after: int) -> float:
        """Seconds of bringing an array from one state to another."""
        moved = collectives_between(before, after, num_bytes, self.name, self.num_devices)
        return sum(map(self.collectives.seconds, moved))


@dataclass(frozen=True, slots=True)
class SegmentFactors:
    """Variables and tables of a segment.

    `states[v]` are the settings of variable v where it is an array, `splits[v]` where it is a
    group; `names[v]` is ('group', phase, group) for a group. `kept` are the variables that other
    segments have too.
    """

    names: list[Name] = field(default_factory=list)
    states: list[tuple[int, ...]] = field(default_factory=list)
    splits: list[tuple[Split, ...]] = field(default_factory=list)
    factors: list[Factor] = field(default_factory=list)
    kept: list[int] = field(default_factory=list)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of settings of each variable."""
        pairs = zip(self.states, self.splits, strict=True)
        return tuple(len(states) or len(splits) for states, splits in pairs)

    def renamed(self, names: Mapping[Name, Name]) -> "SegmentFactors":
        """The same for another segment; names that are not given stay."""
        return SegmentFactors(
            [names.get(name, name) for name in self.names],
            [*self.states],
            self.splits,
            [*self.factors],
            self.kept,
        )

    def key(self) -> tuple[object, ...]:
        """Equal for equal problems, whatever their variables stand for."""
        tables = tuple((f.scope, f.table.tobytes()) for f in self.factors)
        return (self.sizes, tuple(self.kept), tables)


def build_all(pieces: Pieces, axis: Axis) -> list[SegmentFactors]:
    """Variables and tables of each segment, over all phases; equal segments share tables."""
    first: dict[Hashable, tuple[list[Name], SegmentFactors]] = {}
    result: list[SegmentFactors] = []
    for segment in range(pieces.chain.num_segments):
        names = pieces.names(segment)
        key = _problem(pieces, axis, segment, names)
        if key not in first:
            first[key] = (names, _Builder(pieces, axis, segment).build())
        known, factors = first[key]
        result.append(factors.renamed(dict(zip(known, names, strict=True))))
    return result


def _problem(pieces: Pieces, axis: Axis, segment: int, names: Sequence[Name]) -> Hashable:
    """Equal for segments whose factors differ in names alone."""
    numbers: dict[Name, int] = {}
    order = tuple(numbers.setdefault(name, len(numbers)) for name in names)
    phases = range(len(pieces.chain.phases))
    return (
        tuple(pieces.alike[phase][segment] for phase in phases),
        order,
        tuple(
            (
                pieces.shared(name),
                (name[0], name[-1]) in pieces.whole,
                axis.fixed.get(name),
                tuple(other.states.get(name) for other in axis.others),
            )
            for name in numbers
        ),
        tuple(tuple(other.splits[phase][segment]) for other in axis.others for phase in phases),
    )


class _Builder:
    def __init__(self, pieces: Pieces, axis: Axis, segment: int) -> None:
        self.pieces = pieces
        self.axis = axis
        self.segment = segment
        self.found = SegmentFactors()
        self.numbers: dict[Name, int] = {}

    def build(self) -> SegmentFactors:
        for phase in range(len(self.pieces.chain.phases)):
            self._phase(phase)
        return self.found

    def _phase(self, phase: int) -> None:
        run = self.pieces.runs[phase][self.segment]
        groups = self.pieces.groups[phase][self.segment]
        readers: dict[int, list[int]] = {}
        for number, group in enumerate(groups):
            for value in group.reads:
                readers.setdefault(value, []).append(number)
        ends = {value for _, value in run.updates}
        writer: dict[int, int] = {}
        for number, group in enumerate(groups):
            splits = self._splits(phase, number, group)
            me = self._variable(("group", phase, number), (), tuple(splits))
            calls = self.pieces.chain.phases[phase].calls
            costs = [calls * self._split_s(phase, number, run, group, s) for s in splits]
            self.found.factors.append(Factor((me,), np.array(costs)))
            for value in group.reads:
                self._join(
                    phase, run, value, writer, me, [state_before(group, s, value) for s in splits]
                )
            for value in group.writes:
                name = name_of(run, phase, self.segment, value)
                several = len(readers.get(value, ())) > 1 or value in ends
                if name[0] == "edge" or several:
                    array = self._array(phase, run, value)
                    after = [state_after(group, s, value) for s in splits]
                    self._table(phase, run, value, me, after, array, self.found.states[array])
                else:
                    writer[value] = me
        for source, value in run.updates:
            kept = self._source(phase, run, value, source_name(phase, source))
            array = self._array(phase, run, value)
            states = self.found.states
            self._table(phase, run, value, array, states[array], kept, states[kept])

    def _join(
        self,
        phase: int,
        run: Run,
        value: int,
        writer: Mapping[int, int],
        me: int,
        wanted: Sequence[int],
    ) -> None:
        """The cost of bringing a value to a group that reads it."""
        if value in writer:
            before_me = writer[value]
            _, _, number = self.found.names[before_me]
            group = self.pieces.groups[phase][self.segment][int(str(number))]
            had = [state_after(group, s, value) for s in self.found.splits[before_me]]
            self._table(phase, run, value, before_me, had, me, wanted)
            return
        if not run.flat.avals[value].shape:
            return
        array = self._array(phase, run, value)
        self._table(phase, run, value, array, self.found.states[array], me, wanted)

    def _table(
        self,
        phase: int,
        run: Run,
        value: int,
        first: int,
        had: Sequence[int],
        second: int,
        wanted: Sequence[int],
    ) -> None:
        num_bytes = self._local_bytes(phase, run, value)
        calls = self.pieces.chain.phases[phase].calls
        table = np.array(
            [[calls * self.axis.reshard_s(num_bytes, h, w) for w in wanted] for h in had], float
        )
        if self._stays(run, value):
            whole, split = np.array(had) == WHOLE, np.array(wanted) != WHOLE
            table[np.ix_(whole, split)] = np.inf
        self.found.factors.append(Factor((first, second), table))

    def _stays(self, run: Run, value: int) -> bool:
        """Whether this is a parameter or state of two dims or more.

        Nobody keeps all of it to use a part: where a group wants a part, a part is kept.
        """
        source = run.sources.get(value)
        kept = source is not None and source.kind in (Role.RESIDENT.value, Role.CARRIED.value)
        return kept and len(run.flat.avals[value].shape) > 1

    def _variable(self, name: Name, states: tuple[int, ...], splits: tuple[Split, ...] = ()) -> int:
        self.numbers[name] = len(self.numbers)
        self.found.names.append(name)
        self.found.states.append(states)
        self.found.splits.append(splits)
        return self.numbers[name]

    def _array(self, phase: int, run: Run, value: int) -> int:
        """The variable of a named array."""
        name = name_of(run, phase, self.segment, value)
        if value in run.sources and name[0] != "edge":
            return self._source(phase, run, value, name)
        if name not in self.numbers:
            states = (WHOLE,) if value in run.whole else self._states(phase, run, value)
            number = self._variable(name, states)
            if name[0] == "edge":
                self.found.kept.append(number)
        return self.numbers[name]

    def _source(self, phase: int, run: Run, value: int, name: Name) -> int:
        if name in self.numbers:
            return self.numbers[name]
        kind, index = str(name[0]), int(str(name[-1]))
        mine = kind in (Role.RESIDENT.value, Role.CARRIED.value)
        if name in self.axis.fixed:
            states: tuple[int, ...] = (self.axis.fixed[name],)
        elif (kind, index) in self.pieces.whole or kind == "constant":
            states = (WHOLE,)
        elif not mine and run.flat.avals[value].dtype.kind in "biu":
            states = (WHOLE,)  # small: tokens, positions, masks
        else:
            states = self._states(phase, run, value)
        number = self._variable(name, states)
        num_bytes = self._local_bytes(phase, run, value)
        held = [num_bytes / (self.axis.num_devices if s >= 0 else 1) for s in states]
        self.found.factors.append(Factor((number,), _HOLD_S_PER_BYTE * np.array(held)))
        if self.pieces.shared(name) and len(states) > 1:
            self.found.kept.append(number)
        return number

    def _states(self, phase: int, run: Run, value: int) -> tuple[int, ...]:
        """Whole, or split along a dim that this axis divides beside the others."""
        shape = list(run.flat.avals[value].shape)
        for other in self.axis.others:
            state = other.state(self.pieces, phase, self.segment, value)
            if state >= 0:
                shape[state] //= other.num_devices
        divided = [d for d, size in enumerate(shape) if size and size % self.axis.num_devices == 0]
        return (WHOLE, *divided)

    def _local_bytes(self, phase: int, run: Run, value: int) -> int:
        """Bytes of a value as far as other axes split it."""
        num_bytes = _jax.nbytes(run.flat.avals[value])
        for other in self.axis.others:
            if other.state(self.pieces, phase, self.segment, value) >= 0:
                num_bytes //= other.num_devices
        return num_bytes

    def _taken(self, phase: int, number: int) -> dict[int, int]:
        """Labels of a group that other axes split, and over how many devices."""
        taken: dict[int, int] = {}
        for other in self.axis.others:
            label = other.splits[phase][self.segment][number].label
            if label is not None:
                taken[label] = taken.get(label, 1) * other.num_devices
        return taken

    def _splits(self, phase: int, number: int, group: Group) -> list[Split]:
        label, shards = next(iter(self._taken(phase, number).items()), (None, 1))
        splits = group.splits(self.axis.num_devices, label, shards)
        if group.pinned is None:
            return splits
        (value,) = group.reads
        pinned = list(enumerate(group.pinned))
        wanted = [d for d, axes in pinned if axes is not None and self.axis.name in axes]
        free: list[int | None] = [d for d, axes in pinned if axes is None]
        allowed = wanted or [*free, None]
        found = [split for split in splits if group.dim(value, split.label) in allowed]
        if not found:
            raise PlanError(
                f"segment {self.pieces.chain.names[self.segment]!r}: a sharding constraint of the"
                f" model splits dim {wanted[0]} of"
                f" {list(self.pieces.runs[phase][self.segment].flat.avals[value].shape)} along axis"
                f" {self.axis.name!r}, whose {self.axis.num_devices} devices do not divide it;"
                " leave that dim out of the constraint or use another mesh"
            )
        return found

    def _split_s(self, phase: int, number: int, run: Run, group: Group, split: Split) -> float:
        taken = self._taken(phase, number)
        parts = dict(taken)
        if split.label is not None:
            parts[split.label] = parts.get(split.label, 1) * self.axis.num_devices
        seconds = self.axis.pricer.group_s(run, group, parts)
        for value in split.sums:
            shards = math.prod(taken.get(x, 1) for x in group.labels[value] if x is not None)
            collective = Collective(
                kind=ALL_REDUCE if split.scatter is None else REDUCE_SCATTER,
                num_bytes=_jax.nbytes(run.flat.avals[value]) // shards,
                axis=self.axis.name,
                num_devices=self.axis.num_devices,
            )
            seconds += self.axis.collectives.seconds(collective)
        return seconds
