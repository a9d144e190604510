"""What is charged for a layer of experts, against what tiles do with rows that chose at random."""

import jax
import numpy as np
import pytest

from gimlax import _jax, experts
from gimlax.graph.counting import count
from gimlax.graph.operations import KINDS, ROUTED
from gimlax.graph.routing import expert_operations, fullest, is_expert_layer

SIZES = [  # rows, choices, experts
    (1, 2, 8),
    (3, 2, 8),
    (64, 2, 8),
    (512, 2, 8),
    (700, 3, 16),
    (40, 1, 1),
]


def layer_of(rows, choices, here, *, num_experts=None, width=24, inner=40, dtype="float32"):
    """The equation of a layer, or of one device's part of it."""
    shapes = [
        ((rows, width), dtype),
        ((rows, choices), "float32"),
        ((rows, choices), "int32"),
        ((here, inner, width), dtype),
        ((here, inner, width), dtype),
        ((here, width, inner), dtype),
    ]
    args = [jax.ShapeDtypeStruct(*shape) for shape in shapes]
    fn = lambda *args: experts.expert_layer(*args, num_experts=num_experts or here)  # noqa: E731
    (eqn,) = jax.make_jaxpr(fn)(*args).eqns
    assert is_expert_layer(eqn)
    return eqn


def chosen_at_random(rows, choices, num_experts, rng):
    """Rows of each expert."""
    scores = rng.random((rows, num_experts))
    return np.bincount(np.argsort(scores, axis=1)[:, :choices].ravel(), minlength=num_experts)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("sizes", SIZES)
def test_flops_are_those_of_the_tiles_that_rows_at_random_make(sizes, dtype):
    rows, choices, num_experts = sizes
    itemsize = {"float32": 4, "bfloat16": 2}[dtype]
    size = experts.tile_rows(rows * choices, num_experts, itemsize)
    rng = np.random.default_rng(0)
    tiles = np.mean(
        [np.sum(-(-chosen_at_random(rows, choices, num_experts, rng) // size)) for _ in range(300)]
    )
    found = [op for op in expert_operations(layer_of(*sizes, dtype=dtype)) if op.kind == ROUTED]
    assert len(found) == 3
    for op in found:
        assert op.flops == pytest.approx(2 * tiles * size * 24 * 40, rel=0.1)
        assert op.dims[:2] == (num_experts, rows * choices)
        assert op.dims[4] == size


@pytest.mark.parametrize("sizes", SIZES)
def test_weights_are_read_of_experts_that_have_a_row(sizes):
    rows, choices, num_experts = sizes
    rng = np.random.default_rng(1)
    busy = np.mean(
        [np.sum(chosen_at_random(rows, choices, num_experts, rng) > 0) for _ in range(300)]
    )
    for op in expert_operations(layer_of(*sizes), resident=(False,) * 3 + (True,) * 3):
        if op.kind == ROUTED:
            assert op.resident_bytes == pytest.approx(busy * 24 * 40 * 4, rel=0.05)


@pytest.mark.parametrize("num_devices", [2, 4, 8])
@pytest.mark.parametrize("rows", [1, 3, 64, 512])
def test_the_fullest_device_has_more_than_its_share(rows, num_devices):
    rng = np.random.default_rng(2)
    per_device = 8 // num_devices
    most = np.mean(
        [
            chosen_at_random(rows, 2, 8, rng).reshape(num_devices, per_device).sum(axis=1).max()
            for _ in range(2000)
        ]
    )
    found = fullest(rows, min(2, per_device), 2 * rows, num_devices)
    assert found == pytest.approx(most, rel=0.12)
    assert found >= 2 * rows / num_devices


def test_a_device_with_a_part_is_charged_for_the_fullest():
    whole = expert_operations(layer_of(64, 2, 8))
    part = expert_operations(layer_of(64, 2, 2, num_experts=8))
    for all_of, own in zip(whole, part, strict=True):
        if all_of.kind == ROUTED:
            assert own.dims[0] == 2
            assert all_of.flops / 4 < own.flops < all_of.flops / 2


def test_a_layer_counts_what_its_operations_do():
    eqn = layer_of(64, 2, 8)
    found = expert_operations(eqn)
    assert {op.kind for op in found} <= set(KINDS)
    counted = count(eqn)
    assert sum(counted.flops.values()) == pytest.approx(sum(op.flops for op in found))
    assert counted.bytes_accessed == pytest.approx(sum(op.num_bytes for op in found))


def test_what_is_charged_on_a_cpu_is_what_xla_counts():
    """XLA counts the body of a loop once, which is a tile: put the others beside it."""
    rows, choices, num_experts, width, inner = 512, 2, 8, 96, 224
    eqn = layer_of(rows, choices, num_experts, width=width, inner=inner)
    shapes = [_jax.aval_of(v) for v in eqn.invars]
    counted = _jax.cost_of(jax.jit(experts.tiled).lower(*shapes).compile())["flops"]
    size = experts.tile_rows(rows * choices, num_experts, 4)
    loads = chosen_at_random(rows, choices, num_experts, np.random.default_rng(3))
    tiles = np.sum(-(-loads // size))
    done = counted + (tiles - 1) * 2 * 3 * size * width * inner
    assert sum(count(eqn).flops.values()) == pytest.approx(done, rel=0.1)
