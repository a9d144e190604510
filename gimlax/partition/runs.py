"""A segment of a phase as one flat run of equations: what it takes, what it makes, what it updates.

Chosen over the jaxpr of a stage because shardings are searched segment by segment, before any cut
is known. An iteration of a scan over layers is a run too; what it takes of a stacked argument is a
row, without the leading dim.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import jax

from gimlax import _jax
from gimlax.graph import Graph, Phase, Role
from gimlax.graph.segments import crossing_values
from gimlax.partition.flattening import Flat

__all__ = ["Run", "Source", "find_runs"]


@dataclass(frozen=True, slots=True, order=True)
class Source:
    """Where a value of a run comes from.

    `kind` is a role ('resident', 'carried', 'streamed'), 'constant' or 'received'; `index` counts
    the leaves of the role, the constants, or is a value id of the graph. `row` says that the value
    is a row of it.
    """

    kind: str
    index: int
    row: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """A flat run with its ends.

    `sources` names what its values are, where no step makes them; `received` and `leaving` map
    graph values to those of the run; `updates` pairs the source of a carried leaf with the value
    that takes its place; `results` maps output leaves to values. `whole` are values that cannot be
    split, `escaping` those that something else reads, `uncounted` steps that other stages do too.
    """

    flat: Flat = field(default_factory=Flat)
    sources: dict[int, Source] = field(default_factory=dict)
    leaving: dict[int, int] = field(default_factory=dict)
    updates: list[tuple[Source, int]] = field(default_factory=list)
    results: dict[int, int] = field(default_factory=dict)
    whole: set[int] = field(default_factory=set)
    escaping: set[int] = field(default_factory=set)
    uncounted: set[int] = field(default_factory=set)

    def value_of(self, source: Source, aval: jax.ShapeDtypeStruct) -> int:
        """The value of a source, one for all its uses."""
        for value, known in self.sources.items():
            if known == source:
                return value
        value = self.flat.value(aval)
        self.sources[value] = source
        return value


def find_runs(phase: Phase) -> list[Run]:
    """The run of each segment of a phase."""
    last = phase.graph.last_reader()
    bounds = [(segment.start, segment.stop) for segment in phase.segments]
    traced = phase.graph.traced
    ranks = {leaf: (role.value, i) for role in Role for i, leaf in enumerate(traced.leaves(role))}
    return [
        _Builder(phase.graph, ranks, start, stop).build(crossing_values(phase.graph, last, stop))
        for start, stop in bounds
    ]


class _Builder:
    def __init__(
        self, graph: Graph, ranks: Mapping[int, tuple[str, int]], start: int, stop: int
    ) -> None:
        self.graph = graph
        self.nodes = range(start, stop)
        self.run = Run()
        self.made: dict[int, int] = {}  # graph value -> value of the run
        self.env: dict[_jax.Var, int | None] = {}
        self.ranks = ranks

    def build(self, crossing: tuple[int, ...]) -> Run:
        graph = self.graph
        eqns = graph.traced.jaxpr.jaxpr.eqns
        own = [n for n in self.nodes if not graph.nodes[n].shadow]
        shadows = {s for n in own for s in graph.shadows_of(graph.nodes[n].reads)}
        wanted = [v for v in self._results() if graph.nodes[graph.producer[v]].shadow]
        shadows.update(graph.shadows_of(tuple(wanted)))
        for node in sorted(shadows.union(own)):
            equation = graph.nodes[node].equation
            first = len(self.run.flat.steps)
            if graph.nodes[node].iteration >= 0:
                self._iteration(equation, graph.nodes[node].iteration)
            else:
                eqn = eqns[equation]
                for var in eqn.invars:
                    if isinstance(var, _jax.Var):
                        self.env[var] = self._read(var)
                self.run.flat.walk([eqn], self.env)
                for var in eqn.outvars:
                    value = self.env.get(var)
                    if var in graph.ids and value is not None:
                        self.made[graph.ids[var]] = value
            if node in shadows:
                self.run.uncounted.update(range(first, len(self.run.flat.steps)))
        self._ends(crossing)
        return self.run

    def _results(self) -> Iterable[int]:
        """Graph values that come out of the function and are made here."""
        for var in self.graph.traced.jaxpr.jaxpr.outvars:
            if isinstance(var, _jax.Var) and var in self.graph.ids:
                value = self.graph.ids[var]
                if self.graph.producer[value] in self.nodes:
                    yield value

    def _ends(self, crossing: tuple[int, ...]) -> None:
        run, graph = self.run, self.graph
        for value in crossing:
            if value in self.made:
                run.leaving[value] = self.made[value]
        traced = graph.traced
        outputs = zip(traced.outputs, traced.jaxpr.jaxpr.outvars, strict=True)
        for index, (output, var) in enumerate(outputs):
            if not isinstance(var, _jax.Var) or graph.ids.get(var) not in self.made:
                continue
            value = self.made[graph.ids[var]]
            if graph.producer[graph.ids[var]] not in self.nodes:
                continue
            run.escaping.add(value)
            if output.carried is None:
                run.results[index] = value
            else:
                run.updates.append((Source(*self.ranks[output.carried]), value))
        run.escaping.update(run.leaving.values())
        run.escaping.update(value for _, value in run.updates)

    def _read(self, var: _jax.Var, *, row: bool = False) -> int:
        aval = _jax.aval_of(var)
        if row:
            aval = jax.ShapeDtypeStruct(aval.shape[1:], aval.dtype)
        if var in self.graph.leaf_of:
            return self.run.value_of(Source(*self.ranks[self.graph.leaf_of[var]], row), aval)
        if var in self.graph.const_of:
            return self.run.value_of(Source("constant", self.graph.const_of[var], row), aval)
        value = self.graph.ids[var]
        if row:
            return self._whole(aval)
        return self._graph_value(value)

    def _graph_value(self, value: int) -> int:
        if value in self.made:
            return self.made[value]
        return self.run.value_of(Source("received", value), self.graph.avals[value])

    def _whole(self, aval: jax.ShapeDtypeStruct) -> int:
        value = self.run.flat.value(aval)
        self.run.whole.add(value)
        return value

    def _iteration(self, equation: int, iteration: int) -> None:
        graph, run = self.graph, self.run
        eqn = graph.traced.jaxpr.jaxpr.eqns[equation]
        scan = graph.scans[equation]
        parts = scan.parts
        first_xs = parts.num_consts + parts.num_carry

        def read(atom: _jax.Atom, *, row: bool = False) -> int | None:
            return self._read(atom, row=row) if isinstance(atom, _jax.Var) else None

        consts = [read(a) for a in eqn.invars[: parts.num_consts]]
        if iteration == 0:
            carry = [read(a) for a in eqn.invars[parts.num_consts : first_xs]]
        else:
            carry = [self._graph_value(v) for v in scan.carry[iteration - 1]]
        rows = [read(a, row=True) for a in eqn.invars[first_xs:]]
        results = run.flat.open(parts.body, (*consts, *carry, *rows))
        for value, result, var in zip(
            scan.carry[iteration], results, parts.body.jaxpr.outvars, strict=False
        ):
            self.made[value] = self._whole(_jax.aval_of(var)) if result is None else result
        stacked = results[parts.num_carry :]
        for ids, leaf, result in zip(scan.stacked, scan.rows, stacked, strict=True):
            if leaf is not None and result is not None:
                run.updates.append((Source(*self.ranks[leaf], True), result))
            elif ids is not None:
                self.made[ids[iteration]] = self._whole(graph.avals[ids[iteration]])
