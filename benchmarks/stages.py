"""Every stage of a specimen as a program that can be timed: cut at each legal boundary, compiled.

Stages whose programs are the same text are one: a model of equal layers is no more evidence than
one of them.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from specimens import Specimen

from gimlax import _jax
from gimlax.graph import Segment, chain, trace
from gimlax.partition import cut


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TimedStage:
    """A compiled stage with arguments on the device; `call` waits for its result.

    `part` is 'embedding', 'head' or 'layer'; `alike` says how many stages of the model are this
    program.
    """

    family: str
    case: str
    name: str
    part: str
    segments: tuple[Segment, ...]
    resident_bytes: int
    alike: int
    call: Callable[[], None]


def stages(specimen: Specimen, device: _jax.Device) -> Iterator[TimedStage]:
    """The distinct stages of a specimen between all legal cuts."""
    traced = trace(specimen.function, *specimen.args, carried=specimen.carried)
    phase = chain(traced).phases[0]
    cuts = [b for b in range(1, len(phase.segments)) if not phase.segments[b - 1].splits]
    sharding = jax.sharding.SingleDeviceSharding(device)
    found: dict[str, list[Any]] = {}
    for stage in cut(phase, cuts).stages:
        avals = [_jax.aval_of(var) for var in stage.jaxpr.jaxpr.invars]
        first, stop = len(stage.resident), len(stage.resident) + len(stage.carried)
        lowered = jax.jit(
            _jax.evaluate(stage.jaxpr),
            donate_argnums=tuple(range(first, stop)),
            keep_unused=True,
            in_shardings=sharding,
            out_shardings=sharding,
        ).lower(*avals)
        found.setdefault(lowered.as_text(), []).append((stage, avals, first, stop, lowered))
    for alike in found.values():
        stage, avals, first, stop, lowered = alike[0]
        segments = phase.segments[stage.first_segment : stage.first_segment + stage.num_segments]
        kinds = {segment.kind for segment in segments}
        yield TimedStage(
            family=specimen.family,
            case=specimen.case,
            name=" + ".join(segment.name for segment in segments),
            part=next((kind for kind in ("embedding", "head") if kind in kinds), "layer"),
            segments=tuple(segments),
            resident_bytes=sum(_jax.nbytes(aval) for aval in avals[:first]),
            alike=len(alike),
            call=_call(lowered.compile(), jax.device_put(_arrays(avals), sharding), first, stop),
        )


def _call(
    program: Callable[..., Any], args: list[jax.Array], first: int, stop: int
) -> Callable[[], None]:
    """A call that hands the state `args[first:stop]` from one call to the next."""
    state = [args[first:stop]]

    def call() -> None:
        results = jax.block_until_ready(program(*args[:first], *state[0], *args[stop:]))
        state[0] = results[: stop - first]

    return call


def _arrays(avals: list[jax.ShapeDtypeStruct]) -> list[jax.Array]:
    """Small random numbers; whole ones are indices that every table and cache has."""
    rng = np.random.default_rng(0)
    return [
        jnp.asarray(rng.integers(0, 32, aval.shape), aval.dtype)
        if jnp.issubdtype(aval.dtype, jnp.integer)
        else jnp.asarray(rng.standard_normal(aval.shape) * 0.1, aval.dtype)
        for aval in avals
    ]
