"""The best way to split all segments of a chain along one mesh axis, for all phases at once.

Each segment is reduced to a table over what it shares with others: the states of what crosses its
ends and of parameters that other segments use too. Equal segments, such as the layers of a model,
are one problem and reduced once. Then the tables of all segments are one small problem of the same
kind.
"""

from dataclasses import dataclass

import numpy as np

from gimlax.errors import PlanError
from gimlax.partition import Split
from gimlax.planning.sharding.elimination import Factor, Reduced, eliminate
from gimlax.planning.sharding.factors import Axis, SegmentFactors, build_all
from gimlax.planning.sharding.states import AxisLayout, Name, Pieces, state_after

__all__ = ["lay_out"]

# More shared parameters than this in one segment (a scan over layers shares all of them) are
# settled by the first segment that has them, as if it were alone.
_MOST_SHARED = 4


@dataclass(frozen=True, slots=True, eq=False)
class _Whole:
    """The segments as one problem."""

    names: dict[Name, int]
    sizes: list[int]
    factors: list[Factor]


def lay_out(pieces: Pieces, axis: Axis) -> AxisLayout:
    """Splits everything along one axis so that a request takes least time.

    Raises:
        PlanError: what is given cannot be met.
    """
    known: dict[tuple[object, ...], Reduced] = {}
    settled: dict[Name, int] = {}
    segments = build_all(pieces, axis)
    tables: list[Reduced] = []
    for index, factors in enumerate(segments):
        _settle(factors, settled)
        key = factors.key()
        if key not in known:
            known[key] = eliminate(factors.sizes, factors.factors, factors.kept)
        if not np.isfinite(known[key].table).any():
            raise PlanError(
                f"segment {pieces.chain.names[index]!r} cannot be sharded along axis {axis.name!r}"
                " as the given specs want it; give fewer of them"
            )
        tables.append(known[key])
    whole = _join(segments, tables)
    together = eliminate(whole.sizes, whole.factors, ())
    chosen = together.settings({})
    splits = [[[Split(label=None)] * len(g) for g in row] for row in pieces.groups]
    states: dict[Name, int] = dict(axis.fixed)
    settings: dict[tuple[int, tuple[int, ...]], dict[int, int]] = {}
    for index, (factors, reduced) in enumerate(zip(segments, tables, strict=True)):
        kept = {v: chosen[whole.names[factors.names[v]]] for v in factors.kept}
        same = (id(reduced), tuple(kept.values()))
        if same not in settings:
            settings[same] = reduced.settings(kept)
        for variable, setting in settings[same].items():
            name = factors.names[variable]
            if name[0] == "group":
                _, phase, group = map(str, name)
                splits[int(phase)][index][int(group)] = factors.splits[variable][setting]
            else:
                states[name] = factors.states[variable][setting]
    return AxisLayout(
        axis=axis.name,
        num_devices=axis.num_devices,
        splits=splits,
        states=states,
        made={
            (phase, segment, value): state_after(group, split, value)
            for phase, row in enumerate(pieces.groups)
            for segment, groups in enumerate(row)
            for group, split in zip(groups, splits[phase][segment], strict=True)
            for value in group.writes
        },
        exact=not settled and together.exact and all(table.exact for table in tables),
    )


def _settle(factors: SegmentFactors, settled: dict[Name, int]) -> None:
    """Fixes shared parameters that are too many to be kept open."""
    sources = [v for v in factors.kept if factors.names[v][0] != "edge"]
    new = [v for v in sources if factors.names[v] not in settled]
    if len(new) > _MOST_SHARED:
        alone = eliminate(factors.sizes, factors.factors, ()).settings({})
        settled.update((factors.names[v], factors.states[v][alone[v]]) for v in new)
    for variable in sources:
        state = settled.get(factors.names[variable])
        if state is None:
            continue
        place = factors.states[variable].index(state)
        factors.states[variable] = (state,)
        factors.factors[:] = [
            Factor(f.scope, f.table.take([place], axis=f.scope.index(variable)))
            if variable in f.scope
            else f
            for f in factors.factors
        ]


def _join(segments: list[SegmentFactors], tables: list[Reduced]) -> _Whole:
    whole = _Whole({}, [], [])
    for factors, reduced in zip(segments, tables, strict=True):
        scope: list[int] = []
        for variable in reduced.keep:
            name = factors.names[variable]
            if name not in whole.names:
                whole.names[name] = len(whole.names)
                whole.sizes.append(factors.sizes[variable])
            scope.append(whole.names[name])
        whole.factors.append(Factor(tuple(scope), reduced.table))
    return whole
