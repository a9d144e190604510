"""Cuts a phase at segment boundaries into stages, each a closed jaxpr of its own.

A stage is traced from the nodes that it owns. Shadow nodes that it needs are recomputed inside it;
a run of iterations of a scan becomes a shorter scan over its rows of the stacked arguments; a
value that later stages want is handed on edge by edge. A carried leaf belongs to the stage that
uses it.
"""

from collections.abc import Sequence

import jax

from gimlax import _jax
from gimlax.errors import PlanError
from gimlax.graph import Part, Phase, Role
from gimlax.graph.segments import crossing_values, used_parts
from gimlax.graph.traced import merge_parts
from gimlax.partition.body import StageBody
from gimlax.partition.stages import Edge, Partition, Stage


def cut(phase: Phase, cuts: Sequence[int]) -> Partition:
    """Stages between the given cuts.

    Args:
        phase: one phase of a chain.
        cuts: boundaries in ascending order; cut b lies before segment b, 1 ≤ b < num_segments.

    Raises:
        PlanError: a cut is out of range, out of order, or tears carried state apart.
    """
    return _Cutter(phase, check_cuts(phase, cuts)).partition()


def check_cuts(phase: Phase, cuts: Sequence[int]) -> tuple[int, ...]:
    """The cuts as a tuple, if they are legal."""
    number = len(phase.segments)
    found = tuple(cuts)
    if any(not 1 <= b < number for b in found) or list(found) != sorted(set(found)):
        raise PlanError(
            f"cuts {found}: phase {phase.name!r} has {number} segments, so cuts are distinct"
            f" numbers"
            f" from 1 to {number - 1} in ascending order"
        )
    for b in found:
        split = phase.segments[b - 1].splits
        if split:
            stage = found.index(b)
            raise PlanError(
                f"cut {b} of phase {phase.name!r}, between segments"
                f" {phase.segments[b - 1].name!r} and"
                f" {phase.segments[b].name!r}, splits carried {split[0]}"
                + (f" and {len(split) - 1} more" if len(split) > 1 else "")
                + f" between stages {stage} and {stage + 1}; state stays on one mesh, so move"
                f" the cut"
            )
    return found


class _Cutter:
    def __init__(self, phase: Phase, cuts: tuple[int, ...]) -> None:
        self.phase = phase
        self.graph = phase.graph
        self.traced = phase.traced
        self.edges = (0, *cuts, len(phase.segments))
        self.num_stages = len(cuts) + 1
        self.last_reader = self.graph.last_reader()
        self.ranks = {
            leaf: i
            for role in (Role.RESIDENT, Role.CARRIED)
            for i, leaf in enumerate(self.traced.leaves(role))
        }
        # Outputs that no node writes (an argument handed through) get ids after those of the graph.
        self.through: dict[int, _jax.Atom] = {}
        self.outputs = tuple(
            None if o.carried is not None else self._output_id(v)
            for o, v in zip(self.traced.outputs, self.traced.jaxpr.jaxpr.outvars, strict=True)
        )
        self.home = self._homes()

    def nodes_of(self, stage: int) -> range:
        """Node indices of a stage."""
        segments = self.phase.segments
        return range(segments[self.edges[stage]].start, segments[self.edges[stage + 1] - 1].stop)

    def partition(self) -> Partition:
        starts = [self.nodes_of(s).start for s in range(1, self.num_stages)]
        crossing = [crossing_values(self.graph, self.last_reader, p) for p in starts]
        stages = tuple(self._stage(s, crossing) for s in range(self.num_stages))
        ids = {v for values in crossing for v in values} | {
            o for o in self.outputs if o is not None
        }
        return Partition(
            traced=self.traced,
            stages=stages,
            edges=tuple(
                Edge(source=s, target=s + 1, values=values) for s, values in enumerate(crossing)
            ),
            avals={v: self._aval(v) for v in sorted(ids)},
            outputs=self.outputs,
        )

    def _output_id(self, atom: _jax.Atom) -> int:
        if isinstance(atom, _jax.Var) and atom in self.graph.ids:
            return self.graph.ids[atom]
        for known, other in self.through.items():
            if other is atom:
                return known
        value = len(self.graph.avals) + len(self.through)
        self.through[value] = atom
        return value

    def _aval(self, value: int) -> jax.ShapeDtypeStruct:
        if value in self.through:
            return _jax.aval_of(self.through[value])
        return self.graph.avals[value]

    def _homes(self) -> dict[int, int]:
        """The stage of each carried leaf that is not cut by rows; unused ones go to the last."""
        last = self.num_stages - 1
        return {
            leaf: self._stage_of(nodes[0]) if nodes else last
            for leaf, nodes in self.graph.ties().items()
        }

    def _stage_of(self, node: int) -> int:
        return next(s for s in range(self.num_stages) if node in self.nodes_of(s))

    def _produced(self, stage: int, crossing: list[tuple[int, ...]]) -> tuple[int, ...]:
        """Values made here that cross to the next stage or come out of the function."""
        nodes = self.nodes_of(stage)
        after = crossing[stage] if stage < self.num_stages - 1 else ()
        made = {v for v in after if self.graph.producer[v] in nodes}
        for value in self.outputs:
            if value is None:
                continue
            if value in self.through:
                atom = self.through[value]
                home = self.num_stages - 1
                if isinstance(atom, _jax.Var) and atom in self.graph.leaf_of:
                    home = self.home.get(self.graph.leaf_of[atom], home)
            elif self.graph.nodes[self.graph.producer[value]].shadow:
                home = self.num_stages - 1
            else:
                home = self._stage_of(self.graph.producer[value])
            if home == stage:
                made.add(value)
        return tuple(sorted(made))

    def _carried_outputs(self, stage: int) -> dict[int, _jax.Atom]:
        """Carried leaf → the variable of its update, for leaves whose home is this stage."""
        outvars = self.traced.jaxpr.jaxpr.outvars
        return {
            output.carried: var
            for output, var in zip(self.traced.outputs, outvars, strict=True)
            if output.carried is not None and self.home.get(output.carried) == stage
        }

    def _stage(self, stage: int, crossing: list[tuple[int, ...]]) -> Stage:
        nodes = self.nodes_of(stage)
        graph = self.graph
        own = [i for i in nodes if not graph.nodes[i].shadow]
        produced = self._produced(stage, crossing)
        carried_out = self._carried_outputs(stage)
        wanted = tuple(v for v in produced if v not in self.through) + tuple(
            graph.ids[v] for v in carried_out.values() if isinstance(v, _jax.Var) and v in graph.ids
        )
        shadows = graph.shadows_of(wanted + tuple(v for i in own for v in graph.nodes[i].reads))
        order = sorted({*own, *shadows})
        parts = set(used_parts(graph, nodes.start, nodes.stop))
        parts |= {p for i in shadows for p in graph.nodes[i].parts}
        parts |= {Part(leaf) for leaf, home in self.home.items() if home == stage}
        handed = [self.through[v] for v in produced if v in self.through]
        handed += list(carried_out.values())
        handed = [a for a in handed if isinstance(a, _jax.Var)]
        parts |= {Part(graph.leaf_of[a]) for a in handed if a in graph.leaf_of}
        constants = {c for i in order for c in graph.nodes[i].consts}
        constants |= {graph.const_of[a] for a in handed if a in graph.const_of}
        merged = merge_parts(parts, self.traced)
        by_role = {
            role: tuple(p for p in merged if self.traced.arguments[p.leaf].role is role)
            for role in (Role.RESIDENT, Role.CARRIED)
        }
        streamed = sorted({p.leaf for p in merged} & set(self.traced.leaves(Role.STREAMED)))
        body = StageBody(
            graph=graph,
            order=tuple(order),
            resident=by_role[Role.RESIDENT],
            carried=by_role[Role.CARRIED],
            constants=tuple(sorted(constants)),
            streamed=tuple(Part(leaf) for leaf in streamed),
            received=self._received(order, nodes),
            carried_out=carried_out,
            produced=produced,
            through=self.through,
        )
        return Stage(
            index=stage,
            first_segment=self.edges[stage],
            num_segments=self.edges[stage + 1] - self.edges[stage],
            jaxpr=body.trace(),
            resident=tuple(self._ranked(p) for p in body.resident),
            carried=tuple(self._ranked(p) for p in body.carried),
            constants=body.constants,
            streamed=tuple(streamed),
            received=body.received,
            produced=produced,
        )

    def _received(self, order: Sequence[int], nodes: range) -> tuple[int, ...]:
        needed = {v for i in order if not self.graph.nodes[i].shadow for v in self.graph.needs(i)}
        return tuple(sorted(v for v in needed if self.graph.producer[v] < nodes.start))

    def _ranked(self, part: Part) -> Part:
        return Part(self.ranks[part.leaf], part.start, part.stop)
