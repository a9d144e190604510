"""A cluster out of the hosts of a Ray: a worker for each backend, meshes and links of them."""

import gimlax as gx
from gimlax.devices import Backend, Capabilities
from gimlax.devices.catalogue import read_data
from gimlax.devices.discovery import _cluster_of
from gimlax.devices.found_hosts import FoundHost


def backend(name, num_devices, *, on_host):
    capabilities = Capabilities.of(
        (what, what == "host_memory" and on_host, "") for what in Capabilities.names()
    )
    return Backend(
        name=name,
        available=True,
        device_kind="cpu" if on_host else "H100 SXM",
        num_devices=num_devices,
        capabilities=capabilities,
    )


def test_each_backend_of_each_host_is_a_worker_with_a_mesh_for_each_device():
    missing = Backend(name="rocm", available=False, reason="not installed")
    cluster = _cluster_of(
        [
            FoundHost(
                name="a",
                address="10.0.0.1",
                flags="--one",
                backends=(backend("cpu", 2, on_host=True), missing),
            ),
            FoundHost(
                name="b",
                address="10.0.0.2",
                flags="",
                backends=(backend("cpu", 1, on_host=True), backend("cuda", 1, on_host=False)),
            ),
        ]
    )
    assert [(w.name, w.host, w.platforms, w.flags) for w in cluster.workers] == [
        ("a/cpu", "10.0.0.1", "cpu", "--one"),
        ("b/cpu", "10.0.0.2", "cpu", ""),
        ("b/cuda", "10.0.0.2", "cuda,cpu", ""),
    ]
    assert [(m.name, m.worker, m.backend, m.first_device, m.host) for m in cluster.meshes] == [
        ("a/cpu:0", "a/cpu", "cpu", 0, "a"),
        ("a/cpu:1", "a/cpu", "cpu", 1, "a"),
        ("b/cpu", "b/cpu", "cpu", 0, "b"),
        ("b/cuda", "b/cuda", "cuda", 0, "b"),
    ]
    assert [b.name for b in cluster.backends] == ["a/cpu", "a/rocm", "b/cpu", "b/cuda"]
    figures = {way: read_data("links.toml")[way] for way in ("host_copy", "network")}
    assert len(cluster.links) == 4 * 3
    for link in cluster.links:
        way = "host_copy" if link.source[0] == link.target[0] else "network"
        assert link.bandwidth_bytes_per_s == figures[way]["bandwidth_bytes_per_s"]["value"]


def test_a_ray_of_this_host_finds_what_this_host_has(ray, plugin_name):
    cluster = gx.discover(ray=True)
    workers = {worker.name.partition("/")[2]: worker for worker in cluster.workers}
    assert {"cpu", plugin_name} <= set(workers)
    assert all(worker.host == "" for worker in cluster.workers)
    found = {b.name.partition("/")[2]: b for b in cluster.backends}
    assert found[plugin_name].capabilities.donation
    assert found["cpu"].capabilities.callbacks
    assert {mesh.worker for mesh in cluster.meshes} == {w.name for w in cluster.workers}
