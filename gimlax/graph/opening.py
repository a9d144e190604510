"""Opens calls that only group equations, so that a cut can pass between any two of them.

`jit`, `custom_jvp`, `custom_vjp` and `remat` hide equations in nested jaxprs; here their bodies are
put in place of the call, under fresh variables (a body may be shared by many calls) and with their
name stacks below that of the call. Composites, loops and branches keep their meaning and stay
closed.
"""

from collections.abc import Sequence

from gimlax import _jax


def open_calls(closed: _jax.ClosedJaxpr) -> _jax.ClosedJaxpr:
    """The same function without grouping calls; constants of the bodies become its own."""
    opener = _Opener()
    jaxpr = closed.jaxpr
    names: dict[_jax.Var, _jax.Atom] = {v: v for v in jaxpr.invars}
    names.update(opener.hold(closed))
    opener.walk(jaxpr.eqns, names, _jax.empty_scope())
    outvars = [names[v] if isinstance(v, _jax.Var) else v for v in jaxpr.outvars]
    return _jax.close_jaxpr(
        [v for v, _ in opener.consts.values()],
        [c for _, c in opener.consts.values()],
        jaxpr.invars,
        outvars,
        opener.eqns,
        closed,
    )


class _Opener:
    def __init__(self) -> None:
        self.eqns: list[_jax.JaxprEqn] = []
        self.consts: dict[int, tuple[_jax.Var, object]] = {}

    def hold(self, closed: _jax.ClosedJaxpr) -> dict[_jax.Var, _jax.Atom]:
        """Variables for the constants of a body; the same array gets the same variable."""
        held: dict[_jax.Var, _jax.Atom] = {}
        for var, const in zip(closed.jaxpr.constvars, closed.consts, strict=True):
            known, _ = self.consts.setdefault(id(const), (_jax.Var(var.aval), const))
            held[var] = known
        return held

    def walk(
        self, eqns: Sequence[_jax.JaxprEqn], names: dict[_jax.Var, _jax.Atom], scope: object
    ) -> None:
        for eqn in eqns:
            inputs = [names[v] if isinstance(v, _jax.Var) else v for v in eqn.invars]
            body = _jax.callee(eqn)
            if body is None:
                outputs = [_fresh(v, names) for v in eqn.outvars]
                self.eqns.append(_jax.rename(eqn, inputs, outputs, scope))
                continue
            inner: dict[_jax.Var, _jax.Atom] = dict(zip(body.jaxpr.invars, inputs, strict=True))
            inner.update(self.hold(body))
            self.walk(body.jaxpr.eqns, inner, _jax.scope_below(scope, eqn))
            for outer, var in zip(eqn.outvars, body.jaxpr.outvars, strict=True):
                names[outer] = inner[var] if isinstance(var, _jax.Var) else var


def _fresh(var: _jax.Var, names: dict[_jax.Var, _jax.Atom]) -> _jax.Var:
    if isinstance(var, _jax.DropVar):
        return var
    fresh = _jax.Var(var.aval)
    names[var] = fresh
    return fresh
