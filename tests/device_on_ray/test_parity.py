"""A model over the CPU and a device, each in a worker of Ray: part of `make test-device`.

The process of the tests does not touch the device, which may be for one process at a time.
"""

import dataclasses

import pytest

import gimlax as gx
from gimlax import devices, hosts
from gimlax.devices import Backend, MeshSpec, WorkerSpec
from gimlax.errors import InternalError
from gimlax.records import from_json
from tests.device.conftest import KINDS, assert_close, make, reference, trace
from tests.runtime.workers.conftest import cluster_of, compile_on

STARTING_S = 300


@pytest.fixture(scope="module")
def workers(pytestconfig, ray):
    """'cpu' and 'device', where the platform that was asked for is there."""
    platform = pytestconfig.getoption("--platform")
    if not platform:
        pytest.skip("for a device: make test-device PLATFORM=cuda (or rocm, tpu, a plugin's name)")
    found = ask(platform)
    if not found.available:
        pytest.skip(f"backend {platform!r} is not here: {found.reason}")
    described = cluster_of(
        WorkerSpec(name="cpu", platforms="cpu"),
        WorkerSpec(name="device", platforms=f"{platform},cpu"),
        device=platform,
    )
    kind = dataclasses.replace(devices.load_kind("cpu"), name=found.device_kind, aliases=())
    mine = (kind,) if found.device_kind != "cpu" else ()
    meshes = [
        MeshSpec(name=m.name, device_kind=found.device_kind, backend=platform, worker=m.worker)
        if m.name == "device"
        else m
        for m in described.meshes
    ]
    cluster = dataclasses.replace(described, meshes=tuple(meshes), kinds=mine)
    with gx.start_workers(cluster, ray=True, timeout_s=STARTING_S) as started:
        yield started


def ask(platform):
    """What a process of its own finds out about the backend."""
    with hosts.join() as joined:
        running = joined.run(
            joined.nodes[0],
            "gimlax.devices.discovery:describe",
            {"timeout_s": STARTING_S},
            env={"JAX_PLATFORMS": f"{platform},cpu"},
            whose="the discovery",
            timeout_s=2 * STARTING_S,
        )
    told = [
        from_json(Backend, text, 1, "a backend", error=InternalError, advice="")
        for text in running.answer["backends"]
    ]
    absent = Backend(name=platform, available=False, reason="nothing here provides it")
    return next((backend for backend in told if backend.name == platform), absent)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("meshes", [("cpu", "device"), ("device", "cpu")], ids="-".join)
def test_a_model_over_two_workers_gives_what_the_cpu_gives(kind, meshes, workers):
    specimen = make(kind)
    with compile_on(workers, trace(specimen), meshes) as step:
        args = (step.place(specimen.args[0]), *specimen.args[1:])
        assert_close(gx.gather(step(*args)), reference(specimen.fn, *specimen.args))


def test_passes_in_flight_there_and_back(workers):
    specimen = make("llama")
    expected = reference(specimen.fn, *specimen.args)
    with compile_on(workers, trace(specimen), ("cpu", "device", "cpu")) as step:
        params = step.place(specimen.args[0])
        passes = [step.submit(params, *specimen.args[1:]) for _ in range(8)]
        for found in passes:
            assert_close(gx.gather(found.result()), expected)
