"""What stages cost: rooflines by hand, memory against the chain's own account of its parts."""

from dataclasses import replace
from unittest import mock

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from gimlax.devices import Cluster, Interconnect, Link
from gimlax.devices.groups import Group
from gimlax.errors import PlanError, SpecError
from gimlax.graph import Role, chain, trace
from gimlax.planning import plan
from gimlax.planning.cost import DISPATCH_S, costs
from tests.planning.cases import chain_of, cluster_of, kind, two_phases
from tests.zoo import ZOO


def matmul(rows):
    shapes = [jax.ShapeDtypeStruct(s, np.float32) for s in ((256, 512), (rows, 256))]
    return chain(trace(lambda w, x: x @ w, *shapes, name="matmul"))


def test_a_large_product_takes_its_flops_over_the_peak():
    figures = costs(matmul(4096), cluster_of([kind("a", flops_per_s=1e9, bytes_per_s=1e12)]))
    expected_s = 2 * 4096 * 256 * 512 / 1e9 + DISPATCH_S
    assert figures.problem.stage_s[0, 0, -1] == pytest.approx(expected_s, rel=1e-6)


def test_a_small_product_takes_its_bytes_over_the_bandwidth():
    figures = costs(matmul(1), cluster_of([kind("a", flops_per_s=1e15, bytes_per_s=1e9)]))
    expected_s = 4 * (256 * 512 + 256 + 512) / 1e9 + DISPATCH_S
    assert figures.problem.stage_s[0, 0, -1] == pytest.approx(expected_s, rel=1e-6)


def test_calls_of_all_phases_add_up():
    cluster = cluster_of([kind("a"), kind("b", flops_per_s=2e11)])
    once = costs(chain(two_phases({"prefill": 1, "decode": 1})), cluster)
    often = costs(chain(two_phases({"prefill": 1, "decode": 101})), cluster)
    decode_s = once.seconds[1].sum(axis=1) + DISPATCH_S
    more_s = often.problem.stage_s[:, 0, -1] - once.problem.stage_s[:, 0, -1]
    np.testing.assert_allclose(more_s, 100 * decode_s)


@pytest.mark.parametrize("name", [*ZOO, "two_phases"])
def test_each_run_of_segments_needs_the_parts_that_the_chain_names(name):
    tested = chain(two_phases()) if name == "two_phases" else chain_of(name)
    figures = costs(tested, cluster_of([kind("a")]))
    n = tested.num_segments
    for first in range(n):
        for stop in range(first + 1, n + 1):
            if not np.isfinite(figures.problem.stage_s[0, first, stop]):
                continue
            resident = sum(
                tested.part_bytes(Role.RESIDENT, p) for p in tested.resident_parts(first, stop)
            )
            carried = sum(
                tested.part_bytes(Role.CARRIED, p) for p in tested.carried_parts(first, stop)
            )
            assert figures.resident_bytes(0, [(first, stop)]) == resident
            assert figures.carried_bytes(0, [(first, stop)]) == carried
            passing = sum(figures.passing_bytes(first, stop))
            assert figures.problem.stage_bytes()[0, first, stop] == resident + carried + passing


def test_a_tied_table_counts_once_per_mesh_and_again_on_another():
    tested = chain(two_phases())
    n = tested.num_segments
    figures = costs(tested, cluster_of([kind("a")]))
    table_bytes = 4 * 512 * 64
    ends = [(0, 1), (n - 1, n)]
    alone = [figures.resident_bytes(0, [run]) for run in ends]
    assert sum(alone) - figures.resident_bytes(0, ends) == table_bytes


def test_nothing_is_sent_within_a_mesh_and_every_link_has_its_price():
    tested = chain(two_phases())
    cluster = cluster_of([kind("a"), kind("b")], links=[("a", "b")], latency_s=1e-3)
    figures = costs(tested, cluster)
    transfer_s = figures.problem.transfer_s
    assert (transfer_s[[0, 1], [0, 1]] == 0).all()
    assert np.isinf(transfer_s[1, 0]).all()
    b = 2
    num_bytes = [phase.segments[b - 1].boundary_bytes for phase in tested.phases]
    expected_s = sum(
        calls * (1e-3 + size / 1e10) for calls, size in zip((1, 10), num_bytes, strict=True)
    )
    assert transfer_s[0, 1, b] == pytest.approx(expected_s)


def test_a_link_of_groups_joins_their_meshes_and_only_what_links_name_is_looked_up():
    shapes = {"a": [(1, 1)] * 2, "b": [(1, 1)]}
    groups = tuple(
        Group(name=name, device_kind=name, num_devices=4, devices_per_host=1) for name in "ab"
    )
    links = tuple(
        Link(source=source, target=target, latency_s=latency_s, bandwidth_bytes_per_s=1e10)
        for source, target, latency_s in [("a", "b", 1e-3), ("b/0", "a/1", 2e-3)]
    )
    kinds = (kind("a"), kind("b"))
    made = replace(
        Cluster(meshes=(), groups=groups, links=(), kinds=kinds).carve(shapes), links=links
    )
    with mock.patch.object(Cluster, "link", autospec=True, side_effect=Cluster.link) as asked:
        transfer_s = costs(chain(two_phases()), made).problem.transfer_s[:, :, 2]
    names = [mesh.name for mesh in made.meshes]
    for s, source in enumerate(names):
        for t, target in enumerate(names):
            joined = made.link(source, target) is not None
            assert np.isfinite(transfer_s[s, t]) == joined, (source, target)
    assert transfer_s[2, 1] > 1.5 * transfer_s[0, 2] > 0
    assert asked.call_count == 3


def test_more_meshes_than_a_table_of_pairs_has_room_for_are_refused(monkeypatch):
    monkeypatch.setattr("gimlax.planning.handovers.MOST_BYTES", 1000)
    with pytest.raises(PlanError, match=r"has 5 meshes: .* takes .*, and 1000 B are the most"):
        costs(chain(two_phases()), cluster_of([kind(name) for name in "abcde"]))


@pytest.mark.parametrize("shares", [("compute", "memory"), ("compute",), ("memory",)])
def test_what_meshes_share_is_charged_by_what_they_share(shares):
    tested = chain(two_phases())
    kinds = [kind("a"), kind("b"), kind("c")]
    cluster = cluster_of(kinds, hosts=["x", "x", "y"], shares=shares)
    figures = costs(tested, cluster)
    shared_s = figures.problem.shared_s
    assert shared_s.shape[0] == 1
    assert (shared_s[0, 2] == 0).all()
    by_hand = {
        ("compute", "memory"): figures.segment_s.sum(axis=1) + figures.dispatch_s,
        ("compute",): np.tensordot(figures.calls, figures.compute_s, 1).sum(axis=1),
        ("memory",): np.tensordot(figures.calls, figures.memory_s, 1).sum(axis=1),
    }[shares]
    np.testing.assert_allclose(shared_s[0, :2, 0, -1], by_hand[:2])
    assert (figures.problem.pool[0] == figures.problem.pool[1]) == ("memory" in shares)


def test_specs_that_no_mesh_could_use_are_refused():
    found = chain_of("plain")
    with pytest.raises(SpecError, match="no mesh of the cluster has several devices"):
        costs(found, cluster_of([kind("a")]), shardings={"params['table']": P("model")})


def test_a_mesh_of_more_devices_than_its_interconnect_joins_is_refused():
    ring = Interconnect(name="ring", bytes_per_s=1e11, num_devices=8)
    joined = replace(kind("a"), interconnect=ring)
    made = cluster_of([joined])
    for number, axes in ((8, ()), (8, (("data", 2), ("model", 4)))):
        fits = replace(made.meshes[0], num_devices=number, axes=axes)
        assert plan(chain(two_phases()), replace(made, meshes=(fits,))).mesh_names == ("a",)
    for axes in ((), (("data", 4), ("model", 4))):
        large = replace(made.meshes[0], num_devices=16, axes=axes)
        said = "mesh 'a' has 16 devices, but ring joins at most 8 of 'a'; describe meshes of at"
        with pytest.raises(SpecError, match=said):
            plan(chain(two_phases()), replace(made, meshes=(large,)))
    unknown = replace(joined, interconnect=replace(ring, num_devices=None))
    plan(chain(two_phases()), replace(made, meshes=(large,), kinds=(unknown,)))
    alone = replace(made, meshes=(large,), kinds=(kind("a"),))  # nothing joins them: no limit
    plan(chain(two_phases()), alone)


def test_dollars_and_joules_of_a_segment_are_its_seconds_at_what_the_mesh_costs_and_draws():
    kinds = [replace(kind("a"), tdp_watts=200.0), replace(kind("b"), tdp_watts=None)]
    cluster = cluster_of(kinds)
    meshes = (replace(cluster.meshes[0], usd_per_hour=3.6), cluster.meshes[1])
    figures = costs(chain(two_phases()), replace(cluster, meshes=meshes))
    np.testing.assert_allclose(figures.segment_usd[0], 0.001 * figures.segment_s[0])
    np.testing.assert_allclose(figures.segment_joules[0], 200 * figures.segment_s[0])
    assert np.isnan(figures.segment_usd[1]).all() and np.isnan(figures.segment_joules[1]).all()
