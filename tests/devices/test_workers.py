"""Workers of a cluster: read, written, and what is wrong with one."""

import pytest

from gimlax.devices import Cluster, MeshSpec, WorkerSpec
from gimlax.errors import SpecError

TEXT = """
[[worker]]
name = "left"
platforms = "cpu"
flags = "--xla_force_host_platform_device_count=2"
cores = [0]

[[worker]]
name = "slice"
host = "10.0.0.7"
platforms = "tpu"
processes = 4

[[mesh]]
name = "a"
device_kind = "cpu"
backend = "cpu"
worker = "left"

[[mesh]]
name = "b"
device_kind = "cpu"
backend = "cpu"
"""


def test_a_cluster_file_describes_workers_and_reads_back():
    cluster = Cluster.from_toml(TEXT)
    assert cluster.workers[0] == WorkerSpec(
        name="left",
        platforms="cpu",
        flags="--xla_force_host_platform_device_count=2",
        cores=(0,),
    )
    assert cluster.workers[1].processes == 4
    assert cluster.mesh("a").worker == "left"
    assert Cluster.from_toml(cluster.to_toml()) == cluster


def test_workers_have_devices_of_their_own():
    """The same first device of the same backend, in three processes."""
    meshes = [
        MeshSpec(name=name, device_kind="cpu", backend="cpu", worker=name) for name in ("x", "y")
    ]
    here = MeshSpec(name="z", device_kind="cpu", backend="cpu")
    workers = tuple(WorkerSpec(name=name) for name in ("x", "y"))
    assert Cluster(meshes=(*meshes, here), workers=workers).workers == workers
    twice = MeshSpec(name="x2", device_kind="cpu", backend="cpu", worker="x")
    with pytest.raises(SpecError, match="'x' and 'x2' share device 0"):
        Cluster(meshes=(*meshes, twice), workers=workers)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('worker = "left"', 'worker = "rigth"', "'a' is on worker 'rigth', but there are 'left'"),
        ('backend = "cpu"\nworker', "worker", "'a' is on worker 'left' and names no backend"),
        ('name = "slice"', 'name = "left"', "worker 'left' is there 2 times"),
        ("processes = 4", "processes = 0", "processes is 0; give 1 to 4096"),
        ("cores = [0]", "cores = [0, 0]", r"its cores are \[0, 0\]"),
        ("cores = [0]", "cores = ['0']", r"cores is \['0'\]; give a list of whole numbers"),
        ("cores = [0]", "threads = 1", "unknown key 'threads'"),
        ('platforms = "tpu"', 'platforms = "t\\nu"', "its platforms has control characters"),
    ],
)
def test_what_is_wrong_with_a_worker_is_said(old, new, message):
    with pytest.raises(SpecError, match=message):
        Cluster.from_toml(TEXT.replace(old, new, 1))
