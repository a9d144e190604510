"""The axes that sharding constraints inside of a model name: meshes have two.

A constraint along another axis would be passed over in silence, as no mesh has devices along it.
"""

from collections.abc import Iterator

from gimlax import _jax
from gimlax.devices.mesh import AXIS_NAMES
from gimlax.errors import SpecError
from gimlax.graph import Chain
from gimlax.partition.specs import normal

__all__ = ["check_constraints", "constrained_axes"]


def check_constraints(chain: Chain) -> None:
    """Refuses constraints along axes that no mesh has.

    Raises:
        SpecError: names every one of them, with its phase, spec and shape.
    """
    wrong = [
        f"phase {phase.name!r}: {mistake}"
        for phase in chain.phases
        for mistake in dict.fromkeys(
            text for eqn in _constraints(phase.traced.jaxpr, set()) for text in _unknown(eqn)
        )
    ]
    if wrong:
        raise SpecError("\n".join(wrong))


def constrained_axes(chain: Chain) -> set[str]:
    """The axes that constraints of any phase name."""
    found = [_constraints(phase.traced.jaxpr, set()) for phase in chain.phases]
    return {axis for row in found for eqn in row for axis in _axes(eqn)}


def _constraints(closed: _jax.ClosedJaxpr, seen: set[int]) -> Iterator[_jax.JaxprEqn]:
    """Those in a jaxpr and in those inside of it, each of which is looked at once."""
    if id(closed.jaxpr) in seen:
        return
    seen.add(id(closed.jaxpr))
    for eqn in closed.jaxpr.eqns:
        if eqn.primitive.name == "sharding_constraint":
            yield eqn
        for body in _jax.inner_jaxprs(eqn):
            yield from _constraints(body, seen)


def _axes(eqn: _jax.JaxprEqn) -> list[str]:
    sharding = eqn.params["sharding"]
    if not hasattr(sharding, "spec"):
        return []  # of one device, whatever it is called
    free = eqn.params["unconstrained_dims"]
    entries = (None if dim in free else of for dim, of in enumerate(sharding.spec))
    rank = len(_jax.aval_of(eqn.outvars[0]).shape)
    return list(dict.fromkeys(axis for of in normal(entries, rank) for axis in of))


def _unknown(eqn: _jax.JaxprEqn) -> Iterator[str]:
    if unknown := [axis for axis in _axes(eqn) if axis not in AXIS_NAMES]:
        sharding, shape = eqn.params["sharding"], _jax.aval_of(eqn.outvars[0]).shape
        scope = _jax.scope_of(eqn)
        yield (
            f"with_sharding_constraint{f' in {scope!r}' if scope else ''} splits {list(shape)} "
            f"by {sharding.spec} along axis {', '.join(map(repr, unknown))}, but meshes have "
            f"{', '.join(map(repr, AXIS_NAMES))}; use these"
        )
