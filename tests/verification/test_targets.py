"""What meshes are compiled for: every table fits the catalogue, and what has none says so."""

import pytest

from gimlax.devices import MeshSpec, catalogue
from gimlax.errors import SpecError
from gimlax.verification import mesh_of, target_of
from gimlax.verification.targets import _read

KINDS = {kind.name: kind for kind in catalogue()}


def mesh(kind, count=1, **more):
    axes = (("data", 1), ("model", count))
    return MeshSpec(name="mesh", device_kind=kind, num_devices=count, axes=axes, **more)


@pytest.mark.parametrize("what", ["tpu", "gpu"])
def test_every_table_is_of_a_kind_with_a_card(what):
    tables = _read(what)[what]
    assert tables
    for table in tables:
        assert table["kind"] in KINDS
        assert target_of(mesh(table["kind"])).platform == {"tpu": "tpu", "gpu": "cuda"}[what]


@pytest.mark.parametrize("table", _read("tpu")["tpu"], ids=lambda table: table["kind"])
def test_every_slice_is_named_by_its_devices(table):
    for shape in table["shapes"]:
        found = mesh_of(f"{table['prefix']}:{shape}", "mesh")
        assert found.device_kind == table["kind"]
        target = target_of(mesh(found.device_kind, found.num_devices))
        assert target.topology == f"{table['prefix']}:{shape}" and not target.why_not


def test_parts_of_a_host_say_how_many_chips_it_has():
    assert dict(target_of(mesh("TPU v5e")).options) == {"chips_per_host_bounds": [1, 1, 1]}
    assert dict(target_of(mesh("TPU v6e", 2)).options) == {"chips_per_host_bounds": [1, 2, 1]}
    assert target_of(mesh("TPU v5e", 4)).options == ()


def test_a_number_of_chips_that_no_slice_has_is_said():
    found = target_of(mesh("TPU v5e", 3))
    assert "no slice of TPU v5e has 3 devices (1, 2, 4, 8" in found.why_not
    assert "no slice of TPU7x has 3 devices (2, 4, 8" in target_of(mesh("TPU7x", 3)).why_not


@pytest.mark.parametrize("gpu", _read("gpu")["gpu"], ids=lambda gpu: gpu["kind"])
def test_a_gpu_is_described_with_the_memory_of_its_card(gpu):
    text = dict(target_of(mesh(gpu["kind"])).options)["target_config"]
    assert f"device_memory_size: {gpu['memory_bytes']}" in text
    assert f"major: {gpu['capability'][0]} minor: {gpu['capability'][1]}" in text
    assert gpu["memory_bytes"] == pytest.approx(KINDS[gpu["kind"]].memory_bytes, rel=0.09)
    assert gpu["memory_bytes_per_s"] == pytest.approx(
        KINDS[gpu["kind"]].memory_bytes_per_s, rel=0.05
    )
    aliases = KINDS[gpu["kind"]].aliases
    assert not aliases or gpu["reports"] in aliases


def test_gpus_stand_in_hosts_of_eight():
    assert [target_of(mesh("L4", n)).topology for n in (1, 4, 8, 16)] == [
        "1x1x1",
        "1x1x4",
        "1x1x8",
        "1x2x8",
    ]


@pytest.mark.parametrize(
    ("kind", "platform"),
    [("MI300X", "rocm"), ("Gaudi 3", "xpu"), ("Trainium2", "neuron"), ("Groq LPU v1", "groq")],
)
def test_what_has_no_compiler_is_lowered_only(kind, platform):
    found = target_of(mesh(kind))
    assert found.platform == platform and found.why_not


def test_a_cpu_is_compiled_for_here_whatever_its_kind():
    for kind in ("cpu", "EPYC 9654"):
        assert target_of(mesh(kind)).platform == "cpu"


def test_a_kind_without_a_card_names_what_to_add():
    found = target_of(mesh("Abacus 2"))
    assert found.platform == "unknown" and "'Abacus 2' is not in the catalogue" in found.why_not


@pytest.mark.parametrize(
    ("topology", "kind", "count"),
    [
        ("v5e:2x2", "TPU v5e", 4),
        ("tpu7x:2x2x1", "TPU7x", 8),
        ("H100 SXM", "H100 SXM", 1),
        ("4 x H100 SXM", "H100 SXM", 4),
        ("2xNVIDIA L4", "L4", 2),
    ],
)
def test_a_topology_is_read_as_users_write_it(topology, kind, count):
    found = mesh_of(topology, "mesh")
    assert (found.device_kind, found.num_devices) == (kind, count)


@pytest.mark.parametrize(
    ("topology", "said"),
    [
        ("v9:2x2", "'v9' is no generation .* v4, v5e"),
        ("v5e:3x3", "no slice '3x3'; give one of 1x1, 1x2, 2x2"),
        ("H900", "device kind 'H900' is not known"),
        ("0 x H100 SXM", "num_devices is 0"),
        ("", "device kind '' is not known"),
    ],
)
def test_a_topology_that_does_not_exist_is_refused_by_name(topology, said):
    with pytest.raises(SpecError, match=said):
        mesh_of(topology, "mesh")
