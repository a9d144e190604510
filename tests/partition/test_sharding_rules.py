"""Which dims of an equation may be split, and what has to divide."""

import re

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P

from gimlax import experts
from gimlax.graph import chain, trace
from gimlax.partition import find_groups, find_runs, mistakes, normal, partition_spec
from gimlax.partition.rules import rule


def rule_of(fn, *shapes):
    """The rule of the only equation of a function."""
    (eqn,) = jax.make_jaxpr(fn)(*(jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes)).eqns
    return rule(eqn)


def groups_of(fn, *shapes):
    args = [jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes]
    [phase] = chain(trace(fn, *args)).phases
    return [g for run in find_runs(phase) for g in find_groups(run.flat, run.escaping)]


def test_a_product_shares_rows_and_columns_and_sums_over_the_depth():
    found = rule_of(lambda a, b: jax.lax.dot(a, b), (4, 6), (6, 8))
    rows, columns, depth = 0, 1, 2
    assert found.inputs == ((rows, depth), (depth, columns))
    assert found.outputs == ((rows, columns),)
    assert found.sizes == (4, 8, 6)
    assert found.summed == {depth}


def test_a_layer_of_experts_shares_rows_and_sums_over_experts_and_their_inside():
    rows, choices, number, width, inner = 12, 2, 6, 4, 10
    shapes = [(rows, width), (rows, choices), (rows, choices)]
    shapes += [(number, inner, width), (number, inner, width), (number, width, inner)]
    args = [jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes]
    args[2] = jax.ShapeDtypeStruct(shapes[2], jnp.int32)
    fn = lambda *args: experts.expert_layer(*args, num_experts=number)  # noqa: E731
    (eqn,) = jax.make_jaxpr(fn)(*args).eqns
    found = rule(eqn)
    row, expert, inside = 0, 1, 2
    up, down = (expert, inside, None), (expert, None, inside)
    assert found.inputs == ((row, None), (row, None), (row, None), up, up, down)
    assert found.outputs == ((row, None),)
    assert found.sizes == (rows, number, inner)
    assert found.summed == {expert, inside}


@given(st.lists(st.sampled_from([1, 2, 3, 4]), min_size=1, max_size=4), st.randoms())
def test_a_reshape_splits_only_what_stays_in_one_run(sizes, random):
    """Contiguous parts of the flat array are the same on both sides, whatever divides."""
    cut = random.randrange(len(sizes))
    head, tail = sizes[:cut], sizes[cut:]
    merged = 1
    for size in tail:
        merged *= size
    after = (*head, merged)
    if tuple(sizes) == after:
        return
    found = rule_of(lambda x: jnp.reshape(x, after), tuple(sizes))
    for dim, factor in enumerate(found.inputs[0]):
        if factor is None:
            continue
        out = found.outputs[0].index(factor)
        assert sizes[dim] % found.sizes[factor] == after[out] % found.sizes[factor] == 0
        before_dim, before_out = 1, 1
        for size in sizes[:dim]:
            before_dim *= size
        for size in after[:out]:
            before_out *= size
        assert before_dim == before_out


def test_nine_heads_limit_what_the_columns_may_be_split_into():
    def heads(weights, x):
        return (x @ weights).reshape(5, 9, 64).sum(-1)

    product, *_ = groups_of(heads, (32, 576), (5, 32))
    assert 9 in product.sizes
    assert 576 not in product.sizes
    assert {split.label for split in product.splits(3)} > {None}
    assert all(product.sizes[s.label] != 9 for s in product.splits(4) if s.label is not None)


def test_what_is_unknown_is_replicated():
    found = rule_of(lambda x: jax.lax.fori_loop(0, 3, lambda _, y: y * 2, x), (4, 4))
    assert found.sizes == ()


def test_a_look_up_is_split_by_index_by_column_or_by_row_with_a_sum():
    def look_up(table, rows):
        return table[rows]

    args = jax.ShapeDtypeStruct((64, 8), jnp.float32), jax.ShapeDtypeStruct((4,), jnp.int32)
    eqns = jax.make_jaxpr(look_up)(*args).eqns
    [found] = [rule(eqn) for eqn in eqns if eqn.primitive.name == "gather"]
    row, column = found.inputs[0]
    assert row in found.summed
    assert found.outputs[0][1] == column
    assert found.outputs[0][0] == found.inputs[1][0]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (P("rows"), "axis 'rows'"),
        (P(None, "model"), "dim 1 of .* into 4 parts"),
        (P("data", "data"), "two dims along axis 'data'"),
        (P(None, None, None), "has 3 dims"),
    ],
)
def test_a_spec_that_does_not_fit_is_said(spec, message):
    [found] = mistakes("w", spec, (8, 6), {"data": 2, "model": 4})
    assert re.search(message, found)


def test_a_spec_comes_back_as_it_went():
    for spec in (P(), P("data"), P(None, ("data", "model"))):
        assert normal(partition_spec(normal(spec, 2)), 2) == normal(spec, 2)
