"""Calibration on a clock that tests wind: what is asked, what is reported, when it stops trying."""

import itertools

import jax
import pytest

from gimlax.devices import Calibration, Cluster, MeshSpec, calibrate
from gimlax.devices.measuring.grids import microbenchmarks
from gimlax.devices.measuring.links import aliases, fit_link, measure_link
from gimlax.devices.measuring.operations import measure
from gimlax.devices.measuring.programs import chain, matmul
from gimlax.devices.measuring.timing import Probe, time_calls
from gimlax.errors import SpecError

TINY = (matmul((1, 2, 32, 32), "float32", "mk,kn"), chain("add", 1024, "float32"))


def steady(step_s=1e-3):
    """A clock that advances by the same at every look."""
    ticks = itertools.count()
    return lambda: next(ticks) * step_s


def only(cluster, *names):
    meshes = tuple(mesh for mesh in cluster.meshes if mesh.name in names)
    links = [link for link in cluster.links if {link.source, link.target} <= set(names)]
    return Cluster(meshes=meshes, links=tuple(links))


def test_a_call_takes_what_the_clock_says_and_is_repeated():
    calls = []
    timing = time_calls(lambda: calls.append(1), clock=steady(), warmup=2)
    assert timing.seconds == pytest.approx(1e-3)
    assert timing.spread == pytest.approx(0.0)
    assert len(calls) == timing.repeats + 2 >= 7


def test_calibrating_a_tiny_grid_gives_one_sample_each(cluster):
    steps = []
    found = calibrate(
        only(cluster, cluster.meshes[0].name),
        benchmarks=TINY,
        clock=steady(),
        progress=lambda done, total, what: steps.append((done, total)),
    )
    (mesh,) = found.meshes
    assert [(s.kind, s.dims) for s in mesh.samples] == [(b.kind, b.dims) for b in TINY]
    assert all(s.seconds > 0 for s in mesh.samples)
    assert mesh.probe_s == pytest.approx(1e-3)
    assert found.jax_version == jax.__version__
    assert steps == [(0, 2), (1, 2)]
    found.check(only(cluster, cluster.meshes[0].name))
    assert Calibration.from_json(found.to_json()) == found
    assert "2 " in str(found)


def test_nothing_is_visited_again_when_time_is_short():
    device, visits = jax.devices("cpu")[0], []
    probe = Probe(device, steady())
    for in_time, expected in ((False, 1), (True, 2)):
        before = probe_count(probe, visits)
        measure(TINY[1], [device], probe, 1e-6, in_time=lambda t=in_time: t, clock=steady())
        assert probe_count(probe, visits) - before == expected


def probe_count(probe, visits):
    """How often a probe ran; it is counted from the first question on."""
    if not visits:
        run = probe.seconds
        visits.append(0)

        def counted():
            visits[0] += 1
            return run()

        probe.seconds = counted
    return visits[0]


def test_a_cluster_without_live_meshes_is_refused():
    described = Cluster(meshes=(MeshSpec(name="a", device_kind="cpu"),))
    with pytest.raises(SpecError, match="no mesh of the cluster names a backend"):
        calibrate(described)


def test_a_link_is_fitted_exactly_where_it_is_a_line():
    sizes = (2**10, 2**16, 2**22)
    latency_s, rate = fit_link(sizes, [3e-6 + size / 7e9 for size in sizes])
    assert latency_s == pytest.approx(3e-6)
    assert rate == pytest.approx(7e9)


def test_times_that_do_not_grow_still_give_a_finite_rate():
    latency_s, rate = fit_link((2**10, 2**20), [1e-3, 1e-3])
    assert latency_s >= 0
    assert 0 < rate < float("inf")


class Buffer:
    """An array at an address; None where the host sees none."""

    def __init__(self, address):
        self.address = address

    def unsafe_buffer_pointer(self):
        if self.address is None:
            raise RuntimeError("no address")
        return self.address


@pytest.mark.parametrize(
    ("here", "there", "same"), [(64, 64, True), (64, 128, False), (64, None, False)]
)
def test_memory_that_both_ends_use_is_told_from_a_copy(here, there, same):
    assert aliases(Buffer(here), Buffer(there)) is same


def test_a_link_between_clients_is_not_infinitely_fast(plugin_name):
    here, there = jax.devices("cpu")[0], jax.devices(plugin_name)[0]
    link = measure_link("a", here, "b", there, clock=steady())
    assert link.bandwidth_bytes_per_s == pytest.approx(2**25 / 1e-3, rel=1e-3)


def test_a_link_within_a_client_copies():
    here, there = jax.devices("cpu")[:2]
    assert not measure_link("a", here, "b", there, clock=steady()).aliases


def test_the_grid_has_every_class_that_rates_need():
    found = [(b.kind, b.dims, b.dtype, b.layout, b.out_itemsize) for b in microbenchmarks()]
    kinds = {kind for kind, *_ in found}
    assert kinds >= {"matmul", "attention", "convolution", "elementwise", "reduction", "gather"}
    assert "grouped" in kinds
    assert len(found) < 700


def test_a_tiny_program_of_each_kind_does_the_work_it_states():
    smallest = {}
    for benchmark in microbenchmarks():
        known = smallest.get(benchmark.kind)
        if known is None or benchmark.num_bytes < known.num_bytes:
            smallest[benchmark.kind] = benchmark
    for benchmark in smallest.values():
        result = jax.eval_shape(benchmark.function, *benchmark.arguments())
        assert result.size > 0
