"""Costs and plans on measured figures: they go before cards, and a plan says so."""

import math
from dataclasses import replace
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gimlax as gx
from gimlax.devices import Interconnect, MeshSpec
from gimlax.errors import SpecError
from gimlax.graph import chain, trace
from gimlax.graph.operations import GROUPED, ROUTED, Operation
from gimlax.planning.cost import costs
from gimlax.planning.rates import CARD, DECLARED, MEASURED, rates_for
from gimlax.planning.rates.grouped import GroupedProducts
from gimlax.planning.sharding import shard
from tests.planning.calibrations import (
    BYTES_PER_S,
    DISPATCH_S,
    START_S,
    calibration_of,
    law,
    samples,
)
from tests.planning.cases import cluster_of, kind, two_phases

CHAIN = chain(two_phases())
CLUSTER = cluster_of([kind("a"), kind("b", flops_per_s=1e8)])


def test_measured_goes_before_the_card_and_only_where_it_was_measured():
    measured = calibration_of(CLUSTER)
    only_first = calibration_of(CLUSTER, meshes=measured.meshes[:1])
    names = [mesh.name for mesh in CLUSTER.meshes]
    assert [rates_for(CLUSTER, n, measured).source for n in names] == [MEASURED, MEASURED]
    assert [rates_for(CLUSTER, n, only_first).source for n in names] == [MEASURED, CARD]
    assert [rates_for(CLUSTER, n).source for n in names] == [CARD, CARD]


def test_a_stage_is_dispatched_as_fast_as_was_measured():
    figures = costs(CHAIN, CLUSTER, calibration_of(CLUSTER))
    np.testing.assert_allclose(figures.dispatch_s, DISPATCH_S * figures.calls.sum())
    np.testing.assert_allclose(
        figures.problem.stage_s[:, 0, 1], figures.segment_s[:, 0] + figures.dispatch_s
    )


def test_a_plan_says_what_its_seconds_rest_on():
    names = [mesh.name for mesh in CLUSTER.meshes]
    measured = calibration_of(CLUSTER, links=[(*names, 3e-6, 5e9)])
    only_second = calibration_of(CLUSTER, meshes=measured.meshes[1:], links=())
    fixed = {"cuts": [2], "meshes": names}
    for calibration, bases, link in (
        (measured, [MEASURED, MEASURED], MEASURED),
        (only_second, [CARD, MEASURED], DECLARED),
        (None, [CARD, CARD], DECLARED),
    ):
        plan = gx.plan(CHAIN, CLUSTER, calibration=calibration, **fixed)
        assert [mesh.basis for mesh in plan.meshes] == bases
        assert [t.basis for phase in plan.phases for t in phase.transfers] == [link] * 2
        assert plan.calibration == (calibration.title if calibration else "")
        assert gx.Plan.from_json(plan.to_json()) == plan
        assert plan.cluster == CLUSTER.fingerprint()


def test_a_measured_link_is_what_transfers_take():
    names = [mesh.name for mesh in CLUSTER.meshes]
    measured = calibration_of(CLUSTER, links=[(*names, 3e-6, 5e9)])
    plan = gx.plan(CHAIN, CLUSTER, calibration=measured, cuts=[2], meshes=names)
    transfer = plan.phases[0].transfers[0]
    assert transfer.seconds == pytest.approx(3e-6 + transfer.num_bytes / 5e9)
    assert plan.value == pytest.approx(sum(p.calls * p.seconds for p in plan.phases))


def test_a_plan_reads_a_calibration_file(tmp_path):
    measured = calibration_of(CLUSTER)
    measured.save(tmp_path / "c.json")
    assert gx.plan(CHAIN, CLUSTER, calibration=tmp_path / "c.json") == gx.plan(
        CHAIN, CLUSTER, calibration=measured
    )
    with pytest.raises(SpecError, match=r"missing\.json.*scripts/calibrate\.py"):
        gx.plan(CHAIN, CLUSTER, calibration=str(tmp_path / "missing.json"))


@pytest.mark.parametrize(("factor", "part"), [(2.0, 1.0), (1.2, 0.6), (1.0, 0.5), (2.6, 1.0)])
def test_meshes_of_a_host_occupy_it_as_much_as_they_slow_each_other_down(factor, part):
    shared = cluster_of([kind("a"), kind("b")], hosts=["h", "h"], shares=("compute", "memory"))
    pair = tuple(mesh.name for mesh in shared.meshes)
    figures = costs(CHAIN, shared, calibration_of(shared, slowdowns=[(pair, factor)]))
    np.testing.assert_allclose(figures.shared_segment_s[0], part * figures.segment_s)
    np.testing.assert_allclose(figures.shared_dispatch_s[0], part * figures.dispatch_s)


def test_a_class_that_was_not_measured_is_named():
    measured = calibration_of(CLUSTER)
    without = tuple(s for s in measured.meshes[0].samples if s.kind != "convolution")
    lacking = calibration_of(
        CLUSTER,
        meshes=(replace(measured.meshes[0], samples=without),),
    )
    with pytest.raises(SpecError, match=r"convolution.*calibrate\.py"):
        costs(CHAIN, CLUSTER, lacking)


def _fields(record):
    return {name: getattr(record, name) for name in record.__dataclass_fields__}


def operation(kind, dims, layout, flops, num_bytes, dtype="float32"):
    return Operation(
        kind=kind,
        dims=dims,
        dtype=dtype,
        flops=flops,
        bytes_read=num_bytes - 4.0 * math.prod(dims[:3]),
        bytes_written=4.0 * math.prod(dims[:3]),
        layout=layout,
    )


def product(m, n, k):
    return operation("matmul", (1, m, n, k), "mk,kn", 2.0 * m * n * k, 4.0 * (m * n + (m + n) * k))


def test_measured_rates_pass_through_their_samples():
    measured = calibration_of(CLUSTER).meshes[0]
    rates = rates_for(CLUSTER, CLUSTER.meshes[0].name, calibration_of(CLUSTER))
    products = [s for s in measured.samples if s.kind == "matmul" and s.dtype == "float32"]
    assert len(products) > 100
    for s in products:
        seconds = rates.seconds(operation(s.kind, s.dims, s.layout, s.flops, s.num_bytes))
        assert seconds == pytest.approx(s.seconds, rel=1e-6)


def test_more_work_never_takes_less():
    rates = rates_for(CLUSTER, CLUSTER.meshes[0].name, calibration_of(CLUSTER))
    for dim in range(3):
        sizes = [[100, 200, 300] for _ in range(8)]
        for step, size in enumerate(sizes):
            size[dim] *= 2**step
        seconds = [rates.seconds(product(*size)) for size in sizes]
        assert seconds == sorted(seconds)


def multiply(dtype):
    """A product of two square matrices, and what the operation is called."""
    shape = jax.ShapeDtypeStruct((512, 512), dtype)
    found = chain(trace(lambda w, x: jnp.dot(x, w, preferred_element_type=x.dtype), shape, shape))
    (segment,) = found.phases[0].segments
    (product,) = [op for op in segment.operations if op.kind == "matmul"]
    return found, product


@pytest.mark.parametrize("dtype", [jnp.float8_e4m3fn, jnp.int8, jnp.float16])
def test_a_dtype_that_was_not_measured_has_the_ratio_of_the_peaks_and_the_plan_says_so(dtype):
    name = jnp.dtype(dtype).name
    card = kind("a", flops_per_s=1e12)
    card = replace(card, peak_flops_per_s=(*card.peak_flops_per_s, (name, 4e12)))
    cluster = cluster_of([card])
    found, op = multiply(dtype)
    figures = costs(found, cluster, calibration_of(cluster))
    quarter = law(op.flops / 4, op.num_bytes)
    assert figures.rates[0].seconds(op) == pytest.approx(quarter, rel=1e-6)
    plan = gx.plan(found, cluster, calibration=calibration_of(cluster))
    basis = f"measured, {name} as float32 at the ratio of the card's peaks"
    assert plan.meshes[0].basis == basis
    assert f"seconds of 'a': {basis} ({plan.calibration})" in plan.explain()
    assert gx.Plan.from_json(plan.to_json()) == plan
    with pytest.raises(SpecError, match="lists no rate for float64"):
        figures.rates[0].seconds(replace(op, dtype="float64"))


def test_an_operand_that_is_copied_first_counts_by_the_size_of_its_dtype():
    rates = rates_for(CLUSTER, CLUSTER.meshes[0].name, calibration_of(CLUSTER))
    copied, bare = {}, {}
    for dtype in ("float32", "bfloat16", "float16", "float8_e4m3fn", "int8", "uint16", "float64"):
        op = replace(product(64, 512, 512), dtype=dtype)
        bare[dtype] = rates.seconds(op)
        copied[dtype] = rates.seconds(replace(op, layout="xx,kn")) - bare[dtype]
    for dtype, seconds in copied.items():
        expected_s = START_S + 2.0 * jnp.dtype(dtype).itemsize * 64 * 512 / BYTES_PER_S
        assert seconds == pytest.approx(expected_s, rel=0.01), dtype


def test_meshes_with_equal_samples_share_their_rates_and_are_sharded_once():
    joined = replace(kind("a"), interconnect=Interconnect(name="ring", bytes_per_s=1e11))
    axes = (("data", 1), ("model", 2))
    meshes = tuple(
        MeshSpec(name=name, device_kind="a", num_devices=2, axes=axes, host=name) for name in "xyz"
    )
    cluster = replace(cluster_of([joined]), meshes=meshes)
    measured = calibration_of(cluster)
    with mock.patch("gimlax.planning.cost.shard", wraps=shard) as asked:
        costs(CHAIN, cluster, measured)
        assert asked.call_count == 1
        slower = replace(measured.meshes[2], samples=measured.meshes[2].samples[:-1])
        costs(CHAIN, cluster, replace(measured, meshes=(*measured.meshes[:2], slower)))
        assert asked.call_count == 3


def test_a_law_is_carried_beyond_the_samples():
    rates = rates_for(CLUSTER, CLUSTER.meshes[0].name, calibration_of(CLUSTER))
    for size in ((3, 70, 90), (1, 10**4, 10**4), (10**4, 10**4, 10**4)):
        tested = product(*size)
        expected_s = law(tested.flops, tested.num_bytes)
        assert rates.seconds(tested) == pytest.approx(expected_s, rel=1e-6)


def grouped(dims, num_bytes, dtype="float32"):
    return operation(GROUPED, dims, "mk,gkn", 2.0 * math.prod(dims[1:]), num_bytes, dtype)


def backend_samples(every_group):
    """Grouped products of a made-up device, which gives each row its group or all of them."""
    again = 2.0 if every_group else 0.0

    def seconds(sample):
        groups, rows, n, k = sample.dims
        met = groups if every_group else min(groups, rows)
        num_bytes = 4.0 * (rows * k + met * n * k + rows * n + again * groups * (rows + n) * k)
        return law(2.0 * (groups if every_group else 1) * rows * n * k, num_bytes + 4 * groups)

    found = [s for s in samples() if s.kind == GROUPED and s.dtype == "float32"]
    assert len(found) > 20
    return [replace(s, seconds=seconds(s)) for s in found], seconds


@pytest.mark.parametrize("every_group", [False, True])
def test_samples_tell_whether_every_expert_sees_every_row(every_group):
    found, seconds = backend_samples(every_group)
    products = GroupedProducts.of(found)
    assert products.every_group is every_group
    for dims in ((32, 200, 768, 768), (8, 3, 2048, 1024), (128, 8, 512, 512)):
        groups, rows, n, k = dims
        num_bytes = 4.0 * (rows * k + min(groups, rows) * n * k + rows * n + groups)
        tested = replace(found[0], dims=dims, num_bytes=num_bytes)
        priced_s = products.seconds(dims, "float32", num_bytes)
        assert priced_s == pytest.approx(seconds(tested), rel=0.02)


def test_what_copies_take_beyond_a_law_is_told_by_their_size():
    found, _ = backend_samples(every_group=True)

    def slower(sample):
        groups, rows, n, k = sample.dims
        return 1 + (groups * n * k / 2**20) ** 0.5 + (groups * rows * k / 2**18) ** 0.5

    found = [replace(s, seconds=slower(s) * s.seconds) for s in found]
    missed = []
    for left_out, s in enumerate(found):
        products = GroupedProducts.of([*found[:left_out], *found[left_out + 1 :]])
        missed.append(products.seconds(s.dims, "float32", s.num_bytes) / s.seconds - 1)
    assert np.median(np.abs(missed)) < 0.035


def test_a_calibrated_mesh_prices_experts_as_its_backend_does_them():
    measured = calibration_of(CLUSTER)
    found, seconds = backend_samples(every_group=True)
    others = tuple(s for s in measured.meshes[0].samples if s.kind != GROUPED)
    dense = replace(measured.meshes[0], samples=(*others, *found))
    rates = rates_for(CLUSTER, dense.mesh, replace(measured, meshes=(dense,)))
    for s in found:
        assert rates.seconds(grouped(s.dims, s.num_bytes)) == pytest.approx(seconds(s), rel=0.02)
    half = grouped(found[0].dims, found[0].num_bytes, "bfloat16")
    assert rates.seconds(half) > 0  # what was not sampled is priced as float32


def routed(dims, busy, size, tiles):
    groups, rows, n, k = dims
    num_bytes = 4.0 * (rows * k + busy * n * k + rows * n)
    dims = (groups, rows, n, k, size, tiles, busy)
    return operation(ROUTED, dims, "", 2.0 * tiles * size * n * k, num_bytes)


@pytest.mark.parametrize("every_group", [False, True])
def test_a_layer_of_experts_is_priced_by_the_way_that_its_backend_is_given(every_group):
    measured = calibration_of(CLUSTER)
    found, seconds = backend_samples(every_group)
    others = tuple(s for s in measured.meshes[0].samples if s.kind != GROUPED)
    mesh = replace(measured.meshes[0], samples=(*others, *found))
    rates = rates_for(CLUSTER, mesh.mesh, replace(measured, meshes=(mesh,)))
    dims = (8, 200, 768, 768)
    priced_s = rates.seconds(routed(dims, busy=8, size=4, tiles=53))
    if every_group:  # the product of each tile, and the weights of each expert copied once
        tile_s = law(2.0 * 4 * 768 * 768, 4.0 * (4 * 768 + 768 * 768 + 4 * 768))
        copied_s = law(0.0, 2 * 4.0 * 768 * 768)
        assert priced_s == pytest.approx(53 * tile_s + 8 * copied_s, rel=0.03)
    else:
        num_bytes = 4.0 * (200 * 768 + 8 * 768 * 768 + 200 * 768)
        assert priced_s == pytest.approx(
            seconds(replace(found[0], dims=dims, num_bytes=num_bytes)), rel=0.02
        )


def test_a_layer_of_experts_needs_no_grouped_products_to_be_measured():
    measured = calibration_of(CLUSTER)
    without = tuple(s for s in measured.meshes[0].samples if s.kind != GROUPED)
    mesh = replace(measured.meshes[0], samples=without)
    rates = rates_for(CLUSTER, mesh.mesh, replace(measured, meshes=(mesh,)))
    one_s = rates.seconds(routed((8, 2, 768, 768), busy=2, size=1, tiles=2))
    assert one_s < rates.seconds(routed((8, 64, 768, 768), busy=8, size=4, tiles=20))


def test_a_calibration_without_grouped_products_says_so_to_who_needs_them():
    measured = calibration_of(CLUSTER)
    without = [s for s in measured.meshes[0].samples if s.kind != GROUPED]
    lacking = replace(measured.meshes[0], samples=tuple(without))
    rates = rates_for(CLUSTER, lacking.mesh, replace(measured, meshes=(lacking,)))
    assert rates.seconds(product(8, 8, 8)) > 0
    with pytest.raises(SpecError, match=r"no sample of grouped float32, .* 4 groups .*calibrate"):
        rates.seconds(grouped((4, 8, 16, 16), 1e4))
