"""What cannot go to another process, told before anything is compiled there."""

from collections.abc import Iterator

from gimlax import _jax
from gimlax.errors import SpecError
from gimlax.graph import Chain

__all__ = ["refuse_callbacks"]

# What has other effects, as a print has, is refused when it is traced.
_CALLBACKS = {"pure_callback", "io_callback", "debug_callback"}


def refuse_callbacks(chain: Chain) -> None:
    """Raises a `SpecError` that names every segment that calls Python of this process."""
    found = [
        f"segment {segment.name!r} of {phase.name!r} has {name!r}"
        for phase in chain.phases
        for segment in phase.segments
        for name in dict.fromkeys(
            name
            for node in phase.graph.nodes[segment.start : segment.stop]
            for name in _callbacks(phase.traced.jaxpr.eqns[node.equation])
        )
    ]
    if found:
        raise SpecError(
            f"{'; '.join(found)}: it calls Python of this process, and stages on workers run in"
            " others; take it out, or plan for meshes of this process and compile without workers"
        )


def _callbacks(eqn: _jax.JaxprEqn) -> Iterator[str]:
    """Callbacks that an equation is, or has in its body."""
    if eqn.primitive.name in _CALLBACKS:
        yield eqn.primitive.name
    for inner in _jax.inner_jaxprs(eqn):
        for within in inner.jaxpr.eqns:
            yield from _callbacks(within)
