"""Devices that a host makes of its cores: sharded where it gains, never faster than the cores."""

import dataclasses

import jax
import numpy as np
import pytest

import gimlax as gx
from gimlax.devices import MeshCalibration, Sample
from gimlax.errors import SpecError
from gimlax.graph import chain, trace
from gimlax.partition import ALL_GATHER, ALL_REDUCE, ALL_TO_ALL, REDUCE_SCATTER, Collective
from gimlax.planning.cost import costs
from gimlax.planning.rates import MEASURED, collectives_for
from gimlax.planning.rates.collectives import MeasuredCollectives
from tests.planning.calibrations import FLOPS_PER_S, calibration_of, samples
from tests.planning.cases import cluster_of, kind

NUM_DEVICES = 8
SIZES = (2**12, 2**16, 2**20, 2**23)


def f32(*dims):
    return jax.ShapeDtypeStruct(dims, np.float32)


def mlp(params, x):
    for layer in params:
        x = x + jax.nn.relu(x @ layer["up"]) @ layer["down"]
    return x


LAYERS = [{"up": f32(512, 2048), "down": f32(2048, 512)}] * 2
CHAIN = chain(trace(mlp, LAYERS, f32(64, 512)))


def virtual(interconnect=None, axes=()):
    """One mesh of eight devices of a kind that nothing joins by its card."""
    made = cluster_of([kind("cores")])
    mesh = dataclasses.replace(made.meshes[0], num_devices=NUM_DEVICES, axes=axes)
    return dataclasses.replace(made, meshes=(mesh,))


def timed(start_s=50e-6, bytes_per_s=2e9, sizes=SIZES):
    return tuple(
        Sample(
            kind=kind,
            dims=(n, size),
            dtype="float32",
            num_bytes=float(size),
            seconds=start_s + size / bytes_per_s,
        )
        for n in (2, 4, 8)
        for kind in (ALL_REDUCE, ALL_GATHER)
        for size in sizes
    )


def calibrated(cluster, collectives=(), share=NUM_DEVICES):
    """Every operation takes as many times longer as devices do it at once on the same cores."""
    slow = tuple(dataclasses.replace(s, seconds=share * s.seconds) for s in samples())
    (mesh,) = cluster.meshes
    return calibration_of(
        cluster,
        meshes=(
            MeshCalibration(
                mesh=mesh.name,
                device_kind=mesh.device_kind,
                num_devices=mesh.num_devices,
                dispatch_s=1e-4,
                probe_s=3e-3,
                samples=(*slow, *collectives),
            ),
        ),
    )


def test_measured_collectives_join_devices_whose_card_says_nothing():
    cluster = virtual()
    assert collectives_for(cluster, "cores") is None
    assert collectives_for(cluster, "cores", calibrated(cluster)) is None
    found = collectives_for(cluster, "cores", calibrated(cluster, timed()))
    assert found is not None and found.source == MEASURED


def test_measured_collectives_go_before_those_of_the_card():
    cluster = virtual()
    joined = dataclasses.replace(
        cluster,
        kinds=tuple(
            dataclasses.replace(k, interconnect=gx.devices.Interconnect(name="x", bytes_per_s=1e12))
            for k in cluster.kinds
        ),
    )
    by_card = collectives_for(joined, "cores")
    measured = collectives_for(joined, "cores", calibrated(cluster, timed()))
    assert by_card.source != MEASURED == measured.source
    assert collectives_for(joined, "cores", calibrated(cluster)).source != MEASURED


def test_a_mesh_is_sharded_where_that_gains():
    cluster = virtual()
    whole = gx.plan(CHAIN, cluster, calibration=calibrated(cluster))
    split = gx.plan(CHAIN, cluster, calibration=calibrated(cluster, timed()))
    assert not whole.shardings and split.shardings
    assert split.value < whole.value / 4
    assert split.meshes[0].basis == split.meshes[0].collectives == MEASURED
    assert whole.meshes[0].collectives == ""
    assert "collectives of 'cores': measured" in split.explain()
    assert "collectives of" not in whole.explain()
    assert gx.Plan.from_json(split.to_json()) == split
    for start_s, sums in ((50e-6, True), (1.0, False)):
        fixed = virtual(axes=(("data", 1), ("model", 8)))
        of = costs(CHAIN, fixed, calibrated(fixed, timed(start_s=start_s))).sharded["cores"]
        assert any(s.collectives for row in of.segments for s in row) is sums


@pytest.mark.parametrize("axes", [(), (("data", 1), ("model", 8)), (("data", 4), ("model", 2))])
def test_a_sharded_stage_is_never_faster_than_the_cores_that_its_devices_share(axes):
    cluster = virtual(axes=axes)
    free = timed(start_s=1e-9, bytes_per_s=1e18)  # even if nothing had to be sent
    found = gx.plan(CHAIN, cluster, calibration=calibrated(cluster, free))
    flops = costs(CHAIN, cluster_of([kind("one")])).flops.sum()
    assert found.shardings
    assert found.latency_s > flops / FLOPS_PER_S
    alone = cluster_of([kind("cores")])
    one = gx.plan(CHAIN, alone, calibration=calibration_of(alone))
    assert found.latency_s > one.latency_s


def collective(kind, num_bytes, num_devices=8):
    return Collective(kind=kind, num_bytes=num_bytes, axis="model", num_devices=num_devices)


def lines(points):
    measured = calibrated(
        virtual(),
        [
            Sample(kind=ALL_REDUCE, dims=(8, size), dtype="float32", seconds=seconds)
            for size, seconds in points
        ],
    )
    found = MeasuredCollectives.of(measured.meshes[0])
    assert found is not None
    return found


def test_between_and_beyond_what_was_timed_seconds_are_a_line():
    found = lines([(1000, 2e-4), (4000, 5e-4), (2000, 3e-4)])
    for num_bytes, seconds in ((10, 2e-4), (1000, 2e-4), (1500, 2.5e-4), (6000, 7e-4)):
        assert found.seconds(collective(ALL_REDUCE, num_bytes)) == pytest.approx(seconds)
    assert found.seconds(collective(REDUCE_SCATTER, 1500)) == pytest.approx(2.5e-4)
    assert found.seconds(collective(ALL_REDUCE, 1500, num_devices=1)) == 0


def test_more_bytes_never_take_less_whatever_a_clock_said():
    found = lines([(1000, 5e-4), (2000, 3e-4), (4000, 4e-4)])
    seconds = [found.seconds(collective(ALL_REDUCE, size)) for size in range(500, 9000, 250)]
    assert seconds == sorted(seconds)


def test_an_exchange_takes_as_long_as_a_gather():
    cluster = virtual()
    found = collectives_for(cluster, "cores", calibrated(cluster, timed()))
    exchange, gather = (found.seconds(collective(k, 2**18)) for k in (ALL_TO_ALL, ALL_GATHER))
    assert exchange == gather > 0


def test_a_group_that_was_not_timed_is_named():
    with pytest.raises(SpecError, match=r"'cores': it has no sample of all_reduce between 3 dev"):
        lines([(1000, 2e-4)]).seconds(collective(ALL_REDUCE, 10, num_devices=3))
