"""Segments that stand side by side can come in any order: the same model, the same results."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gimlax import _jax
from gimlax.errors import SpecError
from gimlax.graph import Workload, arrows, chain, reordered, trace, units
from tests.towers import orders_of, two_towers
from tests.zoo import ZOO


def test_every_legal_order_is_the_same_function_with_the_same_segments():
    apply, params, x, model = two_towers(((8,), (8, 8)))
    wanted = apply(params, x)
    leaves = jax.tree.leaves((params, x))
    orders = orders_of(model)
    assert len(orders) > 2
    by_name = {s.name: s for s in model.phases[0].segments}
    assert len(by_name) == model.num_segments
    for order in orders:
        other = reordered(model, order)
        assert other.names == tuple(model.names[k] for k in order)
        assert other.order == (() if order == tuple(range(len(order))) else order)
        (found,) = _jax.evaluate(other.phases[0].traced.jaxpr)(*leaves)
        np.testing.assert_array_equal(found, jax.jit(apply)(params, x))
        np.testing.assert_allclose(found, wanted, rtol=1e-6)
        for segment in other.phases[0].segments:
            was = by_name[segment.name]
            for figure in ("kind", "flops", "operations", "temp_bytes", "resident", "streamed"):
                assert getattr(segment, figure) == getattr(was, figure), figure
        assert (other.fingerprint() == model.fingerprint()) == (other is model)


def test_what_crosses_a_cut_depends_on_the_order():
    _, _, _, model = two_towers(((8,), (8, 8)))
    pairs = arrows(model)
    for order in orders_of(model):
        for k, segment in enumerate(reordered(model, order).phases[0].segments[:-1]):
            done = set(order[: k + 1])
            written = {a for a, b in pairs if a in done and b not in done}
            assert len(segment.boundary) == len(written)


def test_phases_are_put_in_the_same_order():
    apply, params, x, _ = two_towers(((8,), (8, 8)))
    first, second = trace(apply, params, x), trace(apply, params, x[:1])
    model = chain(Workload({"first": first, "second": second}))
    order = orders_of(model)[-1]
    other = reordered(model, order)
    assert [s.name for s in other.phases[1].segments] == list(other.names)
    assert other.names == tuple(model.names[k] for k in order) != model.names


@pytest.mark.parametrize("name", sorted(ZOO))
def test_the_program_s_order_leaves_everything_as_it_is(name):
    specimen = ZOO[name]()
    model = chain(trace(specimen.fn, *specimen.args, carried=specimen.carried))
    assert reordered(model, range(model.num_segments)) is model
    assert all(a < b for a, b in arrows(model))
    assert [s for unit in units(model) for s in unit] == list(range(model.num_segments))


def test_iterations_of_a_scan_stay_together():
    def apply(params, x):
        y, _ = jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, params["layers"])
        z = jnp.tanh(x @ params["a"]) @ params["b"]
        return y + jnp.tanh(z @ params["b"]) @ params["a"]

    square = np.ones((4, 4), np.float32)
    params = {"layers": np.ones((3, 4, 4), np.float32), "a": square, "b": square}
    model = chain(trace(apply, params, square))
    scan = next(unit for unit in units(model) if len(unit) > 1)
    first = next(k for k in range(model.num_segments) if k > max(scan))
    assert not any(a in scan for a, b in arrows(model) if b == first), "beside the scan"
    rest = [k for k in range(model.num_segments) if k not in (*scan, first)]
    assert reordered(model, [first, *scan, *rest]).names[0] == model.names[first]
    with pytest.raises(SpecError, match="is apart from"):
        reordered(model, [scan[0], first, *scan[1:], *rest])


def test_orders_that_are_none_are_refused():
    _, _, _, model = two_towers()
    n = model.num_segments
    with pytest.raises(SpecError, match=f"there are {n} segments; name 0 to {n - 1}"):
        reordered(model, range(n - 1))
    with pytest.raises(SpecError, match="comes before 'stem', which it reads"):
        reordered(model, [1, 0, *range(2, n)])
    swapped = reordered(model, orders_of(model)[-1])
    with pytest.raises(SpecError, match="already"):
        reordered(swapped, range(n))
