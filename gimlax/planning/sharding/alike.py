"""Which segments are the same: the layers of a model repeat, and what holds for one holds for all.

Two runs are alike if they take the same steps over values that are numbered alike, whatever their
arguments are called. A search then looks at one of them and renames.
"""

from collections.abc import Hashable, Sequence

from gimlax import _jax
from gimlax.graph.routing import is_expert_layer
from gimlax.partition import Run

__all__ = ["first_alike"]


def first_alike(runs: Sequence[Run]) -> list[int]:
    """For each run the first one that is like it."""
    first: dict[Hashable, int] = {}
    equations = _Equations()
    return [first.setdefault(_pattern(run, equations), index) for index, run in enumerate(runs)]


class _Equations:
    """Numbers for equations, the same for equal ones."""

    def __init__(self) -> None:
        self._seen: dict[int, int] = {}
        self._numbers: dict[Hashable, int] = {}

    def number(self, eqn: _jax.JaxprEqn) -> int:
        """Of an equation, which outlives this."""
        if id(eqn) not in self._seen:
            identity = _identity(eqn)
            self._seen[id(eqn)] = self._numbers.setdefault(identity, len(self._numbers))
        return self._seen[id(eqn)]


def _pattern(run: Run, equations: _Equations) -> Hashable:
    """Equal for runs that are alike."""
    flat = run.flat
    return (
        tuple((equations.number(s.eqn), s.inputs, s.outputs, s.fused) for s in flat.steps),
        tuple((_attributes(f.eqn), f.inputs, f.outputs) for f in flat.fused),
        tuple((aval.shape, aval.dtype) for aval in flat.avals),
        tuple(flat.consts),
        tuple((value, source.kind, source.row) for value, source in run.sources.items()),
        tuple(run.leaving.values()),
        tuple((source.kind, source.row, value) for source, value in run.updates),
        tuple(run.results.values()),
        frozenset(run.whole),
        frozenset(run.escaping),
        frozenset(run.uncounted),
    )


def _identity(eqn: _jax.JaxprEqn) -> Hashable:
    """What equal equations have in common; those with bodies are equal if these are one object,
    except layers of experts, whose bodies follow from shapes."""
    avals = [_jax.aval_of(atom) for atom in eqn.invars if isinstance(atom, _jax.Literal)]
    literals = tuple((aval.shape, aval.dtype) for aval in avals)
    if is_expert_layer(eqn):
        return eqn.primitive.name, literals, _attributes(eqn)
    params = tuple((key, _hashable(value)) for key, value in sorted(eqn.params.items()))
    return eqn.primitive.name, literals, params


def _attributes(eqn: _jax.JaxprEqn) -> Hashable:
    """Of a composite, without its body."""
    return tuple(
        (key, _hashable(value))
        for key, value in sorted(eqn.params.items())
        if not isinstance(value, _jax.ClosedJaxpr)
    )


def _hashable(value: object) -> Hashable:
    try:
        hash(value)
    except TypeError:
        return id(value)
    return type(value), value
