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
hosts = ["10.0.0.7", "10.0.0.8"]
platforms = "tpu"

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
    assert cluster.workers[0].places == ("",)
    assert cluster.workers[1].places == ("10.0.0.7", "10.0.0.8")
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
        (', "10.0.0.8"]', "]", "it has 1 hosts; give 2 to 4096, or one as host"),
        ("hosts =", 'host = "x"\nhosts =', "it has a host and hosts; give one of them"),
        ('"10.0.0.8"', "8", r"hosts is \['10.0.0.7', 8\]; give a list of addresses"),
        (
            'worker = "left"',
            'worker = "slice"',
            "mesh 'a' has 1 devices on the 2 hosts of worker 'slice'; give a multiple",
        ),
        (
            'backend = "cpu"\nworker = "left"',
            'backend = "cpu"\nworker = "slice"\nnum_devices = 2\n[[mesh]]\nname = "c"\n'
            'first_device = 2\ndevice_kind = "cpu"\nbackend = "cpu"\nworker = "slice"',
            "worker 'slice' of 2 hosts has 2 meshes",
        ),
        ("cores = [0]", "cores = [0, 0]", r"its cores are \[0, 0\]"),
        ("cores = [0]", "cores = ['0']", r"cores is \['0'\]; give a list of whole numbers"),
        ("cores = [0]", "threads = 1", "unknown key 'threads'"),
        ('platforms = "tpu"', 'platforms = "t\\nu"', "its platforms has control characters"),
    ],
)
def test_what_is_wrong_with_a_worker_is_said(old, new, message):
    with pytest.raises(SpecError, match=message):
        Cluster.from_toml(TEXT.replace(old, new, 1))
