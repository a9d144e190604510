"""How a chain lies on a mesh with several devices, and what each segment then does and sends.

Units: seconds, bytes per device.
"""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import jax

from gimlax import _jax
from gimlax.graph import Role
from gimlax.graph.operations import Operation
from gimlax.partition import (
    ALL_REDUCE,
    PERMUTE,
    REDUCE_SCATTER,
    Collective,
    Source,
    Spec,
    Split,
    shard_shape,
)
from gimlax.planning.rates.collectives import Collectives
from gimlax.planning.sharding.pricing import Pricer, local_operations
from gimlax.planning.sharding.states import (
    WHOLE,
    AxisLayout,
    Pieces,
    collectives_between,
    name_of,
    source_name,
    state_after,
    state_before,
)

__all__ = ["Sharded", "ShardedSegment", "describe"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardedSegment:
    """One call of a segment in one phase, on one of the devices.

    `seconds` are those of the operations and, after them, of the collectives.
    """

    operations: tuple[Operation, ...]
    collectives: tuple[Collective, ...]
    compute_s: float
    collectives_s: float

    @property
    def seconds(self) -> float:
        """All of it; nothing overlaps."""
        return self.compute_s + self.collectives_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Sharded:
    """A chain on a mesh.

    Attributes:
        axes: (axis name, size).
        segments: by [phase][segment].
        specs: of each resident and carried leaf, by path.
        streamed: of each streamed leaf, by [phase] and path.
        edges: of each value that crosses, by [phase][boundary], in the order of crossing; boundary
            b lies before segment b.
        results: of each output leaf that is not carried, by [phase] and path.
        resident_bytes, carried_bytes: on each device, of the whole chain.
        splits: by axis, of each group of equations, by [phase][segment][group].
        exact: whether no sharding takes less time; axes are laid out one after another, so only
            that along a single axis can be.
    """

    axes: tuple[tuple[str, int], ...]
    segments: tuple[tuple[ShardedSegment, ...], ...]
    specs: Mapping[str, Spec]
    streamed: tuple[Mapping[str, Spec], ...]
    edges: tuple[tuple[tuple[Spec, ...], ...], ...]
    results: tuple[Mapping[str, Spec], ...]
    resident_bytes: int
    carried_bytes: int
    splits: Mapping[str, Sequence[Sequence[Sequence[Split]]]]
    exact: bool = True

    def seconds(self, phase: int) -> float:
        """Of one call of a phase, dispatch left out."""
        return sum(segment.seconds for segment in self.segments[phase])

    def parts(self, path: str) -> int:
        """Into how many parts the array at a path is split."""
        sizes = dict(self.axes)
        parts = 1
        for axes in self.specs[path]:
            for axis in axes:
                parts *= sizes[axis]
        return parts


def describe(
    pieces: Pieces,
    axes: Mapping[str, int],
    layouts: Sequence[AxisLayout],
    pricer: Pricer,
    collectives: Collectives,
) -> Sharded:
    """What the layouts along all axes mean together."""
    return _Description(pieces, axes, layouts, pricer, collectives).build()


class _Description:
    def __init__(
        self,
        pieces: Pieces,
        axes: Mapping[str, int],
        layouts: Sequence[AxisLayout],
        pricer: Pricer,
        collectives: Collectives,
    ) -> None:
        self.pieces = pieces
        self.axes = axes
        # In the order of the axes, so that a dim split along both has one meaning.
        self.layouts = sorted(layouts, key=lambda layout: list(axes).index(layout.axis))
        self.pricer = pricer
        self.collectives = collectives
        self.known: dict[Hashable, ShardedSegment] = {}

    def build(self) -> Sharded:
        chain = self.pieces.chain
        phases = range(len(chain.phases))
        by_role = {
            role: dict(self._arguments(0, (role,))) for role in (Role.RESIDENT, Role.CARRIED)
        }
        return Sharded(
            axes=tuple(self.axes.items()),
            segments=tuple(
                tuple(self._segment(phase, index) for index in range(chain.num_segments))
                for phase in phases
            ),
            specs=by_role[Role.RESIDENT] | by_role[Role.CARRIED],
            streamed=tuple(dict(self._arguments(phase, (Role.STREAMED,))) for phase in phases),
            edges=tuple(self._edges(phase) for phase in phases),
            results=tuple(dict(self._results(phase)) for phase in phases),
            resident_bytes=self._held_bytes(Role.RESIDENT, by_role[Role.RESIDENT]),
            carried_bytes=self._held_bytes(Role.CARRIED, by_role[Role.CARRIED]),
            splits={layout.axis: layout.splits for layout in self.layouts},
            exact=len(self.layouts) < 2 and all(layout.exact for layout in self.layouts),
        )

    def _held_bytes(self, role: Role, specs: Mapping[str, Spec]) -> int:
        traced = self.pieces.chain.phases[0].traced
        avals = {traced.arguments[i].path: traced.arguments[i].aval for i in traced.leaves(role)}
        return sum(
            _jax.nbytes(jax.ShapeDtypeStruct(shard_shape(aval.shape, spec, self.axes), aval.dtype))
            for path, spec in specs.items()
            for aval in (avals[path],)
        )

    def _edges(self, phase: int) -> tuple[tuple[Spec, ...], ...]:
        avals = self.pieces.chain.phases[phase].graph.avals
        return tuple(
            tuple(
                self._spec(
                    [lay.states.get(("edge", phase, v), WHOLE) for lay in self.layouts],
                    len(avals[v].shape),
                )
                for v in values
            )
            for values in self.pieces.crossing[phase]
        )

    def _results(self, phase: int) -> Iterator[tuple[str, Spec]]:
        outputs = self.pieces.chain.phases[phase].traced.outputs
        for index, run in enumerate(self.pieces.runs[phase]):
            for output, value in run.results.items():
                states = [lay.state(self.pieces, phase, index, value) for lay in self.layouts]
                rank = len(run.flat.avals[value].shape)
                yield outputs[output].path, self._spec(states, rank)

    def _arguments(self, phase: int, roles: tuple[Role, ...]) -> Iterator[tuple[str, Spec]]:
        traced = self.pieces.chain.phases[phase].traced
        for role in roles:
            for index, leaf in enumerate(traced.leaves(role)):
                argument = traced.arguments[leaf]
                name = source_name(phase, Source(role.value, index))
                states = [lay.states.get(name, WHOLE) for lay in self.layouts]
                if (role.value, index) in self.pieces.rows:
                    states = [state + 1 if state >= 0 else state for state in states]
                yield argument.path, self._spec(states, len(argument.aval.shape))

    def _spec(self, states: Sequence[int], rank: int) -> Spec:
        return tuple(
            tuple(
                layout.axis
                for layout, state in zip(self.layouts, states, strict=True)
                if state == dim
            )
            for dim in range(rank)
        )

    def _segment(self, phase: int, index: int) -> ShardedSegment:
        """Segments that are alike and lie alike are described once."""
        run = self.pieces.runs[phase][index]
        key = (
            phase,
            self.pieces.alike[phase][index],
            tuple(
                layout.states.get(name_of(run, phase, index, value))
                for value in self.pieces.named[phase][index]
                for layout in self.layouts
            ),
            tuple(tuple(layout.splits[phase][index]) for layout in self.layouts),
        )
        if key not in self.known:
            self.known[key] = self._described(phase, index, key)
        return self.known[key]

    def _described(self, phase: int, index: int, key: Hashable) -> ShardedSegment:
        collectives = [
            collective
            for axis in range(len(self.layouts))
            for collective in self._collectives(phase, index, axis)
        ]
        collectives += self._permutations(phase, index)
        run, shape_of = self.pieces.runs[phase][index], self._shapes(phase, index)
        sizes = tuple(layout.num_devices for layout in self.layouts)
        operations = self.pieces.works.segment(
            (sizes, key), lambda: local_operations(run, shape_of)
        )
        return ShardedSegment(
            operations=operations,
            collectives=tuple(collectives),
            compute_s=sum(map(self.pricer.operation_s, operations)),
            collectives_s=sum(map(self.collectives.seconds, collectives)),
        )

    def _collectives(self, phase: int, index: int, axis: int) -> Iterator[Collective]:
        """What is sent along one axis, in order."""
        layout = self.layouts[axis]
        run = self.pieces.runs[phase][index]
        groups = self.pieces.groups[phase][index]
        lies = {value: layout.state(self.pieces, phase, index, value) for value in run.sources}

        def between(value: int, before: int, after: int) -> tuple[Collective, ...]:
            num_bytes = self._bytes(phase, index, axis, value)
            return collectives_between(before, after, num_bytes, layout.axis, layout.num_devices)

        for group, split in zip(groups, layout.splits[phase][index], strict=True):
            for value in group.reads:
                yield from between(value, lies.get(value, WHOLE), state_before(group, split, value))
            for value in split.sums:
                yield Collective(
                    kind=ALL_REDUCE if split.scatter is None else REDUCE_SCATTER,
                    num_bytes=self._bytes(phase, index, axis, value),
                    axis=layout.axis,
                    num_devices=layout.num_devices,
                )
            for value in group.writes:
                made = state_after(group, split, value)
                name = name_of(run, phase, index, value)
                lies[value] = layout.states.get(name, made)
                yield from between(value, made, lies[value])
        for source, value in run.updates:
            name = source_name(phase, source)
            yield from between(value, lies.get(value, WHOLE), layout.states.get(name, WHOLE))

    def _permutations(self, phase: int, index: int) -> Iterator[Collective]:
        """Parts that change places because a dim is split along a second axis in the wrong order.

        A spec names axes in the order of the mesh. A dim that lies along the later one and is split
        along the earlier one too would be cut on the spot in the other order.
        """
        run = self.pieces.runs[phase][index]
        groups = self.pieces.groups[phase][index]
        lies = [
            {value: layout.state(self.pieces, phase, index, value) for value in run.sources}
            for layout in self.layouts
        ]

        def between(value: int, before: list[int], after: list[int]) -> Iterator[Collective]:
            for first, layout in enumerate(self.layouts):
                dim = after[first]
                later = [(before[k], after[k]) for k in range(first + 1, len(self.layouts))]
                if before[first] == WHOLE and dim != WHOLE and (dim, dim) in later:
                    num_bytes = self._bytes(phase, index, first, value) // layout.num_devices
                    yield Collective(
                        kind=PERMUTE,
                        num_bytes=num_bytes,
                        axis=layout.axis,
                        num_devices=layout.num_devices,
                    )

        splits = zip(*(layout.splits[phase][index] for layout in self.layouts), strict=True)
        for group, by_axis in zip(groups, splits, strict=False):
            for value in group.reads:
                before = [of.get(value, WHOLE) for of in lies]
                after = [state_before(group, split, value) for split in by_axis]
                yield from between(value, before, after)
            for value in group.writes:
                made = [state_after(group, split, value) for split in by_axis]
                name = name_of(run, phase, index, value)
                for of, layout, state in zip(lies, self.layouts, made, strict=True):
                    of[value] = layout.states.get(name, state)
                yield from between(value, made, [of[value] for of in lies])
        for source, value in run.updates:
            name = source_name(phase, source)
            before = [of.get(value, WHOLE) for of in lies]
            yield from between(value, before, [of.states.get(name, WHOLE) for of in self.layouts])

    def _bytes(self, phase: int, index: int, axis: int, value: int) -> int:
        """Bytes of a value as far as the other axes split it."""
        num_bytes = _jax.nbytes(self.pieces.runs[phase][index].flat.avals[value])
        for other, layout in enumerate(self.layouts):
            if other != axis and layout.state(self.pieces, phase, index, value) >= 0:
                num_bytes //= layout.num_devices
        return num_bytes

    def _shapes(self, phase: int, index: int) -> Callable[[int, int], tuple[int, ...]]:
        run = self.pieces.runs[phase][index]
        groups = self.pieces.groups[phase][index]
        home = {step: number for number, group in enumerate(groups) for step in group.steps}
        known: dict[tuple[int, int], tuple[int, ...]] = {}

        def shape_of(step: int, value: int) -> tuple[int, ...]:
            number = home[step]
            if (number, value) not in known:
                shape = list(run.flat.avals[value].shape)
                for layout in self.layouts:
                    split = layout.splits[phase][index][number]
                    dim = groups[number].dim(value, split.label)
                    if dim is not None:
                        shape[dim] //= layout.num_devices
                known[number, value] = tuple(shape)
            return known[number, value]

        return shape_of
