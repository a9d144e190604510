"""Phases that share no parameter come one behind the other in a chain, empty where others are."""

import jax
import jax.numpy as jnp
import pytest

from gimlax.graph import Role, Workload, chain, reordered, trace, units

X = jax.ShapeDtypeStruct((4, 8), "float32")
MATRIX = jax.ShapeDtypeStruct((8, 8), "float32")
PARAMS = {
    **{name: [MATRIX] * 3 for name in ("one", "two")},
    "rows": jax.ShapeDtypeStruct((3, 8, 8), "float32"),
}


def layers(name, number=3):
    """Layers of the parameters called `name`, with a residual stream."""

    def apply(params, x):
        for w in params[name][:number]:
            x = x + jnp.tanh(x @ w)
        return x

    return apply


def looping(params, x):
    return jax.lax.scan(lambda x, w: (x + jnp.tanh(x @ w), None), x, params["rows"])[0]


def chain_of(**functions):
    return chain(Workload({name: trace(fn, PARAMS, X) for name, fn in functions.items()}))


def filled(phase):
    return [s.index for s in phase.segments if s.start < s.stop]


def used(found, *segments):
    leaves = found.phases[0].traced.arguments
    parts = [p for s in segments for p in found.resident_parts(s, s + 1)]
    return {leaves[part.leaf].path for part in parts}


def test_segments_of_one_phase_are_empty_in_the_other():
    found = chain_of(first=layers("one"), second=layers("two"))
    first, second = found.phases
    own = chain_of(first=layers("one")).num_segments
    assert found.num_segments == 2 * own > 2
    assert filled(first) == list(range(own)) and filled(second) == list(range(own, 2 * own))
    assert [name.split(".")[0] for name in found.names] == ["first"] * own + ["second"] * own
    for a, b in zip(first.segments, second.segments, strict=True):
        assert (a.name, a.kind, a.index) == (b.name, b.kind, b.index)
    for phase in found.phases:
        for segment in phase.segments:
            if segment.index not in filled(phase):
                assert not segment.flops and not segment.boundary and not segment.resident
    assert used(found, *range(own)) == {f"params['one'][{i}]" for i in range(3)}
    assert used(found, *range(own, 2 * own)) == {f"params['two'][{i}]" for i in range(3)}


def test_phases_that_share_something_keep_their_common_boundaries():
    both = {"long": layers("one"), "short": layers("one")}
    alone = chain_of(**both)
    found = chain_of(long=both["long"], other=layers("two"), short=both["short"])
    assert [p.name for p in found.phases] == ["long", "other", "short"]
    number = alone.num_segments
    long, other, short = map(filled, found.phases)
    assert long == short == list(range(number))
    assert other == list(range(number, found.num_segments))
    # what the first two have in common with a third makes one of them
    bridge = lambda params, x: layers("two")(params, layers("one")(params, x))  # noqa: E731
    joined = chain_of(long=both["long"], other=layers("two"), all=bridge)
    assert all(0 in filled(phase) for phase in joined.phases)


@pytest.mark.parametrize("hands_through", [False, True])
def test_state_binds_phases_that_share_no_parameter(hands_through):
    def counting(params, state, x):
        return layers("one")(params, x) + state.sum(), state + 1

    def other(params, state, x):
        return layers("two")(params, x), state if hands_through else state - 1

    state = jax.ShapeDtypeStruct((3,), "float32")
    functions = {"counting": counting, "other": other}
    traced = {n: trace(f, PARAMS, state, X, carried={1: 1}) for n, f in functions.items()}
    assert chain(Workload(traced)).num_segments == 1


@pytest.mark.parametrize(
    ("second", "together"),
    [(layers("two"), []), (looping, [(3, 4, 5)])],
    ids=["unrolled", "a scan"],
)
def test_phases_can_change_places(second, together):
    found = chain_of(first=layers("one"), second=second)
    own, number = len(filled(found.phases[0])), found.num_segments
    assert [u for u in units(found) if len(u) > 1] == together
    order = (*range(own, number), *range(own))
    turned = reordered(found, order)
    assert turned.names == tuple(found.names[k] for k in order)
    for before, after in zip(found.phases, turned.phases, strict=True):
        for segment, was in zip(after.segments, order, strict=True):
            assert segment.flops == before.segments[was].flops
            assert segment.resident == before.segments[was].resident
    roles = {a.role for a in turned.phases[0].traced.arguments}
    assert roles == {Role.RESIDENT, Role.STREAMED}
