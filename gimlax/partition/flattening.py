"""A run of equations with every call and composite opened, over numbered values.

Shardings are decided on what a partitioner sees, which is the inside of composites. Where a
composite is an operation of its own for the cost model (attention), the steps inside of it
remember it, so that it can be priced as one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import jax

from gimlax import _jax
from gimlax.graph.describing import ATTENTION_NAME

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
    """Steps in order; `avals[v]` is the shape and dtype of value v."""

    avals: list[jax.ShapeDtypeStruct] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    fused: list[Fused] = field(default_factory=list)

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
            env.update(zip(eqn.outvars, self.open(body, inputs, within), strict=True))
            if own:
                outputs = tuple(env[v] for v in eqn.outvars)
                self.fused[-1] = Fused(eqn, inputs, outputs)

    def open(
        self, body: _jax.ClosedJaxpr, inputs: Sequence[int | None], fused: int | None = None
    ) -> list[int | None]:
        """Appends the equations of a body; returns the values of its results."""
        inner: dict[_jax.Var, int | None] = dict(zip(body.jaxpr.invars, inputs, strict=True))
        inner.update({v: self.value(_jax.aval_of(v)) for v in body.jaxpr.constvars})
        self.walk(body.jaxpr.eqns, inner, fused)
        return [inner[v] if isinstance(v, _jax.Var) else None for v in body.jaxpr.outvars]


def _opened(eqn: _jax.JaxprEqn) -> _jax.ClosedJaxpr | None:
    if eqn.primitive.name == "composite":
        return next(_jax.inner_jaxprs(eqn), None)
    return _jax.callee(eqn)


def flatten(closed: _jax.ClosedJaxpr) -> tuple[Flat, Mapping[_jax.Var, int | None]]:
    """A whole jaxpr, and the value of each of its variables; inputs come first."""
    flat = Flat()
    env: dict[_jax.Var, int | None] = {
        v: flat.value(_jax.aval_of(v)) for v in (*closed.jaxpr.invars, *closed.jaxpr.constvars)
    }
    flat.walk(closed.jaxpr.eqns, env)
    return flat, env
