"""`shard`: the PartitionSpec of every parameter, state and edge of a chain on a mesh.

Axes are laid out one after another, each given the others, in both orders, and once more for the
first when the second is known; the cheapest result stays. Where nothing gains, everything stays
whole. Chosen over deciding both axes at once, which squares the ways to split each group: two axes
interact only where they split the same array.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import permutations

from gimlax.devices import DeviceKind
from gimlax.errors import SpecError
from gimlax.graph import Chain, Role
from gimlax.partition import mistakes, normal
from gimlax.planning.rates import Rates
from gimlax.planning.rates.collectives import Collectives, Ring, by_kind
from gimlax.planning.sharding.axis import lay_out
from gimlax.planning.sharding.factors import Axis
from gimlax.planning.sharding.pricing import Pricer
from gimlax.planning.sharding.sharded import Sharded, describe
from gimlax.planning.sharding.states import WHOLE, AxisLayout, Name, Pieces

__all__ = ["shard"]


def shard(
    pieces: Pieces,
    kind: DeviceKind,
    axes: Mapping[str, int],
    rates: Rates,
    *,
    collectives: Collectives | None = None,
    given: Mapping[str, Iterable[object]] | None = None,
) -> Sharded:
    """Shards a chain over a mesh of equal devices.

    Args:
        pieces: what runs, as `take_apart` gives it, once for all meshes; all phases share the specs
            of parameters and state.
        kind: of the devices.
        axes: axis name -> size.
        rates: of one device.
        collectives: between them; by default what their kind is known to do.
        given: specs that the caller wants kept, by the path of an argument.

    Raises:
        SpecError: a given spec names an unknown argument or axis, or does not divide a dim; all
            mistakes at once. Or nothing says what collectives cost.
        PlanError: the given specs contradict each other or the constraints in the model.
    """
    used = {axis: size for axis, size in axes.items() if size > 1}
    collectives = collectives or by_kind(kind)
    if used and collectives is None:
        raise SpecError(
            f"device kind {kind.name!r} has no interconnect, so nothing says what it costs to shard"
            f" over {dict(axes)}; add an interconnect to its card, calibrate the"
            " mesh, or use one device"
        )
    chain = pieces.chain
    pricer = Pricer(rates, pieces.works)
    wanted = _given(chain, pieces, axes, given or {})
    if collectives is None:
        return describe(pieces, axes, (), pricer, Ring(float("inf")))
    best: Sharded | None = None
    best_s = float("inf")
    for order in permutations(used):
        layouts = _in_order(pieces, order, used, wanted, pricer, collectives)
        found = describe(pieces, axes, layouts, pricer, collectives)
        calls = [phase.calls for phase in chain.phases]
        seconds = sum(n * found.seconds(phase) for phase, n in enumerate(calls))
        if seconds < best_s:
            best, best_s = found, seconds
    assert best is not None
    return best


def _in_order(
    pieces: Pieces,
    order: Sequence[str],
    sizes: Mapping[str, int],
    wanted: Mapping[str, Mapping[Name, int]],
    pricer: Pricer,
    collectives: Collectives,
) -> list[AxisLayout]:
    layouts: dict[str, AxisLayout] = {}
    for axis in (*order, *order[:-1]):
        others = [layout for name, layout in layouts.items() if name != axis]
        problem = Axis(
            name=axis,
            num_devices=sizes[axis],
            others=others,
            fixed=wanted[axis],
            pricer=pricer,
            collectives=collectives,
        )
        layouts[axis] = lay_out(pieces, problem)
    return list(layouts.values())


def _given(
    chain: Chain,
    pieces: Pieces,
    axes: Mapping[str, int],
    given: Mapping[str, Iterable[object]],
) -> dict[str, dict[Name, int]]:
    """For each axis the states of sources that the caller has fixed."""
    found: dict[str, dict[Name, int]] = {axis: {} for axis in axes}
    wrong: list[str] = []
    known: set[str] = set()
    for phase, of in enumerate(chain.phases):
        for role in Role:
            for index, leaf in enumerate(of.traced.leaves(role)):
                argument = of.traced.arguments[leaf]
                known.add(argument.path)
                if argument.path not in given:
                    continue
                spec = given[argument.path]
                shape = argument.aval.shape
                if faults := list(mistakes(argument.path, spec, shape, axes)):
                    wrong += faults
                    continue
                name: Name = (role.value, phase, index)
                if role is not Role.STREAMED:
                    name = (role.value, index)
                rows = (role.value, index) in pieces.rows
                for axis in axes:
                    dims = [d for d, on in enumerate(normal(spec, len(shape))) if axis in on]
                    state = dims[0] if dims else WHOLE
                    if rows and state == 0:
                        wrong.append(
                            f"{argument.path}: spec {tuple(spec)} splits dim 0, along which layers"
                            " are stacked and stages cut; split another dim"
                        )
                    found[axis][name] = state - 1 if rows and state > 0 else state
    wrong += [
        f"{path}: a spec is given for it, but no argument is called so; there are"
        f" {', '.join(sorted(known)[:4])}, ..."
        for path in given
        if path not in known
    ]
    if wrong:
        raise SpecError("\n".join(dict.fromkeys(wrong)))
    return found
