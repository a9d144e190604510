"""A model cut anywhere computes what it computed uncut."""

import itertools

import jax
import numpy as np
import pytest

from gimlax import _jax
from gimlax.errors import PlanError
from gimlax.graph import Role, Workload, chain, trace
from gimlax.partition import cut
from tests import zoo


def rows(array, part):
    return array if part.whole else array[part.start : part.stop]


def evaluate(partition, args):
    """The output tree of a partition, its stages run one after another on one device."""
    traced = partition.traced
    leaves = jax.tree.leaves(args)
    resident, carried = (
        [leaves[i] for i in traced.leaves(role)] for role in (Role.RESIDENT, Role.CARRIED)
    )
    updated = [np.full_like(a, np.nan) for a in carried]
    values = {}
    for stage in partition.stages:
        inputs = [rows(resident[p.leaf], p) for p in stage.resident]
        inputs += [rows(carried[p.leaf], p) for p in stage.carried]
        inputs += [traced.jaxpr.consts[c] for c in stage.constants]
        inputs += [leaves[i] for i in stage.streamed] + [values[v] for v in stage.received]
        outputs = jax.jit(_jax.evaluate(stage.jaxpr))(*inputs)
        for part, new in zip(stage.carried, outputs, strict=False):
            rows(updated[part.leaf], part)[...] = new
        values.update(zip(stage.produced, outputs[len(stage.carried) :], strict=True))
    by_leaf = dict(zip(traced.leaves(Role.CARRIED), updated, strict=True))
    outputs = [
        by_leaf[o.carried] if value is None else values[value]
        for o, value in zip(traced.outputs, partition.outputs, strict=True)
    ]
    return jax.tree.unflatten(traced.out_tree, outputs)


def assert_equal(found, expected):
    """Bit-equal, or within 2e-6 of the largest value: XLA fuses each stage by itself."""
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=2e-6 * np.abs(b).max()),
        found,
        expected,
    )


@pytest.mark.parametrize("num_cuts", [0, 1, 2])
@pytest.mark.parametrize("kind", zoo.ZOO)
def test_any_cuts_give_the_uncut_result(kind, num_cuts):
    specimen = zoo.ZOO[kind]()
    phase = chain(trace(specimen.fn, *specimen.args, carried=specimen.carried)).phases[0]
    expected = jax.jit(specimen.fn)(*specimen.args)
    choices = list(itertools.combinations(range(1, len(phase.segments)), num_cuts))
    for cuts in choices[:: max(1, len(choices) // 6)] if num_cuts == 2 else choices:
        assert_equal(evaluate(cut(phase, cuts), specimen.args), expected)


@pytest.mark.parametrize("kind", zoo.ZOO)
def test_stages_need_what_the_chain_says(kind):
    specimen = zoo.ZOO[kind]()
    found = chain(trace(specimen.fn, *specimen.args, carried=specimen.carried))
    phase = found.phases[0]
    for b in range(1, found.num_segments):
        partition = cut(phase, (b,))
        for stage, (first, stop) in zip(
            partition.stages, ((0, b), (b, found.num_segments)), strict=True
        ):
            assert set(stage.resident) == set(found.resident_parts(first, stop))
            assert set(found.carried_parts(first, stop)) <= set(stage.carried)
        crossing = [partition.avals[v] for v in partition.edges[0].values]
        assert tuple(crossing) == phase.segments[b - 1].boundary


def test_tied_parameters_are_in_the_first_and_the_last_stage():
    specimen = zoo.plain()
    phase = chain(trace(specimen.fn, *specimen.args, carried={1: 1})).phases[0]
    first, _, last = cut(phase, (2, 5)).stages
    table = [a.path for a in phase.traced.arguments].index("params['table']")
    both = {p.leaf for p in first.resident} & {p.leaf for p in last.resident}
    assert [phase.traced.leaves(Role.RESIDENT)[leaf] for leaf in both] == [table]


def test_a_value_for_a_later_stage_is_handed_on_once_per_edge():
    def model(w, x):
        early = x @ w
        late = early
        for _ in range(3):
            late = np.float32(0.1) * (late @ w)
        return (early + late) @ w

    args = (zoo.normal(4, 4), zoo.normal(2, 4))
    phase = chain(trace(model, *args)).phases[0]
    partition = cut(phase, (1, 2, 3)) if len(phase.segments) > 3 else cut(phase, (1,))
    shared = set.intersection(*(set(e.values) for e in partition.edges))
    assert len(shared) == 1
    assert all(len(set(e.values)) == len(e.values) for e in partition.edges)
    assert_equal(evaluate(partition, args), jax.jit(model)(*args))


def test_random_keys_cross_a_cut():
    def model(w, x, key):
        x = x @ w
        first, second = jax.random.split(key)
        x = x * jax.random.bernoulli(first, 0.5, x.shape)
        x = x @ w
        return x * jax.random.bernoulli(second, 0.5, x.shape) @ w

    args = (zoo.normal(4, 4), zoo.normal(2, 4), jax.random.key(3))
    phase = chain(trace(model, *args)).phases[0]
    assert len(phase.segments) > 1
    for b in range(1, len(phase.segments)):
        assert_equal(evaluate(cut(phase, (b,)), args), jax.jit(model)(*args))


def test_stages_of_both_phases_use_the_same_parts():
    specimen = zoo.plain()
    params, cache, tokens, position = specimen.args
    traces = {
        "prefill": trace(specimen.fn, *specimen.args, carried={1: 1}),
        "decode": trace(specimen.fn, params, cache, tokens[:1], position, carried={1: 1}),
    }
    phases = chain(Workload(traces)).phases
    for one, other in zip(*(cut(p, (3, 5)).stages for p in phases), strict=True):
        assert (one.resident, one.carried) == (other.resident, other.carried)


@pytest.mark.parametrize("cuts", [(0,), (8,), (2, 2), (3, 2)])
def test_cuts_that_are_none_are_refused(cuts):
    specimen = zoo.plain()
    phase = chain(trace(specimen.fn, *specimen.args, carried={1: 1})).phases[0]
    with pytest.raises(PlanError, match=rf"cuts .*{cuts[0]}.* has 8 segments"):
        cut(phase, cuts)


def test_a_cut_through_carried_state_is_refused():
    def model(w, x, total):
        x = np.float32(0.5) * (x @ w[0]) + total
        x = x @ w[1]
        return x, total + x.sum()

    args = (zoo.normal(2, 4, 4), zoo.normal(2, 4), np.float32(0))
    phase = chain(trace(model, *args, carried={2: 1})).phases[0]
    with pytest.raises(PlanError, match=r"cut 1 .* splits carried total between stages 0 and 1"):
        cut(phase, (1,))
