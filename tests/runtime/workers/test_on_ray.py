"""The same over workers that Ray starts: a model computes what it computes in one process."""

import os

import pytest

import gimlax as gx
from gimlax.devices import WorkerSpec
from tests import zoo
from tests.runtime.conftest import on_cpu, trace_specimen
from tests.runtime.test_execution import assert_within
from tests.runtime.workers import test_groups, test_parity
from tests.runtime.workers.conftest import TWO_DEVICES, cluster_of, compile_on

PLACEMENTS = (("one", "two"), ("one", "two", "three"), ("one", "other"), ("other", "one", "two"))


@pytest.fixture(scope="module")
def workers(plugin_name, ray):
    """Three of JAX's own CPU client with different flags, and one of another library."""
    cluster = cluster_of(
        WorkerSpec(name="one", platforms="cpu", cores=(min(os.sched_getaffinity(0)),)),
        WorkerSpec(name="two", platforms="cpu", flags=TWO_DEVICES),
        WorkerSpec(name="three", platforms="cpu", flags=TWO_DEVICES.replace("2", "3")),
        WorkerSpec(name="other", platforms=f"cpu,{plugin_name}"),
        other=plugin_name,
    )
    with gx.start_workers(cluster, ray=True) as started:
        yield started


@pytest.mark.parametrize("kind", zoo.ZOO)
@pytest.mark.parametrize("placement", PLACEMENTS, ids="-".join)
def test_cut_over_workers_of_ray_and_uncut_agree(kind, placement, workers):
    specimen = zoo.ZOO[kind]()
    with compile_on(workers, trace_specimen(specimen), placement) as step:
        args = (step.place(specimen.args[0]), *specimen.args[1:])
        assert_within(gx.gather(step(*args)), on_cpu(specimen.fn, *specimen.args), 5e-6)


def test_a_mesh_over_two_processes_of_ray(plugin_name, ray):
    with gx.start_workers(test_groups.cluster(plugin_name), ray=True) as workers:
        test_groups.check_passes(workers, ("slice", "other", "slice"))


test_every_single_boundary = test_parity.test_every_single_boundary
test_passes_in_flight = test_parity.test_passes_in_flight_keep_the_order_of_their_state
test_state = test_parity.test_state_can_be_copied_read_and_written
test_recording = test_parity.test_a_recording_has_the_spans_of_all_workers
