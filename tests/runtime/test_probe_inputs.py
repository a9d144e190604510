"""Made arguments: whole numbers index what is there, floats stay where a model does not break."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gimlax import models
from gimlax.graph import Part, Role, trace
from gimlax.runtime.probing.inputs import from_leaves, index_limits, made_from_shapes
from tests import zoo
from tests.runtime.conftest import trace_specimen


def limits_of(fn, *args):
    traced = trace(fn, *args)
    return {traced.arguments[leaf].path: limit for leaf, limit in index_limits(traced).items()}


def test_what_indexes_a_table_stays_within_it():
    table, i = np.ones((50, 4), np.float32), np.int32([1, 2])
    assert limits_of(lambda table, i: table[i], table, i) == {"i": 50}
    assert limits_of(lambda table, i: jnp.take(table, i, axis=1), table, i) == {"i": 4}
    assert limits_of(lambda table, i: jnp.take(table, i, axis=0) + table[:20][i], table, i) == {
        "i": 20
    }
    assert limits_of(lambda x, i: x * i[0], table, i) == {}


def test_what_starts_a_slice_leaves_room_for_it():
    x, rows, i = np.ones((12, 4), np.float32), np.ones((5, 4), np.float32), np.int32(1)
    write = lambda x, rows, i: jax.lax.dynamic_update_slice_in_dim(x, rows, i, 0)  # noqa: E731
    assert limits_of(write, x, rows, i) == {"i": 8}
    read = lambda x, i: jax.lax.dynamic_slice_in_dim(x, i, 5)  # noqa: E731
    assert limits_of(read, x, i) == {"i": 8}


def test_what_is_added_to_on_the_way_keeps_half_for_it():
    table, i = np.ones((50, 4), np.float32), np.int32(1)
    assert limits_of(lambda table, i: table[i + jnp.arange(8)], table, i) == {"i": 25}


def test_indices_are_followed_into_loops_and_composites():
    table, i = np.ones((50, 4), np.float32), np.int32([1, 2, 3])

    def fn(table, i):
        look = jax.lax.composite(lambda table, i: table[i], "some.look_up")
        return jax.lax.scan(lambda c, i: (c + look(table, i), None), table[0], i)[0]

    assert limits_of(fn, table, i) == {"i": 50}


def test_a_llama_gets_tokens_of_its_vocabulary_and_positions_of_its_cache():
    config = models.LlamaConfig(
        vocab_size=300,
        width=16,
        num_layers=1,
        num_heads=2,
        num_kv_heads=1,
        head_size=8,
        mlp_width=32,
        max_context=64,
    )
    of = jax.ShapeDtypeStruct
    traced = trace(
        models.llama_apply(config),
        models.abstract_params(config),
        models.abstract_cache(config, 1, 40),
        of((1, 9), "int32"),
        of((), "int32"),
        carried={1: 1},
    )
    given = made_from_shapes(traced)
    tokens, position = given(Role.STREAMED, Part(0)), given(Role.STREAMED, Part(1))
    assert tokens.min() >= 0 and 100 < tokens.max() < 300
    assert 0 <= position <= 40 - 9


def test_floats_and_flags_are_safe():
    def fn(params, state, x, mask):
        return x @ params["w"] * params["scale"] + state, mask

    params = {"w": np.ones((64, 8), jnp.bfloat16), "scale": np.ones(8, np.float32)}
    traced = trace(fn, params, np.float32(1), np.ones((4, 64), np.float32), np.ones(99, bool))
    given = made_from_shapes(traced)
    scale, w = (given(Role.RESIDENT, Part(k)) for k in (0, 1))
    assert scale.min() >= 0.5 and scale.max() <= 1.5
    assert w.dtype == jnp.bfloat16 and 0.1 < np.std(w.astype(np.float32)) < 0.15
    mask = given(Role.STREAMED, Part(2))
    assert mask.dtype == bool and mask.sum() > 50
    again = made_from_shapes(traced)(Role.RESIDENT, Part(1))
    np.testing.assert_array_equal(w, again)
    assert (made_from_shapes(traced, seed=1)(Role.RESIDENT, Part(1)) != w).any()


def test_quantised_weights_take_their_range_and_keys_are_keys():
    def fn(w, key, count):
        return jax.random.normal(key, (2,)) + w.astype(np.float32).sum() + count

    traced = trace(fn, np.ones((9, 9), jnp.int4), jax.random.key(0, impl="rbg"), np.int32(0))
    given = made_from_shapes(traced)
    w = given(Role.RESIDENT, Part(0)).astype(np.int32)
    assert (w.min(), w.max()) == (-8, 7)
    key, count = (given(Role.STREAMED, Part(k)) for k in (0, 1))
    assert jax.random.key_impl(key) == jax.random.key_impl(jax.random.key(0, impl="rbg"))
    assert count in (0, 1)


@pytest.mark.parametrize("kind", zoo.ZOO)
def test_a_model_makes_finite_numbers_of_them(kind):
    specimen = zoo.ZOO[kind]()
    traced = trace_specimen(specimen)
    given = made_from_shapes(traced)
    leaves = [
        given(a.role, Part(traced.leaves(a.role).index(i))) for i, a in enumerate(traced.arguments)
    ]
    args, _ = jax.tree.unflatten(traced.in_tree, leaves)
    for output in jax.tree.leaves(jax.jit(specimen.fn)(*args)):
        assert np.isfinite(output).all() and (output.size < 3 or np.std(output) > 0)


def test_rows_are_cut_from_the_leaf_and_what_is_given_is_taken_as_it_is():
    traced = trace_specimen(zoo.scanned())
    given = made_from_shapes(traced)
    whole = given(Role.RESIDENT, Part(1))
    np.testing.assert_array_equal(given(Role.RESIDENT, Part(1, 2, 4)), whole[2:4])
    leaves = jax.tree.leaves((zoo.scanned().args, {}))
    given = from_leaves(traced, leaves)
    leaf = traced.leaves(Role.CARRIED)[0]
    np.testing.assert_array_equal(given(Role.CARRIED, Part(0, 1, 3)), leaves[leaf][1:3])
