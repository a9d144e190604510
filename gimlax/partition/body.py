"""Evaluates the nodes of one stage on its own inputs, so that tracing it gives the stage's jaxpr.

Evaluation was chosen over writing equations by hand: a shortened scan, sliced rows and joined
outputs are then ordinary `jax.lax` calls, and JAX checks every shape again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import jax
import jax.numpy as jnp

from gimlax import _jax
from gimlax.graph import Graph, Part, part_aval


@dataclass(frozen=True, slots=True, kw_only=True)
class StageBody:
    """What a stage takes, does and gives; parts here count among all arguments.

    `order` are its nodes, shadows included; `carried_out` maps a whole carried leaf to the
    variable of its update; `through` gives the variable of values that no node writes.
    """

    graph: Graph
    order: tuple[int, ...]
    resident: tuple[Part, ...]
    carried: tuple[Part, ...]
    constants: tuple[int, ...]
    streamed: tuple[Part, ...]
    received: tuple[int, ...]
    carried_out: Mapping[int, _jax.Atom]
    produced: tuple[int, ...]
    through: Mapping[int, _jax.Atom]

    def trace(self) -> _jax.ClosedJaxpr:
        """The stage as a closed jaxpr without constants."""
        traced = self.graph.traced
        consts = [traced.jaxpr.consts[c] for c in self.constants]
        avals = [
            *(part_aval(traced, p) for p in (*self.resident, *self.carried)),
            *(jax.ShapeDtypeStruct(jnp.shape(c), jax.dtypes.result_type(c)) for c in consts),
            *(part_aval(traced, p) for p in self.streamed),
            *(self.graph.avals[v] for v in self.received),
        ]
        with _jax.using_config(traced.config):
            return jax.make_jaxpr(self._run)(*avals)

    def _run(self, *inputs: Any) -> list[Any]:
        frame = _Frame(self.graph)
        rest = iter(inputs)
        for part in (*self.resident, *self.carried):
            frame.parts[part] = next(rest)
        for const in self.constants:
            frame.consts[const] = next(rest)
        for part in self.streamed:
            frame.parts[part] = next(rest)
        for value in self.received:
            frame.values[value] = next(rest)
        nodes = self.graph.nodes
        for equation, group in groupby(self.order, key=lambda i: nodes[i].equation):
            frame.apply(equation, [nodes[i].iteration for i in group])
        carried = [
            frame.rows[p.leaf] if p.leaf in frame.rows else frame.read(self.carried_out[p.leaf])
            for p in self.carried
        ]
        produced = [
            frame.read(self.through[v]) if v in self.through else frame.values[v]
            for v in self.produced
        ]
        return carried + produced


@dataclass(slots=True)
class _Frame:
    """Values at hand while a stage is evaluated; `rows` are updated rows of carried leaves."""

    graph: Graph
    values: dict[int, Any] = field(default_factory=dict)
    parts: dict[Part, Any] = field(default_factory=dict)
    consts: dict[int, Any] = field(default_factory=dict)
    rows: dict[int, Any] = field(default_factory=dict)

    def read(self, atom: _jax.Atom) -> Any:
        """The value of a variable or a literal."""
        if isinstance(atom, _jax.Literal):
            return jnp.asarray(atom.val, _jax.aval_of(atom).dtype)
        if atom in self.graph.leaf_of:
            return self.parts[Part(self.graph.leaf_of[atom])]
        if atom in self.graph.const_of:
            return self.consts[self.graph.const_of[atom]]
        return self.values[self.graph.ids[atom]]

    def read_rows(self, atom: _jax.Atom, start: int, stop: int) -> Any:
        """Rows `start:stop` of a stacked value, from a part that holds them."""
        leaf = self.graph.leaf_of.get(atom) if isinstance(atom, _jax.Var) else None
        for part, array in self.parts.items():
            if part.leaf == leaf and not part.whole and part.start <= start and stop <= part.stop:
                return array[start - part.start : stop - part.start]
        return self.read(atom)[start:stop]

    def apply(self, equation: int, iterations: Sequence[int]) -> None:
        """Evaluates an equation, or these consecutive iterations of it."""
        eqn = self.graph.traced.jaxpr.jaxpr.eqns[equation]
        if equation in self.graph.scans:
            self._scan(equation, eqn, iterations[0], iterations[-1] + 1)
            return
        inputs = [a.val if isinstance(a, _jax.Literal) else self.read(a) for a in eqn.invars]
        # The search keeps a constraint, and the mesh that it names is none that a stage runs on.
        constraint = eqn.primitive.name == "sharding_constraint"
        outputs = inputs if constraint else _jax.bind(eqn, inputs)
        for var, value in zip(eqn.outvars, outputs, strict=True):
            if var in self.graph.ids:
                self.values[self.graph.ids[var]] = value

    def _scan(self, equation: int, eqn: _jax.JaxprEqn, first: int, stop: int) -> None:
        scan = self.graph.scans[equation]
        parts = scan.parts
        first_xs = parts.num_consts + parts.num_carry
        low, high = (parts.length - stop, parts.length - first) if parts.reverse else (first, stop)
        consts = [self.read(a) for a in eqn.invars[: parts.num_consts]]
        if first == 0:
            init = [self.read(a) for a in eqn.invars[parts.num_consts : first_xs]]
        else:
            init = [self.values[v] for v in scan.carry[first - 1]]
        xs = [self.read_rows(a, low, high) for a in eqn.invars[first_xs:]]
        body = _jax.evaluate(parts.body)

        def step(carry: list[Any], x: list[Any]) -> tuple[list[Any], list[Any]]:
            out = body(*consts, *carry, *x)
            return out[: parts.num_carry], out[parts.num_carry :]

        carry, stacked = jax.lax.scan(
            step,
            init,
            xs,
            length=stop - first,
            reverse=parts.reverse,
            unroll=min(parts.unroll, stop - first),
        )
        self.values.update(zip(scan.carry[stop - 1], carry, strict=True))
        for ids, leaf, block in zip(scan.stacked, scan.rows, stacked, strict=True):
            if leaf is not None:
                self.rows[leaf] = block
            elif ids is not None:
                done = [self.values[ids[first - 1]]] if first > 0 else []
                pieces = [block, *done] if parts.reverse else [*done, block]
                self.values[ids[stop - 1]] = jnp.concatenate(pieces) if done else block
