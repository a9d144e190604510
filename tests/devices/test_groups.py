"""Groups: links that name them, and meshes made from their devices."""

import dataclasses
import math
import re

import hypothesis
import pytest
from hypothesis import strategies as st

from gimlax.devices import Cluster, Group, Link, MeshSpec, Tier
from gimlax.errors import SpecError

POOLS = """
[[mesh]]
name = "cpu"
device_kind = "cpu"
usd_per_hour = 0.5
[[group]]
name = "h100"
device_kind = "H100 SXM"
num_devices = 16
devices_per_host = 8
backend = "cuda"
[[group]]
name = "l4"
device_kind = "L4"
num_devices = 4
host = "rack2"
usd_per_hour = 0.75
memory_bytes = 20e9
[[link]]
source = "h100"
target = "h100"
latency_s = 1e-6
bandwidth_bytes_per_s = 400e9
[[link]]
source = "h100"
target = "l4"
latency_s = 1e-5
bandwidth_bytes_per_s = 10e9
[[link]]
source = "l4"
target = "cpu"
latency_s = 1e-4
bandwidth_bytes_per_s = 1e9
"""
CLUSTER = Cluster.from_toml(POOLS)
GROUP = CLUSTER.groups[0]


def test_groups_are_read_and_written():
    assert [group.name for group in CLUSTER.groups] == ["h100", "l4"]
    assert CLUSTER.group("h100").devices_per_host == 8
    assert CLUSTER.kind("h100").name == "H100 SXM"
    assert CLUSTER.memory_bytes("l4") == 20 * 10**9
    assert (CLUSTER.usd_per_hour("l4"), CLUSTER.usd_per_hour("cpu")) == (0.75, 0.5)
    assert CLUSTER.usd_per_hour("h100") == min(
        row.usd_per_hour for row in CLUSTER.kind("h100").prices if row.kind == "on_demand"
    )
    read = Cluster.from_toml(CLUSTER.to_toml())
    assert read == CLUSTER
    assert read.fingerprint() == CLUSTER.fingerprint()
    fewer = dataclasses.replace(GROUP, num_devices=8)
    other = dataclasses.replace(CLUSTER, groups=(fewer, CLUSTER.groups[1]))
    assert other.fingerprint() != CLUSTER.fingerprint()
    with pytest.raises(SpecError, match="group 'cpu' is not in the cluster, which has 'h100', 'l4"):
        CLUSTER.group("cpu")


def test_the_table_shows_groups():
    for part in ("h100", "H100 SXM", "16", "18.6 GiB"):
        assert part in str(CLUSTER)


def test_links_of_groups_hold_for_the_meshes_made_from_them():
    own = Link(source="h100/1", target="l4/0", latency_s=1.0, bandwidth_bytes_per_s=1.0)
    carved = CLUSTER.carve({"h100": [(1, 8), (1, 4)], "l4": [(1, 1)]})
    carved = dataclasses.replace(carved, links=(*carved.links, own))
    assert carved.link("h100/0", "h100/1").bandwidth_bytes_per_s == 400e9
    assert carved.link("h100/0", "h100/0").latency_s == 0
    link = carved.link("h100/0", "l4/0")
    assert (link.source, link.target, link.latency_s) == ("h100/0", "l4/0", 1e-5)
    assert carved.link("h100/1", "l4/0").latency_s == 1.0
    assert carved.link("l4/0", "cpu").latency_s == 1e-4
    assert carved.link("l4/0", "h100/0") is None
    assert Cluster.from_toml(carved.to_toml()) == carved


def test_meshes_are_made_from_the_devices_of_one_host_or_of_whole_ones():
    carved = CLUSTER.carve({"h100": [(1, 2), (2, 4), (1, 4)], "l4": [(4, 1)]})
    places = [(m.name, m.host, m.first_device, dict(m.axes)) for m in carved.meshes[1:]]
    assert places == [
        ("h100/0", "h100/1", 4, {"data": 1, "model": 2}),
        ("h100/1", "h100/0", 0, {"data": 2, "model": 4}),
        ("h100/2", "h100/1", 0, {"data": 1, "model": 4}),
        ("l4/0", "rack2", 0, {"data": 4, "model": 1}),
    ]
    assert [mesh.backend for mesh in carved.meshes] == ["", "cuda", "cuda", "cuda", ""]
    assert (carved.memory_bytes("l4/0"), carved.usd_per_hour("l4/0")) == (20 * 10**9, 0.75)
    (both,) = CLUSTER.carve({"h100": [(2, 8)]}).meshes[1:]
    assert (both.num_devices, both.host, both.first_device) == (16, "h100/0", 0)


@pytest.mark.parametrize(
    ("shapes", "said"),
    [
        ([(1, 8), (1, 8), (1, 1)], "mesh 2 of 1 devices does not fit: 0 of 16 devices are left"),
        ([(1, 5), (1, 5), (1, 5)], "mesh 2 of 5 devices does not fit: 6 of 16 devices are left, "),
        ([(1, 12)], "mesh 0 of 12 devices does not fit: 16 of 16 devices are left, at most 8"),
        ([(0, 4)], "mesh 0 of 0 devices does not fit"),
    ],
)
def test_meshes_that_the_devices_do_not_suffice_for_are_refused(shapes, said):
    with pytest.raises(SpecError, match=re.escape(f"group 'h100': {said}")):
        CLUSTER.carve({"h100": shapes})
    with pytest.raises(SpecError, match="'h100/0' is there 2 times"):
        CLUSTER.carve({"h100": [(1, 1)]}).carve({"h100": [(1, 1)]})


@st.composite
def carvings(draw):
    per_host = draw(st.sampled_from([1, 2, 4, 8, None]))
    num_devices = (per_host or 4) * draw(st.integers(1, 4)) + draw(st.integers(0, 3))
    sizes, left = [], num_devices
    while left:
        sizes.append(2 ** draw(st.integers(0, int(math.log2(left)))))
        left -= sizes[-1]
    group = Group(
        name="g", device_kind="L4", num_devices=num_devices, devices_per_host=per_host, backend="b"
    )
    return group, draw(st.permutations(sizes))


@hypothesis.settings(max_examples=200)
@hypothesis.given(carvings())
def test_no_device_is_in_two_meshes_and_none_reaches_over_the_edge_of_a_host(case):
    group, sizes = case
    per_host = min(group.devices_per_host or group.num_devices, group.num_devices)
    cluster = Cluster(meshes=(), groups=(group,))
    try:
        meshes = cluster.carve({"g": [(1, size) for size in sizes]}).meshes
    except SpecError:
        # Powers of two fill whole hosts; only what is left over can be too small for a mesh.
        hypothesis.assume(group.num_devices % per_host == 0 and per_host & (per_host - 1) == 0)
        raise
    taken = []
    for mesh in meshes:
        host = int(mesh.host.rpartition("/")[2] or 0) if "/" in mesh.host else 0
        first = host * per_host + mesh.first_device
        assert mesh.num_devices > per_host or mesh.first_device + mesh.num_devices <= per_host
        if mesh.num_devices <= per_host:
            taken += range(first, first + mesh.num_devices)
    assert len(taken) == len(set(taken))
    assert all(device < group.num_devices for device in taken)
    assert sum(mesh.num_devices for mesh in meshes) == group.num_devices


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"name": ""}, "its name is empty"),
        ({"name": "a\nb"}, "its name has control characters"),
        ({"name": "a -> b"}, "its name has ' -> '"),
        ({"num_devices": 0}, "num_devices is 0; give 1 to 1048576"),
        ({"num_devices": 10**12}, "num_devices is 1000000000000; give 1 to 1048576"),
        ({"devices_per_host": 0}, "devices_per_host is 0; give at least 1"),
        ({"usd_per_hour": -1.0}, "usd_per_hour is -1.0; give 0 or more"),
        ({"memory_bytes": 0}, "memory_bytes is 0; give 1 to 2**60"),
    ],
)
def test_a_group_that_cannot_be_is_refused(change, said):
    with pytest.raises(SpecError, match=re.escape(said)):
        dataclasses.replace(GROUP, **change)


def test_a_link_that_names_neither_mesh_nor_group_is_named():
    with pytest.raises(SpecError) as error:
        Cluster.from_toml(POOLS.replace('target = "cpu"', 'target = "gpu"'))
    assert "link 'l4' -> 'gpu': no mesh and no group is called 'gpu' (there are 'cpu', " in str(
        error.value
    )
    with pytest.raises(SpecError, match="'cpu' -> 'cpu': within a mesh it is free"):
        link = Link(source="cpu", target="cpu", latency_s=0.0, bandwidth_bytes_per_s=1.0)
        dataclasses.replace(CLUSTER, links=(link,))


def test_a_mesh_and_a_group_that_nothing_joins_are_named():
    alone = '[[mesh]]\nname = "island"\ndevice_kind = "cpu"\n[[group]]\nname = "atoll"\n'
    with pytest.raises(SpecError) as error:
        Cluster.from_toml(POOLS + alone + 'device_kind = "L4"\nnum_devices = 2\n')
    assert str(error.value).splitlines() == [
        "cluster: mesh 'island' cannot be reached: no link joins it with another, though others "
        "are joined; add its links or take it out",
        "cluster: group 'atoll' cannot be reached: no link joins it with another, though others "
        "are joined; add its links or take it out",
    ]
    within = '[[link]]\nsource = "atoll"\ntarget = "atoll"\nlatency_s = 0\n'
    pool = '[[group]]\nname = "atoll"\ndevice_kind = "L4"\nnum_devices = 2\n'
    pool += within + "bandwidth_bytes_per_s = 1\n"
    with pytest.raises(SpecError, match="group 'atoll' cannot be reached: no link joins it"):
        Cluster.from_toml(POOLS + pool)
    assert Cluster.from_toml(pool).links
    # Without links between any two there is still a choice among them.
    assert Cluster.from_toml(POOLS.partition("[[link]]")[0]).links == ()


def test_a_mesh_called_as_if_made_from_a_group_has_its_kind_and_its_devices():
    mesh = MeshSpec(name="h100/0", device_kind="L4")
    with pytest.raises(SpecError, match=r"'h100/0' is called as one of group 'h100'.*has 'L4'"):
        dataclasses.replace(CLUSTER, meshes=(*CLUSTER.meshes, mesh))
    many = MeshSpec(
        name="h100/0",
        device_kind="H100 SXM",
        num_devices=32,
        axes=(("data", 4), ("model", 8)),
    )
    with pytest.raises(SpecError, match="'h100' have 32 devices together, but the group has 16"):
        dataclasses.replace(CLUSTER, meshes=(*CLUSTER.meshes, many))


def test_a_name_is_of_one_mesh_or_one_group():
    with pytest.raises(SpecError, match="the name 'h100' is there 2 times; give each mesh and gr"):
        dataclasses.replace(CLUSTER, groups=(*CLUSTER.groups, GROUP))


def test_tiers_are_the_memories_that_are_known():
    meshes = [
        MeshSpec(name="gaudi", device_kind="Gaudi 3", host_memory_bytes=10**12),
        MeshSpec(name="l4", device_kind="L4", memory_bytes=7, host_memory_bytes=10**11),
        MeshSpec(name="tpu", device_kind="TPU v5e", host_memory_bytes=10**11),
        MeshSpec(name="groq", device_kind="Groq LPU v1"),
    ]
    cluster = Cluster(meshes=tuple(meshes))
    assert cluster.tiers("gaudi") == (
        Tier(name="on_chip", num_bytes=96 * 10**6, bytes_per_s=12.8e12),
        Tier(name="device", num_bytes=128 * 10**9, bytes_per_s=3.7e12),
        Tier(name="host", num_bytes=10**12, bytes_per_s=64e9),
    )
    assert [(tier.name, tier.num_bytes) for tier in cluster.tiers("l4")] == [
        ("device", 7),
        ("host", 10**11),
    ]
    # Nobody says how fast it is on the chip: not slower than beside it.
    assert cluster.tiers("tpu")[0].bytes_per_s == cluster.tiers("tpu")[1].bytes_per_s == 819e9
    assert len(cluster.tiers("tpu")) == 2
    on_chip, device = cluster.tiers("groq")
    assert (on_chip.num_bytes, on_chip.bytes_per_s) == (device.num_bytes, device.bytes_per_s)


def test_reading_a_large_cluster_looks_at_each_mesh_a_few_times(monkeypatch):
    num_meshes, looks = 300, []
    text = "".join(
        f'[[mesh]]\nname = "m{k}"\ndevice_kind = "L4"\n[[link]]\nsource = "m{k}"\n'
        f'target = "m{(k + 1) % num_meshes}"\nlatency_s = 0\nbandwidth_bytes_per_s = 1\n'
        for k in range(num_meshes)
    )
    hashed = MeshSpec.__getattribute__

    def counted(self, name):
        looks.append(name)
        return hashed(self, name)

    monkeypatch.setattr(MeshSpec, "__getattribute__", counted)
    cluster = Cluster.from_toml(text)
    assert len(looks) < 100 * num_meshes
    looks.clear()
    assert cluster.link("m7", "m8") is not None
    assert cluster.link("m7", "m9") is None
    assert len(looks) < 20
