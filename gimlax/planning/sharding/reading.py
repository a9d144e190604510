"""A sharding that a plan holds, read back as the layouts that were searched, without its prices.

A plan says how arguments, edges and results lie and how each group of equations is split. A value
that several groups of one segment read is brought to some state first, which is not in the plan: it
is taken to be the one that sends least. Units: bytes.
"""

import math
from collections.abc import Mapping, Sequence

from gimlax import _jax
from gimlax.graph import Role
from gimlax.graph.operations import Operation
from gimlax.partition import GroupSplits, Source, Spec, Split
from gimlax.planning.rates.collectives import Ring
from gimlax.planning.sharding.pricing import Pricer
from gimlax.planning.sharding.sharded import Sharded, describe
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

__all__ = ["planned"]

# Specs by name: of an argument (phase None), of the values that cross a boundary, of a result.
Named = Mapping[tuple[int | None, object], Spec]


class _Free:
    """Rates of nobody's device, on which everything takes no time."""

    source = ""

    def seconds(self, operation: Operation) -> float:
        del operation
        return 0.0


def planned(
    pieces: Pieces,
    axes: Mapping[str, int],
    specs: Named,
    splits: Sequence[Sequence[Sequence[GroupSplits]]],
) -> Sharded:
    """What a sharding means: operations on one device, and what devices send each other.

    Seconds in it mean nothing.

    Args:
        pieces: the chain, as `take_apart` gives it.
        axes: axis name -> size.
        specs: what is not whole: (None, path) for an argument, (phase, (boundary, place)) for a
            value that crosses a boundary, (phase, path) for a result.
        splits: of each group, by [phase][segment][group] and axis.
    """
    layouts = [
        _layout(pieces, axis, size, specs, splits) for axis, size in axes.items() if size > 1
    ]
    return describe(pieces, axes, layouts, Pricer(_Free(), pieces.works), Ring(math.inf))


def _layout(
    pieces: Pieces,
    axis: str,
    num_devices: int,
    specs: Named,
    splits: Sequence[Sequence[Sequence[GroupSplits]]],
) -> AxisLayout:
    whole = Split(label=None)
    along = [[[group.get(axis, whole) for group in of] for of in row] for row in splits]
    made = {
        (phase, segment, value): state_after(group, split, value)
        for phase, row in enumerate(pieces.groups)
        for segment, groups in enumerate(row)
        for group, split in zip(groups, along[phase][segment], strict=True)
        for value in group.writes
    }
    states = _sources(pieces, axis, specs) | _edges(pieces, axis, specs)
    states |= _results(pieces, axis, specs, states)
    for phase, row in enumerate(pieces.runs):
        for segment in range(len(row)):
            for value in pieces.named[phase][segment]:
                name = name_of(row[segment], phase, segment, value)
                if name not in states:
                    states[name] = _cheapest(pieces, phase, segment, value, along, made, states)
    return AxisLayout(axis=axis, num_devices=num_devices, splits=along, states=states, made=made)


def _state(spec: Spec | None, axis: str) -> int:
    """The dim that a spec splits along an axis."""
    dims = [dim for dim, on in enumerate(spec or ()) if axis in on]
    return dims[0] if dims else WHOLE


def _sources(pieces: Pieces, axis: str, specs: Named) -> dict[Name, int]:
    states: dict[Name, int] = {}
    for phase, of in enumerate(pieces.chain.phases):
        for role in (Role.RESIDENT, Role.CARRIED):
            for index, leaf in enumerate(of.traced.leaves(role)):
                state = _state(specs.get((None, of.traced.arguments[leaf].path)), axis)
                if (role.value, index) in pieces.rows:
                    state -= state > 0
                states[source_name(phase, Source(role.value, index))] = state
        for run in pieces.runs[phase]:  # what is streamed or constant is whole on each device
            for source in run.sources.values():
                states.setdefault(source_name(phase, source), WHOLE)
    return states


def _edges(pieces: Pieces, axis: str, specs: Named) -> dict[Name, int]:
    return {
        ("edge", phase, value): _state(specs.get((phase, (boundary, place))), axis)
        for phase, row in enumerate(pieces.crossing)
        for boundary, values in enumerate(row)
        for place, value in enumerate(values)
    }


def _results(pieces: Pieces, axis: str, specs: Named, known: Mapping[Name, int]) -> dict[Name, int]:
    states: dict[Name, int] = {}
    for phase, row in enumerate(pieces.runs):
        outputs = pieces.chain.phases[phase].traced.outputs
        for segment, run in enumerate(row):
            for output, value in run.results.items():
                name = name_of(run, phase, segment, value)
                if name not in known:
                    states[name] = _state(specs.get((phase, outputs[output].path)), axis)
    return states


def _cheapest(
    pieces: Pieces,
    phase: int,
    segment: int,
    value: int,
    along: Sequence[Sequence[Sequence[Split]]],
    made: Mapping[tuple[int, int, int], int],
    states: Mapping[Name, int],
) -> int:
    """The state of a value with several readers from which least has to be sent."""
    run = pieces.runs[phase][segment]
    wanted = [
        state_before(group, split, value)
        for group, split in zip(pieces.groups[phase][segment], along[phase][segment], strict=True)
        if value in group.reads
    ]
    wanted += [
        states.get(source_name(phase, source), WHOLE)
        for source, updated in run.updates
        if updated == value
    ]
    before = made[phase, segment, value]
    num_bytes = _jax.nbytes(run.flat.avals[value])

    def sent(state: int) -> int:
        moves = [(before, state), *((state, after) for after in wanted)]
        return sum(
            collective.num_bytes
            for a, b in moves
            for collective in collectives_between(a, b, num_bytes, "", 2)
        )

    return min(dict.fromkeys((before, *wanted)), key=sent)
