"""The equations of a Traced as nodes, the values between them, and what a cut would have to move.

A node is one equation, except that a scan becomes one node per iteration, since it can be cut
between any two of them. A *shadow* node is cheap and depends only on constants, parameters and
small integer inputs (masks, positions, casts of weights): it belongs to no stage and is recomputed
by each stage that needs it, so its value never crosses a cut. Units: bytes.
"""

from collections import Counter
from dataclasses import dataclass

import jax
import numpy as np

from gimlax import _jax
from gimlax.graph.counting import CHEAP, Count, count, count_jaxpr
from gimlax.graph.traced import Part, Role, Traced


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One equation, or one iteration of a scan.

    `reads` and `writes` are value ids, `parts` the argument leaves (or rows of them) and `consts`
    the constants that it uses. `iteration` counts in order of execution and is -1 outside of a
    scan.
    """

    equation: int
    iteration: int
    primitive: str
    scope: str
    reads: tuple[int, ...]
    parts: tuple[Part, ...]
    consts: tuple[int, ...]
    writes: tuple[int, ...]
    work: Count
    shadow: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ScanValues:
    """Ids of what one iteration of a scan hands to the next.

    `carry[k]` are the carried values after iteration k. `stacked[j][k]` is output j as far as
    iteration k has filled it, `[k + 1, ...]`; or None where output j takes the place of carried
    leaf `rows[j]`, whose rows stay with their iterations.
    """

    parts: _jax.ScanParts
    carry: tuple[tuple[int, ...], ...]
    stacked: tuple[tuple[int, ...] | None, ...]
    rows: tuple[int | None, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Graph:
    """Nodes in order, and the values that they pass on.

    `avals[v]` is the shape and dtype of value v, `producer[v]` the node that writes it,
    `ids` the value of each variable that an equation writes, `leaf_of` and `const_of` the argument
    leaf and the constant of the other variables, `scans` the iterations of each scan that can be
    cut.
    """

    traced: Traced
    nodes: tuple[Node, ...]
    avals: tuple[jax.ShapeDtypeStruct, ...]
    producer: tuple[int, ...]
    ids: dict[_jax.Var, int]
    leaf_of: dict[_jax.Var, int]
    const_of: dict[_jax.Var, int]
    scans: dict[int, ScanValues]

    def last_reader(self) -> np.ndarray:
        """For each value the last node that reads it and is no shadow, or -1. # [value]"""
        last = np.full(len(self.avals), -1)
        for index, node in enumerate(self.nodes):
            if not node.shadow:
                for value in self.needs(index):
                    last[value] = index
        return last

    def needs(self, node: int) -> tuple[int, ...]:
        """Values that a node reads from nodes that are no shadows, through shadows too."""
        found: list[int] = []
        for value in self.nodes[node].reads:
            producer = self.producer[value]
            if self.nodes[producer].shadow:
                continue  # a shadow reads only shadows, arguments and constants
            found.append(value)
        return tuple(found)

    def ties(self) -> dict[int, tuple[int, ...]]:
        """For each carried leaf that is not cut by rows: the nodes that must be on its mesh.

        They read it or write its update; leaves that take each other's place share theirs.
        """
        by_row = {leaf for scan in self.scans.values() for leaf in scan.rows if leaf is not None}
        tied = {leaf: {leaf} for leaf in self.traced.leaves(Role.CARRIED) if leaf not in by_row}
        nodes: dict[int, set[int]] = {leaf: set() for leaf in tied}
        for index, node in enumerate(self.nodes):
            for part in node.parts:
                if part.leaf in nodes:
                    nodes[part.leaf].add(index)
        for output, var in zip(self.traced.outputs, self.traced.jaxpr.jaxpr.outvars, strict=True):
            if output.carried not in tied or not isinstance(var, _jax.Var):
                continue
            if var in self.ids and not self.nodes[self.producer[self.ids[var]]].shadow:
                nodes[output.carried].add(self.producer[self.ids[var]])
            if self.leaf_of.get(var) in tied:
                group = tied[output.carried] | tied[self.leaf_of[var]]
                for leaf in group:
                    tied[leaf] = group
        return {
            leaf: tuple(sorted({n for other in group for n in nodes[other]}))
            for leaf, group in tied.items()
        }

    def shadows_of(self, values: tuple[int, ...]) -> tuple[int, ...]:
        """Shadow nodes, in order, that compute those of `values` which shadows write."""
        found: set[int] = set()
        todo = list(values)
        while todo:
            producer = self.producer[todo.pop()]
            if self.nodes[producer].shadow and producer not in found:
                found.add(producer)
                todo.extend(self.nodes[producer].reads)
        return tuple(sorted(found))


def build_graph(traced: Traced) -> Graph:
    """Nodes and values of a traced function."""
    return _Builder(traced).build()


class _Builder:
    def __init__(self, traced: Traced) -> None:
        jaxpr = traced.jaxpr.jaxpr
        self.traced = traced
        self.eqns = jaxpr.eqns
        self.leaf_of = {v: i for i, v in enumerate(jaxpr.invars)}
        self.const_of = {v: i for i, v in enumerate(jaxpr.constvars)}
        self.ids: dict[_jax.Var, int] = {}
        self.avals: list[jax.ShapeDtypeStruct] = []
        self.producer: list[int] = []
        self.nodes: list[Node] = []
        self.scans: dict[int, ScanValues] = {}
        self.uses = Counter(v for e in self.eqns for v in set(_variables(e.invars)))
        self.uses.update(_variables(jaxpr.outvars))
        self.shadow_values: set[int] = set()

    def build(self) -> Graph:
        for index, eqn in enumerate(self.eqns):
            if eqn.primitive.name == "scan" and self._over_layers(eqn):
                self._scan(index, eqn)
            else:
                self._equation(index, eqn)
        return Graph(
            traced=self.traced,
            nodes=tuple(self.nodes),
            avals=tuple(self.avals),
            producer=tuple(self.producer),
            ids=self.ids,
            leaf_of=self.leaf_of,
            const_of=self.const_of,
            scans=self.scans,
        )

    def _value(self, aval: jax.ShapeDtypeStruct) -> int:
        self.avals.append(aval)
        self.producer.append(len(self.nodes))
        return len(self.avals) - 1

    def _sources(
        self, variables: list[_jax.Var]
    ) -> tuple[tuple[int, ...], tuple[Part, ...], tuple[int, ...]]:
        """Value ids, whole argument leaves and constants among variables, each once."""
        unique = dict.fromkeys(variables)
        reads = tuple(self.ids[v] for v in unique if v in self.ids)
        parts = tuple(Part(self.leaf_of[v]) for v in unique if v in self.leaf_of)
        return reads, parts, tuple(self.const_of[v] for v in unique if v in self.const_of)

    def _equation(self, index: int, eqn: _jax.JaxprEqn) -> None:
        reads, parts, consts = self._sources(_variables(eqn.invars))
        writes = []
        for var in eqn.outvars:
            if not isinstance(var, _jax.DropVar):
                self.ids[var] = self._value(_jax.aval_of(var))
                writes.append(self.ids[var])
        shadow = (
            eqn.primitive.name in CHEAP
            and all(v in self.shadow_values for v in reads)
            and all(self._shadows(part.leaf) for part in parts)
        )
        if shadow:
            self.shadow_values.update(writes)
        node = Node(
            equation=index,
            iteration=-1,
            primitive=eqn.primitive.name,
            scope=_jax.scope_of(eqn),
            reads=reads,
            parts=parts,
            consts=consts,
            writes=tuple(writes),
            work=count(eqn),
            shadow=shadow,
        )
        self.nodes.append(node)

    def _shadows(self, leaf: int) -> bool:
        """Whether what is cheaply computed from this argument may be recomputed by each stage."""
        argument = self.traced.arguments[leaf]
        if argument.role is Role.STREAMED:
            return _is_whole_number(argument.aval)
        return argument.role is Role.RESIDENT

    def _scan(self, index: int, eqn: _jax.JaxprEqn) -> None:
        scan = _jax.scan_parts(eqn)
        first_xs = scan.num_consts + scan.num_carry
        consts, init, xs = (
            _variables(eqn.invars[: scan.num_consts]),
            _variables(eqn.invars[scan.num_consts : first_xs]),
            eqn.invars[first_xs:],
        )
        carry_out, ys_out = eqn.outvars[: scan.num_carry], eqn.outvars[scan.num_carry :]
        rows = self._rows(xs, ys_out)
        work, scope = count_jaxpr(scan.body), _jax.scope_of(eqn)
        carry: list[tuple[int, ...]] = []
        stacked: list[list[int] | None] = [None if r is not None else [] for r in rows]
        xs_vars = _variables(xs)
        shared = [v for v in xs_vars if v not in self.leaf_of]
        for k in range(scan.length):
            row = scan.length - 1 - k if scan.reverse else k
            reads, parts, constants = self._sources(consts + shared + (init if k == 0 else []))
            sliced = (self.leaf_of[v] for v in dict.fromkeys(xs_vars) if v in self.leaf_of)
            parts += tuple(Part(leaf, row, row + 1) for leaf in sliced)
            if k > 0:
                reads += carry[-1] + tuple(s[-1] for s in stacked if s is not None)
            carry.append(tuple(self._value(_jax.aval_of(v)) for v in carry_out))
            for filled, var in zip(stacked, ys_out, strict=True):
                if filled is not None:
                    whole = _jax.aval_of(var)
                    aval = jax.ShapeDtypeStruct((k + 1, *whole.shape[1:]), whole.dtype)
                    filled.append(self._value(aval))
            node = Node(
                equation=index,
                iteration=k,
                primitive="scan",
                scope=f"{scope}[{k}]" if scope else "",
                reads=reads,
                parts=parts,
                consts=constants,
                writes=carry[-1] + tuple(s[-1] for s in stacked if s is not None),
                work=work,
                shadow=False,
            )
            self.nodes.append(node)
        for var, value in zip(carry_out, carry[-1], strict=True):
            if not isinstance(var, _jax.DropVar):
                self.ids[var] = value
        for var, filled in zip(ys_out, stacked, strict=True):
            if filled is not None and not isinstance(var, _jax.DropVar):
                self.ids[var] = filled[-1]
        self.scans[index] = ScanValues(
            parts=scan,
            carry=tuple(carry),
            stacked=tuple(None if s is None else tuple(s) for s in stacked),
            rows=rows,
        )

    def _over_layers(self, eqn: _jax.JaxprEqn) -> bool:
        """Whether a cut of this scan divides parameters or state, as one over time does not."""
        scan = _jax.scan_parts(eqn)
        roles = (Role.RESIDENT, Role.CARRIED)
        return scan.length > 1 and any(
            self.traced.arguments[self.leaf_of[var]].role in roles
            for var in _variables(eqn.invars[scan.num_consts + scan.num_carry :])
            if var in self.leaf_of
        )

    def _rows(self, xs: list[_jax.Atom], ys: list[_jax.Var]) -> tuple[int | None, ...]:
        """The carried leaf that each stacked output replaces row by row, where it does."""
        replaced = {
            var: output.carried
            for var, output in zip(
                self.traced.jaxpr.jaxpr.outvars, self.traced.outputs, strict=True
            )
            if output.carried is not None and isinstance(var, _jax.Var)
        }
        scanned = Counter(self.leaf_of[v] for v in _variables(xs) if v in self.leaf_of)
        invars = self.traced.jaxpr.jaxpr.invars
        rows: list[int | None] = []
        for var in ys:
            leaf = replaced.get(var)
            if leaf is not None and not (
                self.uses[var] == self.uses[invars[leaf]] == scanned[leaf] == 1
            ):
                leaf = None  # read or returned elsewhere too, so it is needed as a whole
            rows.append(leaf)
        return tuple(rows)


def _variables(atoms: list[_jax.Atom]) -> list[_jax.Var]:
    return [a for a in atoms if isinstance(a, _jax.Var)]


def _is_whole_number(aval: jax.ShapeDtypeStruct) -> bool:
    return jax.numpy.issubdtype(aval.dtype, jax.numpy.integer) or aval.dtype == bool
