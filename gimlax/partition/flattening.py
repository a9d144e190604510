"""A run of equations with every call and composite opened, over numbered values.

Shardings are decided on what a partitioner sees, which is the inside of composites. Where a
composite is an operation of its own for the cost model (attention), the steps inside of it
remember it, so that it can be priced as one.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from gimlax import _jax
from gimlax.graph.describing import ATTENTION_NAME
from gimlax.graph.routing import is_expert_layer

__all__ = ["Flat", "Fused", "Step"]


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """One equation over value numbers; None for a literal. `fused` counts among `Flat.fused`."""

    eqn: _jax.JaxprEqn
    inputs: tuple[int | None, ...]
    outputs: tuple[int, ...]
    fused: int | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Fused:
    """A composite that is one operation: its equation over value numbers."""

    eqn: _jax.JaxprEqn
    inputs: tuple[int | None, ...]
    outputs: tuple[int | None, ...]


@dataclass(frozen=True, slots=True)
class Flat:
    """Steps in order; `avals[v]` is the shape and dtype of value v, `consts` what bodies close
    over or are given as numbers."""

    avals: list[jax.ShapeDtypeStruct] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    fused: list[Fused] = field(default_factory=list)
    consts: dict[int, Any] = field(default_factory=dict)

    def value(self, aval: jax.ShapeDtypeStruct) -> int:
        """A new value."""
        self.avals.append(aval)
        return len(self.avals) - 1

    def walk(
        self,
        eqns: Sequence[_jax.JaxprEqn],
        env: dict[_jax.Var, int | None],
        fused: int | None = None,
    ) -> None:
        """Appends equations; `env` has the values of their free variables and gets the others."""
        for eqn in eqns:
            inputs = tuple(env[v] if isinstance(v, _jax.Var) else None for v in eqn.invars)
            body = _opened(eqn)
            if body is None:
                outputs = tuple(self.value(_jax.aval_of(v)) for v in eqn.outvars)
                env.update(zip(eqn.outvars, outputs, strict=True))
                self.steps.append(Step(eqn, inputs, outputs, fused))
                continue
            own = fused is None and eqn.params.get("name") == ATTENTION_NAME
            if own:
                self.fused.append(Fused(eqn, inputs, ()))
            within = len(self.fused) - 1 if own else fused
            given = [
                self._literal(atom) if isinstance(atom, _jax.Literal) else value
                for atom, value in zip(eqn.invars, inputs, strict=True)
            ]
            env.update(zip(eqn.outvars, self.open(body, given, within), strict=True))
            if own:
                outputs = tuple(env[v] for v in eqn.outvars)
                self.fused[-1] = Fused(eqn, inputs, outputs)

    def _literal(self, literal: _jax.Literal) -> int:
        """A number that is handed to a body, which has a name for it."""
        aval = _jax.aval_of(literal)
        value = self.value(aval)
        self.consts[value] = np.asarray(literal.val, aval.dtype)
        return value

    def open(
        self, body: _jax.ClosedJaxpr, inputs: Sequence[int | None], fused: int | None = None
    ) -> list[int | None]:
        """Appends the equations of a body; returns the values of its results."""
        inner: dict[_jax.Var, int | None] = dict(zip(body.jaxpr.invars, inputs, strict=True))
        for var, const in zip(body.jaxpr.constvars, body.consts, strict=True):
            value = inner[var] = self.value(_jax.aval_of(var))
            self.consts[value] = const
        self.walk(body.jaxpr.eqns, inner, fused)
        return [inner[v] if isinstance(v, _jax.Var) else None for v in body.jaxpr.outvars]


def _opened(eqn: _jax.JaxprEqn) -> _jax.ClosedJaxpr | None:
    if is_expert_layer(eqn):  # a step of its own: its rows meet weights as data says
        return None
    if eqn.primitive.name == "composite":
        return next(_jax.inner_jaxprs(eqn), None)
    return _jax.callee(eqn)
