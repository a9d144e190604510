"""Operations of a segment: every FLOP in one of them, sizes by hand, chains as a compiler fuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gimlax import models
from gimlax.graph import chain, trace
from gimlax.graph.operations import (
    ATTENTION,
    CONVOLUTION,
    ELEMENTWISE,
    GATHER,
    GROUPED,
    KINDS,
    MATMUL,
    REDUCTION,
    SORT,
)
from tests.planning.cases import chain_of
from tests.zoo import ZOO, normal

CONFIG = models.LlamaConfig(
    vocab_size=64,
    width=32,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_size=8,
    mlp_width=48,
    max_context=64,
)


EXPERTS = models.MixtralConfig(
    vocab_size=64,
    width=32,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_size=8,
    mlp_width=48,
    max_context=64,
    num_experts=8,
    num_chosen=2,
)


def llama(length, config=CONFIG):
    args = (
        models.abstract_params(config),
        models.abstract_cache(config, 3, 32),
        jax.ShapeDtypeStruct((3, length), "int32"),
        jax.ShapeDtypeStruct((), "int32"),
    )
    return chain(trace(models.decoder_apply(config), *args, carried={1: 1}))


def operations(fn, *args):
    return [op for s in chain(trace(fn, *args)).phases[0].segments for op in s.operations]


DECODERS = {
    "llama prefill": (8, CONFIG),
    "llama decode": (1, CONFIG),
    "mixtral prefill": (8, EXPERTS),
    "mixtral decode": (1, EXPERTS),
}


@pytest.mark.parametrize("name", [*ZOO, *DECODERS])
def test_every_flop_is_in_one_operation(name):
    tested = chain_of(name) if name in ZOO else llama(*DECODERS[name])
    for segment in tested.phases[0].segments:
        assert {op.kind for op in segment.operations} <= set(KINDS)
        counted = sum(op.count * op.flops for op in segment.operations)
        assert counted == pytest.approx(sum(f for _, f in segment.flops))
        moved = sum(op.count * op.num_bytes for op in segment.operations)
        assert moved == segment.bytes_accessed > 0
        assert all(op.resident_bytes <= op.bytes_read for op in segment.operations)


@pytest.mark.parametrize("length", [1, 8])
def test_attention_is_recognised_by_its_name(length):
    found = [s for s in llama(length).phases[0].segments if s.kind == "attention"]
    attention = [op for op in found[0].operations if op.kind == ATTENTION]
    assert [op.dims for op in attention] == [(3, 4, 2, length, 32, 8)]
    products = [op.dims for op in found[0].operations if op.kind == MATMUL]
    assert products == [(1, 3 * length, n, 32) for n in (32, 16, 16, 32)]


def test_attention_without_a_name_is_its_parts():
    def attend(x, weights):
        q, k, v = (jnp.einsum("btd,dhk->bthk", x, w) for w in weights)
        shares = jax.nn.softmax(jnp.einsum("bthk,bshk->bhts", q, k))
        return jnp.einsum("bhts,bshk->bthk", shares, v)

    found = operations(attend, normal(2, 6, 16), [normal(16, 4, 4)] * 3)
    products = [op for op in found if op.kind == MATMUL]
    assert [op.dims for op in products[-2:]] == [(8, 6, 6, 4), (8, 4, 6, 6)] or [
        op.dims for op in products[-2:]
    ] == [(8, 6, 6, 4), (8, 6, 4, 6)]
    assert products[-2].layout == "bmbk,bnbk"
    assert sum(op.kind == REDUCTION for op in found) == 2
    assert max(op.transcendentals for op in found) == 2 * 4 * 6 * 6


def test_the_layout_of_weights_shows_also_through_a_transpose():
    x, w = normal(4, 8), normal(16, 8)
    dims = (1, 4, 16, 8)
    (direct,) = operations(lambda w, x: x @ w, w.T, x)
    (turned,) = operations(lambda w, x: x @ w.T, w, x)
    assert (direct.dims, direct.layout) == (dims, "mk,kn")
    assert (turned.dims, turned.layout) == (dims, "mk,nk")
    assert turned.bytes_read == direct.bytes_read == w.nbytes + x.nbytes
    assert turned.resident_bytes == w.nbytes


def test_what_a_product_takes_along_transposed_is_still_written_before():
    def mixed(w, x):
        return jnp.tanh(x).swapaxes(1, 2) @ w

    chained, product = operations(mixed, normal(4, 8), normal(2, 4, 6))
    assert (chained.kind, chained.flops, chained.bytes_written) == (ELEMENTWISE, 48, 4 * 48)
    assert (product.dims, product.layout) == ((1, 12, 8, 4), "mkm,kn")


@pytest.mark.parametrize(("rows", "met"), [(12, 4), (3, 3)])
def test_rows_of_a_grouped_product_meet_the_weights_of_their_group_alone(rows, met):
    weights, x = normal(4, 8, 16), normal(rows, 8)
    sizes = np.full(4, rows // 4, np.int32)
    found = operations(lambda w, x, s: jax.lax.ragged_dot(x, w, s), weights, x, sizes)
    (grouped,) = [op for op in found if op.kind == GROUPED]
    assert grouped.dims == (4, rows, 16, 8)
    assert grouped.flops == 2 * rows * 16 * 8
    assert grouped.resident_bytes == weights.nbytes * met / 4
    assert grouped.bytes_read == weights.nbytes * met / 4 + x.nbytes + sizes.nbytes
    assert grouped.bytes_written == 4 * rows * 16


def test_a_batch_of_grouped_products_has_the_groups_of_all_of_them():
    weights, x = normal(2, 4, 8, 16), normal(2, 12, 8)
    sizes = np.full((2, 4), 3, np.int32)
    found = operations(jax.vmap(jax.lax.ragged_dot), x, weights, sizes)
    (grouped,) = [op for op in found if op.kind == GROUPED]
    assert (grouped.dims, grouped.flops) == ((8, 24, 16, 8), 2 * 24 * 16 * 8)


def test_experts_that_all_see_every_row_are_products():
    """What computes everything takes the time of everything, whatever it is for."""

    def dense(weights, x):
        hidden = jnp.einsum("td,edf->etf", x, weights["up"])
        return jnp.einsum("etf,efd->etd", hidden, weights["down"])

    found = operations(dense, {"up": normal(4, 8, 16), "down": normal(4, 16, 8)}, normal(6, 8))
    products = [op.dims for op in found if op.kind == MATMUL]
    assert products == [(1, 64, 6, 8), (4, 6, 8, 16)] or products == [(1, 6, 64, 8), (4, 6, 8, 16)]


def test_a_chain_reads_its_inputs_and_writes_its_end_once():
    def fn(scale, x, y):
        return jnp.tanh(x * scale + y).reshape(4, -1) * 2.0

    x = np.ones((8, 8), np.float32)
    (chain_,) = operations(fn, np.ones(8, np.float32), x, x)
    assert (chain_.kind, chain_.dims) == (ELEMENTWISE, (64,))
    assert (chain_.bytes_read, chain_.bytes_written) == (4 * (8 + 64 + 64), 4 * 64)
    assert (chain_.flops, chain_.transcendentals, chain_.resident_bytes) == (4 * 64, 64, 32)


def test_a_reduction_takes_its_chain_along():
    x = np.ones((8, 16), np.float32)
    (reduced,) = operations(lambda x: jnp.sum(jnp.exp(x) * 2.0, axis=-1), x)
    assert (reduced.kind, reduced.dims) == (REDUCTION, (8, 16))
    assert (reduced.bytes_read, reduced.bytes_written) == (4 * 128, 4 * 8)


def test_an_expensive_value_that_is_used_twice_is_written_once():
    x = np.ones((8, 16), np.float32)

    def fn(bias, x):
        shares = jnp.exp(x + bias)
        return shares / shares.sum(-1, keepdims=True)

    found = operations(fn, x[0], x)
    assert [op.kind for op in found] == [ELEMENTWISE, REDUCTION, ELEMENTWISE]
    assert sum(op.transcendentals for op in found) == 128


def test_convolutions_look_ups_updates_and_sorts_have_their_sizes():
    def conv(w, x):
        return jax.lax.conv_general_dilated(x, w, (1, 1), "SAME")

    (found,) = operations(conv, normal(8, 4, 3, 3), normal(2, 4, 16, 16))
    assert (found.kind, found.dims) == (CONVOLUTION, (1, 2 * 16 * 16, 8, 4 * 9))
    looked = operations(lambda t, i: t[i], normal(50, 8), np.arange(6))
    assert [op.dims for op in looked if op.kind == GATHER] == [(6, 8)]
    update = operations(
        lambda t, x: jax.lax.dynamic_update_slice(t, x, (3, 0)), normal(50, 8), normal(2, 8)
    )
    assert [(op.dims, op.num_bytes) for op in update] == [((1, 16), 2 * 2 * 8 * 4)]
    ordered = operations(lambda x: jnp.sort(x, axis=-1), normal(4, 32))
    assert [op.dims for op in ordered if op.kind == SORT] == [(4, 32)]


def test_a_loop_counts_its_trips():
    def looped(w, x):
        return jax.lax.scan(lambda c, _: (jnp.tanh(c @ w), None), x, length=5)[0]

    found = operations(looped, normal(8, 8), normal(4, 8))
    assert [(op.kind, op.dims, op.count) for op in found if op.kind == MATMUL] == [
        (MATMUL, (1, 4, 8, 8), 5)
    ]


def test_casts_of_weights_cost_memory_in_each_stage():
    def half(w, x):
        return jnp.dot(x.astype(jnp.bfloat16), w.astype(jnp.bfloat16))

    w = normal(64, 32)
    casts = [op for op in operations(half, w, normal(4, 64)) if op.kind == ELEMENTWISE]
    assert [(op.flops, op.num_bytes) for op in casts if op.resident_bytes] == [(0, 6 * w.size)]


def test_complex_work_is_counted_in_the_dtype_of_its_parts():
    def waves(x, kernel):
        return (jnp.fft.fft(x) @ kernel * 2).real.sum()

    found = operations(waves, jnp.ones((4, 8), jnp.complex64), jnp.ones((8, 8), jnp.complex64))
    assert {op.dtype for op in found} == {"float32"}
    (product,) = [op for op in found if op.kind == MATMUL]
    assert product.flops == 4 * 2 * 4 * 8 * 8
