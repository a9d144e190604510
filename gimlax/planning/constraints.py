"""Whether the sharding constraints inside of a model mean anything: meshes have two axes.

A constraint along another axis would be passed over in silence, as no mesh has devices along it.
"""

from collections.abc import Iterator

from gimlax import _jax
from gimlax.devices.mesh import AXIS_NAMES
from gimlax.errors import SpecError
from gimlax.graph import Chain
from gimlax.partition.specs import normal

__all__ = ["check_constraints"]


def check_constraints(chain: Chain) -> None:
    """Refuses constraints along axes that no mesh has.

    Raises:
        SpecError: names every one of them, with its phase, spec and shape.
    """
    wrong = [
        f"phase {phase.name!r}: {mistake}"
        for phase in chain.phases
        for mistake in dict.fromkeys(_mistakes(phase.traced.jaxpr, set()))
    ]
    if wrong:
        raise SpecError("\n".join(wrong))


def _mistakes(closed: _jax.ClosedJaxpr, seen: set[int]) -> Iterator[str]:
    """What is wrong in a jaxpr and those inside of it, each of which is looked at once."""
    if id(closed.jaxpr) in seen:
        return
    seen.add(id(closed.jaxpr))
    for eqn in closed.jaxpr.eqns:
        if eqn.primitive.name == "sharding_constraint":
            yield from _unknown(eqn)
        for body in _jax.inner_jaxprs(eqn):
            yield from _mistakes(body, seen)


def _unknown(eqn: _jax.JaxprEqn) -> Iterator[str]:
    sharding = eqn.params["sharding"]
    if not hasattr(sharding, "spec"):
        return  # of one device, whatever it is called
    shape = _jax.aval_of(eqn.outvars[0]).shape
    free = eqn.params["unconstrained_dims"]
    entries = (None if dim in free else of for dim, of in enumerate(sharding.spec))
    axes = {axis: None for of in normal(entries, len(shape)) for axis in of}
    if unknown := [axis for axis in axes if axis not in AXIS_NAMES]:
        scope = _jax.scope_of(eqn)
        yield (
            f"with_sharding_constraint{f' in {scope!r}' if scope else ''} splits {list(shape)} "
            f"by {sharding.spec} along axis {', '.join(map(repr, unknown))}, but meshes have "
            f"{', '.join(map(repr, AXIS_NAMES))}; use these"
        )
