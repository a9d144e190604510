"""Phases of one model that share parameters and state, and the chain of segments common to them.

Prefill and decode are two traces of one function; they are cut and placed as one, so their segments
have to mean the same. `chain` keeps a boundary where in every phase the same arguments are used
before it and after it, and drops the others.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

import jax

from gimlax import _jax
from gimlax.checking import mistakes_of_fields
from gimlax.errors import SpecError
from gimlax.graph.dataflow import Graph, build_graph
from gimlax.graph.segments import Segment, build_segments, find_boundaries, used_parts
from gimlax.graph.traced import Part, Role, Traced, merge_parts


@dataclass(frozen=True, slots=True)
class Workload:
    """Named phases, and how often one request calls each.

    Example: `Workload({'prefill': a, 'decode': b}, calls={'prefill': 1, 'decode': 64})`. Phases
    share resident and carried arguments: same paths, shapes and dtypes in the same order.

    Raises:
        SpecError: no phase, calls for an unknown phase, or phases whose shared arguments differ.
    """

    phases: Mapping[str, Traced]
    calls: Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        if wrong := mistakes_of_fields(self):
            raise SpecError(f"workload: {'; '.join(wrong)}")
        phases = dict(self.phases)
        if not phases:
            raise SpecError("a workload has no phase; give at least one traced function")
        calls = {name: 1.0 for name in phases} | dict(self.calls or {})
        if wrong := list(_mistakes(phases, calls)):
            raise SpecError(f"workload: {'; '.join(wrong)}")
        object.__setattr__(self, "phases", phases)
        object.__setattr__(self, "calls", calls)
        first, *others = phases.items()
        for name, traced in others:
            _check_shared(first, (name, traced))

    @classmethod
    def of(cls, workload: "Traced | Workload") -> Self:
        """The workload itself, or a traced function as a workload of one phase."""
        if isinstance(workload, Traced):
            return cls({workload.name: workload})
        if not isinstance(workload, cls):
            raise SpecError(
                f"a {type(workload).__name__} is no workload; give what gimlax.trace returns, or a"
                " gimlax.Workload of several"
            )
        return workload


def _mistakes(phases: Mapping[str, Traced], calls: Mapping[str, float]) -> Iterator[str]:
    """What is wrong with names and calls, a sentence each."""
    for name in phases:
        if not name or not name.isprintable():
            yield f"a phase is called {name!r}; give it a name that can be printed on a line"
    for name, number in calls.items():
        if name not in phases:
            yield f"calls= names phase {name!r}, but the workload has {list(phases)}"
        elif not 0 < number < float("inf"):
            yield f"calls per request must be positive and finite, not {name!r}: {number}"


def _check_shared(first: tuple[str, Traced], other: tuple[str, Traced]) -> None:
    for role in (Role.RESIDENT, Role.CARRIED):
        lists = [
            [(a.path, a.aval.shape, str(a.aval.dtype)) for a in t.arguments if a.role is role]
            for _, t in (first, other)
        ]
        if lists[0] == lists[1]:
            continue
        pairs = zip(*lists, strict=False)
        here, there = next(
            (p for p in pairs if p[0] != p[1]),
            (f"{len(lists[0])} arrays", f"{len(lists[1])} arrays"),
        )
        raise SpecError(
            f"phases {first[0]!r} and {other[0]!r} do not share their {role.value} arguments:"
            f" {here}"
            f" and {there}; trace both with the same parameters and the same state"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """A phase of a chain: its trace, its graph, and its segments, which mean the same in all
    phases."""

    name: str
    calls: float
    traced: Traced
    graph: Graph
    segments: tuple[Segment, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """A workload as one chain of segments: what a planner reads.

    Resident and carried leaves are counted among the arguments of their role, so that an index
    means the same in every phase. `order` says which segment of the program each one is; it is
    empty where they are in the program's order.
    """

    phases: tuple[Phase, ...]
    order: tuple[int, ...] = ()

    @property
    def num_segments(self) -> int:
        """Number of segments, the same in all phases."""
        return len(self.phases[0].segments)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the segments."""
        return tuple(s.name for s in self.phases[0].segments)

    def resident_parts(self, first: int, stop: int) -> tuple[Part, ...]:
        """Rows of parameters that segments `first:stop` use in any phase; leaves count among the
        resident ones."""
        return self._parts(Role.RESIDENT, first, stop)

    def carried_parts(self, first: int, stop: int) -> tuple[Part, ...]:
        """Rows of state that segments `first:stop` use in any phase; leaves count among the
        carried."""
        return self._parts(Role.CARRIED, first, stop)

    def _parts(self, role: Role, first: int, stop: int) -> tuple[Part, ...]:
        traced = self.phases[0].traced
        leaves = traced.leaves(role)
        found: list[Part] = []
        for phase in self.phases:
            rank = {leaf: i for i, leaf in enumerate(phase.traced.leaves(role))}
            for segment in phase.segments[first:stop]:
                parts = segment.resident if role is Role.RESIDENT else segment.carried
                found += (Part(leaves[rank[p.leaf]], p.start, p.stop) for p in parts)
        rank = {leaf: i for i, leaf in enumerate(leaves)}
        return tuple(Part(rank[p.leaf], p.start, p.stop) for p in merge_parts(found, traced))

    def part_bytes(self, role: Role, part: Part) -> int:
        """Bytes of a part whose leaf counts among the arguments of `role`."""
        traced = self.phases[0].traced
        aval = traced.arguments[traced.leaves(role)[part.leaf]].aval
        whole = _jax.nbytes(aval)
        return whole if part.whole else whole // aval.shape[0] * (part.stop - part.start)

    def constants(self) -> tuple[tuple[int, tuple[int, ...]], ...]:
        """(bytes, segments that use it) of each closed-over array; phases share equal ones."""
        users: dict[int, set[int]] = {}
        sizes: dict[int, int] = {}
        for phase in self.phases:
            consts = phase.traced.jaxpr.consts
            for segment in phase.segments:
                for index in segment.constants:
                    users.setdefault(id(consts[index]), set()).add(segment.index)
                    sizes[id(consts[index])] = _jax.nbytes(jax.typeof(consts[index]))
        return tuple((sizes[key], tuple(sorted(found))) for key, found in users.items())

    def splits(self, boundary: int) -> tuple[str, ...]:
        """Paths of the carried leaves that a cut before segment `boundary` would tear apart."""
        found = [p for phase in self.phases for p in phase.segments[boundary - 1].splits]
        return tuple(dict.fromkeys(found))

    def fingerprint(self) -> str:
        """Identity of the model: arguments, roles and ordered segments with what crosses between
        them; never equation numbers or variable names, which differ between JAX versions."""
        described = [
            {
                "phase": phase.name,
                "arguments": [_argument(a.path, a.role, a.aval) for a in phase.traced.arguments],
                "constants": [_shape(jax.typeof(c)) for c in phase.traced.jaxpr.consts],
                "segments": [
                    [s.name, s.kind, [_shape(aval) for aval in s.boundary]] for s in phase.segments
                ],
            }
            for phase in self.phases
        ]
        text = json.dumps(described, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


def chain(workload: Traced | Workload) -> Chain:
    """Graphs of all phases, cut into segments that correspond.

    Phases that share no parameter and no state in use come one behind the other: a segment of one
    is empty in the others.
    """
    workload = Workload.of(workload)
    graphs = {name: build_graph(traced) for name, traced in workload.phases.items()}
    boundaries = {name: find_boundaries(graph) for name, graph in graphs.items()}
    kin = _kin(graphs)
    for names in kin:
        common = _common([(graphs[name], boundaries[name]) for name in names])
        boundaries |= dict(zip(names, common, strict=True))
    numbers = [len(boundaries[names[0]]) + 1 for names in kin]
    segments: dict[str, tuple[Segment, ...]] = {}
    for index, names in enumerate(kin):
        before, after = sum(numbers[:index]), sum(numbers[index + 1 :])
        for name in names:
            graph, own = graphs[name], boundaries[name]
            cuts = (*[0] * before, *own, *[len(graph.nodes)] * after)
            segments[name] = build_segments(graph, cuts)
    if len(kin) > 1:
        segments = _named_alike(segments, kin, numbers)
    calls = workload.calls or {}
    return Chain(
        phases=tuple(
            Phase(
                name=name,
                calls=calls[name],
                traced=graph.traced,
                graph=graph,
                segments=segments[name],
            )
            for name, graph in graphs.items()
        )
    )


def _kin(graphs: Mapping[str, Graph]) -> list[list[str]]:
    """Names of phases, those together that use a parameter or state in common."""
    found: list[tuple[list[str], set[str]]] = []
    for name, graph in graphs.items():
        arguments = graph.traced.arguments
        used = {
            part.leaf
            for part in used_parts(graph, 0, len(graph.nodes))
            if arguments[part.leaf].role is not Role.STREAMED
        } | {o.carried for o in graph.traced.outputs if o.carried is not None}
        paths = {arguments[leaf].path for leaf in used}
        near = [entry for entry in found if entry[1] & paths]
        found = [entry for entry in found if entry not in near]
        found.append(
            ([*(n for names, _ in near for n in names), name], paths.union(*(p for _, p in near)))
        )
    order = list(graphs)
    kin = [sorted(names, key=order.index) for names, _ in found]
    return sorted(kin, key=lambda names: order.index(names[0]))


def _named_alike(
    segments: Mapping[str, tuple[Segment, ...]],
    kin: Sequence[Sequence[str]],
    numbers: Sequence[int],
) -> dict[str, tuple[Segment, ...]]:
    """Segments with the name and the kind that they have where they are not empty."""
    owners = [names[0] for names, number in zip(kin, numbers, strict=True) for _ in range(number)]
    return {
        name: tuple(
            replace(
                segment,
                name=f"{owner}.{segments[owner][segment.index].name}",
                kind=segments[owner][segment.index].kind,
            )
            for segment, owner in zip(found, owners, strict=True)
        )
        for name, found in segments.items()
    }


def _common(found: Sequence[tuple[Graph, tuple[int, ...]]]) -> list[tuple[int, ...]]:
    """Boundaries of each graph that have a counterpart in all others."""
    if len(found) == 1:
        return [found[0][1]]
    signed = [_signatures(graph, cuts) for graph, cuts in found]
    shared = [s for s in signed[0] if all(s in other for other in signed[1:])]
    return [tuple(table[s] for s in shared) for table in signed]


def _signatures(graph: Graph, cuts: tuple[int, ...]) -> dict[tuple[tuple[str, ...], ...], int]:
    """For each boundary the shared arguments first used in each segment so far → its position.

    Of two boundaries between which no shared argument comes into use the first counts.
    """
    table: dict[tuple[tuple[str, ...], ...], int] = {}
    history: list[str] = []
    arguments = graph.traced.arguments
    for start, stop in zip((0, *cuts), cuts, strict=False):
        used = sorted(
            f"{arguments[p.leaf].path}[{p.start}:{p.stop}]"
            for p in used_parts(graph, start, stop)
            if arguments[p.leaf].role is not Role.STREAMED
        )
        history.extend(used)
        table.setdefault((tuple(sorted(history)),), stop)
    return table


def _shape(aval: jax.ShapeDtypeStruct) -> str:
    return f"{aval.dtype}{list(aval.shape)}"


def _argument(path: str, role: Role, aval: jax.ShapeDtypeStruct) -> list[str]:
    return [path, role.value, _shape(aval)]
