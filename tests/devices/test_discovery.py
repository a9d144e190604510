"""What discovery reports: in this process, where JAX runs, and in fresh ones, where it does not."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from gimlax import devices
from gimlax.devices import Cluster
from gimlax.errors import SpecError

ROOT = Path(__file__).parent.parent.parent

REPORT = """
import json, warnings
warnings.simplefilter("error")
import jax
from gimlax import devices
from gimlax.errors import BackendError
try:
    cluster = devices.discover()
except BackendError as error:
    print(json.dumps({"error": str(error)}))
    raise SystemExit
again = devices.discover()
print(json.dumps({
    "meshes": [mesh.name for mesh in cluster.meshes],
    "available": [b.name for b in cluster.backends if b.available],
    "reasons": {b.name: b.reason for b in cluster.backends if not b.available},
    "callbacks": {b.name: b.capabilities.callbacks for b in cluster.backends if b.available},
    "default": [d.id for d in jax.devices()] == [d.id for d in jax.devices("cpu")],
    "platforms": jax.config.jax_platforms,
    "same": again == cluster,
}))
"""


def discover_afresh(tmp_path, **environ):
    """What `REPORT` prints in a new process."""
    paths = [str(tmp_path), str(ROOT), os.environ.get("PYTHONPATH", "")]
    kept = {k: v for k, v in os.environ.items() if k not in {"JAX_PLATFORMS", "XLA_FLAGS"}}
    done = subprocess.run(
        [sys.executable, "-c", REPORT],
        env={**kept, "PYTHONPATH": os.pathsep.join(filter(None, paths)), **environ},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_candidates_that_fail_or_abort_leave_a_reason_and_the_others_start(tmp_path, plugin_name):
    text = tmp_path / "text.so"
    text.write_text("no library")
    (tmp_path / "jax_plugins").mkdir()
    (tmp_path / "jax_plugins" / "aborting.py").write_text(
        "import os\ndef initialize():\n    os.abort()\n"
    )
    found = discover_afresh(tmp_path, PJRT_NAMES_AND_LIBRARY_PATHS=f"text:{text},gone:/gone.so")
    assert found["available"] == ["cpu", plugin_name] == found["meshes"]
    assert "text.so" in found["reasons"]["text"]
    assert "/gone.so, which is no file" in found["reasons"]["gone"]
    assert "SIGABRT while loading it" in found["reasons"]["jax_plugins.aborting"]
    assert found["callbacks"] == {"cpu": True, plugin_name: False}
    assert found["default"]
    assert found["platforms"] is None
    assert found["same"]


def test_jax_platforms_leaves_the_others_out(tmp_path, plugin_name):
    found = discover_afresh(tmp_path, JAX_PLATFORMS="cpu,nonsense")
    assert found["available"] == ["cpu"]
    assert found["reasons"]["nonsense"] == "named by JAX_PLATFORMS, but nothing here provides it"
    assert found["reasons"][plugin_name] == "left out by JAX_PLATFORMS=cpu,nonsense"


def test_no_backend_at_all_is_an_error_that_says_why(tmp_path):
    error = discover_afresh(tmp_path, JAX_PLATFORMS="nonsense")["error"]
    assert "nonsense: named by JAX_PLATFORMS, but nothing here provides it" in error


def test_one_mesh_a_device_named_after_its_backend(cluster, plugin_name):
    assert [m.name for m in cluster.meshes] == ["cpu:0", "cpu:1", plugin_name]
    assert [(m.backend, m.first_device) for m in cluster.meshes] == [
        ("cpu", 0),
        ("cpu", 1),
        (plugin_name, 0),
    ]
    assert {m.shape for m in cluster.meshes} == {(1, 1)}


def test_devices_on_host_memory_share_the_host(cluster, plugin_name):
    names = tuple(mesh.name for mesh in cluster.meshes)
    assert cluster.sharing(plugin_name, "compute") == names
    assert cluster.sharing(plugin_name, "memory") == names
    assert cluster.backend(plugin_name).capabilities.host_memory
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < cluster.memory_bytes(plugin_name) <= machine


def test_every_two_meshes_are_linked(cluster):
    pairs = {(link.source, link.target) for link in cluster.links}
    assert len(pairs) == len(cluster.links) == len(cluster.meshes) * (len(cluster.meshes) - 1)


def test_a_discovered_cluster_can_be_kept_in_a_file(cluster):
    assert Cluster.from_toml(cluster.to_toml()) == cluster
    assert cluster.fingerprint() == devices.discover().fingerprint()


def test_what_started_too_late_says_so(tmp_path, monkeypatch):
    jax.devices()
    (tmp_path / "lib.so").touch()
    monkeypatch.setenv("PJRT_NAMES_AND_LIBRARY_PATHS", f"late:{tmp_path}/lib.so")
    late = devices.discover().backend("late")
    assert not late.available
    assert "JAX was started without it; call gimlax.discover() before" in late.reason


def test_a_device_that_no_file_describes_is_reported_and_not_planned_for(monkeypatch):
    def unknown(device_kind):
        raise SpecError(f"device kind {device_kind!r} is not known; add a file")

    monkeypatch.setattr("gimlax.devices.discovery.load_kind", unknown)
    cluster = devices.discover()
    assert cluster.meshes == ()
    assert cluster.backend("cpu").available
    with pytest.raises(SpecError, match=r"'cpu:0' is not in the cluster \(cannot be planned for: "):
        cluster.mesh("cpu:0")


def test_capabilities_are_found_by_trying():
    found = devices.capabilities(jax.devices("cpu")[0])
    assert found.donation and found.cost_analysis and found.memory_analysis
    assert found.callbacks and found.serialization and found.host_memory
    assert not found.memory_stats
    assert {name for name, _ in found.how} == set(found.names())
    assert not found.grouped_products  # XLA on CPU does the work of all groups for every row
    assert "took 8.1 times one group" in dict(found.how)["grouped_products"]
    assert str(found).endswith("no memory_stats, no grouped_products")


def test_a_plugin_lacks_what_needs_jaxlib(plugin_name):
    found = devices.capabilities(jax.devices(plugin_name)[0])
    assert found.donation and found.memory_analysis and found.serialization
    assert not found.callbacks
    assert "tried: " in dict(found.how)["callbacks"]


@pytest.mark.parametrize("timeout_s", [float("nan"), 0, -1.0, float("inf"), "1", 10**400])
def test_a_time_limit_that_is_none_is_refused(timeout_s):
    with pytest.raises(SpecError, match=r"timeout_s is .*; give a positive number of seconds"):
        devices.discover(timeout_s=timeout_s)
