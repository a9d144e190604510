"""Three ways through a layer of experts give one result, and the tiled one does no more work."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gimlax import _jax, experts

ABSOLUTE = 5e-6  # float32, other orders of summation
CASES = {  # rows, choices, experts, width, inner
    "one row": (1, 2, 8, 24, 40),
    "few rows": (5, 2, 8, 24, 40),
    "many rows": (150, 2, 8, 24, 40),
    "one choice of three": (40, 1, 3, 17, 23),
    "every expert is chosen": (33, 4, 4, 8, 12),
}


def layer(rows, choices, num_experts, width, inner, *, seed=0, bias=0.0):
    """Arguments of `tiled`; with a `bias` the first experts are chosen more often."""
    rng = np.random.default_rng(seed)
    normal = lambda *shape: (rng.normal(size=shape) / shape[-1] ** 0.5).astype(np.float32)  # noqa: E731
    scores = rng.normal(size=(rows, num_experts)) - bias * np.arange(num_experts)
    chosen = np.argsort(-scores, axis=1)[:, :choices].astype(np.int32)
    shares = rng.dirichlet(np.ones(choices), size=rows).astype(np.float32)
    up, down = (num_experts, inner, width), (num_experts, width, inner)
    x = rng.normal(size=(rows, width)).astype(np.float32)
    return x, shares, chosen, normal(*up), normal(*up), normal(*down)


def in_loops(x, shares, chosen, gate, up, down):
    """The slow twin: each row through each expert that it chose."""
    out = np.zeros(x.shape)
    for row in range(len(x)):
        for share, expert in zip(shares[row], chosen[row]):
            if 0 <= expert < len(gate):
                before = gate[expert].astype(np.float64) @ x[row]
                hidden = before / (1 + np.exp(-before)) * (up[expert] @ x[row])
                out[row] += share * (down[expert] @ hidden)
    return out


@pytest.mark.parametrize("bias", [0.0, 3.0])
@pytest.mark.parametrize("way", [experts.tiled, experts.ragged])
@pytest.mark.parametrize("case", CASES)
def test_every_way_gives_what_loops_give(case, way, bias):
    args = layer(*CASES[case], bias=bias)
    np.testing.assert_allclose(jax.jit(way)(*args), in_loops(*args), atol=ABSOLUTE, rtol=0)


@pytest.mark.parametrize("case", CASES)
def test_parts_of_the_experts_and_of_their_inside_sum_to_the_layer(case):
    x, shares, chosen, gate, up, down = args = layer(*CASES[case])
    run = jax.jit(experts.part, static_argnames="first")
    half = gate.shape[1] // 2
    total = sum(
        run(x, shares, chosen, gate[e, i], up[e, i], down[e, :, i], first=e.start)
        for e in (slice(0, 1), slice(1, len(gate)))
        for i in (slice(0, half), slice(half, None))
    )
    np.testing.assert_allclose(total, in_loops(*args), atol=ABSOLUTE, rtol=0)


def test_what_overflows_beside_the_rows_of_a_part_does_not_reach_the_result():
    x, shares, chosen, gate, up, down = layer(64, 1, 4, 8, 12)
    here = np.arange(64) < 31  # the last of its tiles of four stands over
    chosen[:] = np.where(here, 1, 3)[:, None]
    x[~here] = 1e30
    out = np.asarray(experts.part(x, shares, chosen, gate[:3], up[:3] * 1e10, down[:3], first=0))
    assert np.isfinite(out).all()
    assert not out[~here].any()


def test_bfloat16_follows_float32():
    args = layer(64, 2, 8, 32, 48)
    narrow = [jnp.asarray(a, jnp.bfloat16) if a.dtype == np.float32 else a for a in args]
    narrow[1] = args[1]
    out = jax.jit(experts.tiled)(*narrow)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(out.astype(np.float32), in_loops(*args), atol=0.05, rtol=0)


@pytest.mark.parametrize("itemsize", [2, 4])
@pytest.mark.parametrize("num_experts", [1, 8, 64])
def test_tiles_that_are_not_full_add_a_quarter_at_most_where_there_are_many_rows(
    num_experts, itemsize
):
    sizes = set()
    for num_rows in range(1, 600 * num_experts, 7):
        size = experts.tile_rows(num_rows, num_experts, itemsize)
        sizes.add(size)
        if num_rows >= 124 * num_experts:
            assert num_experts * (size - 1) <= num_rows / 4
        elif num_rows < 4 * num_experts:
            assert size == (8 if itemsize == 2 else 1)
    assert sizes == {8, 16, 32, 64, 128} | ({1} if itemsize == 4 else set())


def test_bfloat16_is_not_made_float32_as_a_whole():
    """XLA on CPU would do so with the weights of all experts, before the first of them is used."""
    args = layer(2, 2, 8, 16, 24)
    narrow = [jnp.asarray(a, jnp.bfloat16) if a.dtype == np.float32 else a for a in args]
    narrow[1] = args[1]
    text = compiled(experts.tiled, narrow).as_text()
    loops = [line for line in text.splitlines() if " while(" in line]
    assert any("bf16[8,24,16]" in line for line in loops)
    assert not any("f32[8,24,16]" in line for line in loops)


def compiled(way, args):
    shapes = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in args]
    return jax.jit(way).lower(*shapes).compile()


def test_512_tokens_cost_the_flops_of_the_chosen_experts_and_little_more():
    """XLA counts the body of a loop once: one tile, and everything around the tiles."""
    rows, choices, num_experts, width, inner = 512, 2, 8, 128, 448
    active = 2 * 3 * rows * choices * width * inner
    args = layer(rows, choices, num_experts, width, inner)
    size = experts.tile_rows(rows * choices, num_experts, 4)
    one_tile = 2 * 3 * size * width * inner
    counted = _jax.cost_of(compiled(experts.tiled, args))["flops"]
    around = counted - one_tile
    assert 0 <= around < 0.05 * active
    most_tiles = (rows * choices + num_experts * (size - 1)) // size
    assert around + most_tiles * one_tile <= 1.3 * active
    # Here a ragged product does the work of all eight.
    assert _jax.cost_of(compiled(experts.ragged, args))["flops"] > 7.9 * active
