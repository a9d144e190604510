"""Clusters: what they answer, what they refuse, and that a file says the same."""

import dataclasses
import itertools
import math
import re
from pathlib import Path

import hypothesis
import pytest
from hypothesis import strategies as st

import gimlax.devices
from gimlax.devices import Backend, Cluster, DeviceKind, Group, Interconnect, Link, MeshSpec, Price
from gimlax.devices.consistency import overlapping
from gimlax.devices.naming import name_mistakes
from gimlax.errors import SpecError

OWN_KIND = DeviceKind(
    name='a "quoted" kind',
    vendor="nobody",
    memory_bytes=3 * 10**9,
    memory_bytes_per_s=1e9,
    peak_flops_per_s=(("float32", 1e12), ("float8", 3e12)),
    tdp_watts=300.5,
    on_chip_bytes=2**20,
    on_chip_bytes_per_s=1e13,
    host_link_bytes_per_s=32e9,
    interconnect=Interconnect(name="I", bytes_per_s=1e11, num_devices=8),
    prices=(
        Price(
            provider="P",
            region="",
            kind="on_demand",
            usd_per_hour=2.5,
            source="a page",
            date="2026-11",
        ),
    ),
    aliases=("Thing 1",),
    sources=tuple(
        (figure, "a page, dense, 2026-11")
        for figure in (
            *("float32", "float8", "memory_bytes", "memory_bytes_per_s"),
            *("on_chip_bytes", "on_chip_bytes_per_s", "host_link_bytes_per_s", "tdp_watts"),
            *("interconnect.bytes_per_s", "interconnect.num_devices"),
        )
    ),
    notes=(("float8", 'three times, "they say"'), ("", "a note of the whole")),
)
GPU = MeshSpec(name="gpu", device_kind="H100 SXM", num_devices=4, axes=(("data", 2), ("model", 2)))
CPU = MeshSpec(name="cpu", device_kind="cpu", host="here", shares=("compute", "memory"))
PLUGIN = dataclasses.replace(CPU, name="plugin", backend="plugin")
ELSEWHERE = dataclasses.replace(CPU, name="elsewhere", host="there")
ONLY_MEMORY = dataclasses.replace(CPU, name="only memory", shares=("memory",))
CLUSTER = Cluster(
    meshes=(GPU, CPU, PLUGIN, ELSEWHERE, ONLY_MEMORY),
    links=(Link(source="gpu", target="cpu", latency_s=1e-5, bandwidth_bytes_per_s=1e10),),
)


def test_kinds_come_from_the_catalogue_unless_given():
    assert [kind.name for kind in CLUSTER.kinds] == ["H100 SXM", "cpu"]
    assert CLUSTER.kind("gpu").peak("bfloat16") == 989e12
    slow = dataclasses.replace(CLUSTER.kind("cpu"), memory_bytes_per_s=1.0)
    given = Cluster(meshes=(CPU,), kinds=(slow, OWN_KIND))
    assert given.kinds == (slow,)


def test_memory_is_that_of_the_kind_unless_the_mesh_says_otherwise():
    assert CLUSTER.memory_bytes("gpu") == 80 * 10**9
    more = Cluster(meshes=(dataclasses.replace(GPU, memory_bytes=5),))
    assert more.memory_bytes("gpu") == 5


def test_links_have_a_direction_and_a_mesh_reaches_itself_for_nothing():
    assert CLUSTER.link("gpu", "cpu").transfer_s(10**9) == pytest.approx(0.10001)
    assert CLUSTER.link("cpu", "gpu") is None
    assert CLUSTER.link("cpu", "cpu").transfer_s(10**15) == 0
    with pytest.raises(SpecError, match="'nowhere' is not in the cluster, which has 'gpu', 'cpu'"):
        CLUSTER.link("gpu", "nowhere")


def test_what_is_shared_is_shared_with_those_of_the_host_that_list_it():
    assert CLUSTER.sharing("cpu", "compute") == ("cpu", "plugin")
    assert CLUSTER.sharing("cpu", "memory") == ("cpu", "plugin", "only memory")
    assert CLUSTER.sharing("only memory", "compute") == ("only memory",)
    assert CLUSTER.sharing("gpu", "memory") == ("gpu",)
    assert CLUSTER.sharing("elsewhere", "memory") == ("elsewhere",)
    with pytest.raises(SpecError, match="'disk'"):
        CLUSTER.sharing("cpu", "disk")


def test_an_unknown_mesh_of_a_known_backend_says_why_it_is_not_there():
    absent = Backend(name="tpu", available=False, reason="no libtpu")
    cluster = dataclasses.replace(CLUSTER, backends=(absent,))
    for name in ("tpu", "tpu:1"):
        with pytest.raises(SpecError, match=rf"'{name}' is not in the cluster \(no libtpu\)"):
            cluster.mesh(name)
    assert cluster.backend("tpu") is absent
    with pytest.raises(SpecError, match=r"'rocm' was not looked at; discover.* saw 'tpu'"):
        cluster.backend("rocm")


def test_the_fingerprint_knows_figures_and_no_order():
    same = Cluster(
        meshes=CLUSTER.meshes[::-1],
        links=CLUSTER.links,
        backends=(Backend(name="tpu", available=False, reason="no libtpu"),),
    )
    assert same.fingerprint() == CLUSTER.fingerprint()
    cpu = CLUSTER.kind("cpu")
    unsourced = dataclasses.replace(cpu, sources=(), notes=(("", "by hand"),))
    assert dataclasses.replace(CLUSTER, kinds=(unsourced,)).fingerprint() == CLUSTER.fingerprint()
    others = [
        dataclasses.replace(CLUSTER, links=()),
        dataclasses.replace(CLUSTER, meshes=CLUSTER.meshes[:-1]),
        dataclasses.replace(CLUSTER, kinds=(dataclasses.replace(cpu, memory_bytes_per_s=1.0),)),
        dataclasses.replace(CLUSTER, kinds=(dataclasses.replace(cpu, idle_watts=1.0),)),
        dataclasses.replace(CLUSTER, kinds=(dataclasses.replace(cpu, on_chip_bytes=1),)),
        dataclasses.replace(
            CLUSTER,
            kinds=(dataclasses.replace(cpu, interconnect=Interconnect(name="", bytes_per_s=1.0)),),
        ),
        dataclasses.replace(CLUSTER, kinds=(dataclasses.replace(cpu, prices=OWN_KIND.prices),)),
        dataclasses.replace(
            CLUSTER, meshes=(dataclasses.replace(GPU, usd_per_hour=1.0), *CLUSTER.meshes[1:])
        ),
        dataclasses.replace(CLUSTER, groups=(Group(name="g", device_kind="cpu", num_devices=2),)),
        dataclasses.replace(
            CLUSTER, meshes=(dataclasses.replace(GPU, memory_bytes=1), *CLUSTER.meshes[1:])
        ),
    ]
    prints = {cluster.fingerprint() for cluster in [CLUSTER, *others]}
    assert len(prints) == 1 + len(others)
    assert all(re.fullmatch("[0-9a-f]{64}", print_) for print_ in prints)


def test_the_table_names_all_that_is_there():
    shown = str(
        dataclasses.replace(
            CLUSTER, backends=(Backend(name="tpu", available=False, reason="no libtpu"),)
        )
    )
    for part in (
        "gpu",
        "2 x 2",
        "74.5 GiB",
        "989 TFLOP/s",
        "compute and memory of here",
        "gpu -> cpu",
        "10.0 us",
        "10.0 GB/s",
        "no libtpu",
    ):
        assert part in shown


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": ""}, "its name is empty"),
        ({"name": "a\tb"}, "its name has control characters"),
        ({"name": "a\x1b[2Jb"}, "its name has control characters"),
        ({"name": "a -> b"}, "its name has ' -> '"),
        ({"num_devices": 2**40}, "num_devices is 1099511627776; give 1 to 1048576"),
        ({"first_device": 2**40}, "first_device is 1099511627776; give an index"),
        ({"memory_bytes": 2**61}, "memory_bytes is 2305843009213693952; give 1 to 2**60"),
        ({"host_memory_bytes": 0}, "host_memory_bytes is 0; give 1 to 2**60"),
        ({"usd_per_hour": -0.5}, "usd_per_hour is -0.5; give 0 or more"),
        ({"usd_per_hour": math.nan}, "usd_per_hour is nan; give 0 or more"),
        ({"num_devices": 0}, "num_devices is 0; give 1 to"),
        ({"num_devices": 3}, "its axes are 2 x 2, but num_devices is 3"),
        ({"axes": (("data", -2), ("model", -2))}, "its axes are -2 x -2"),
        ({"axes": (("model", 2), ("data", 2))}, "its axes are 'model', 'data'; every mesh has"),
        ({"first_device": -1}, "first_device is -1"),
        ({"shares": ("disk",), "host": "h"}, "it shares 'disk'"),
        ({"shares": ("memory",)}, "names no host"),
        ({"memory_bytes": 0}, "memory_bytes is 0"),
    ],
)
def test_a_mesh_that_cannot_be_is_refused(change, message):
    with pytest.raises(SpecError, match=re.escape(message)):
        dataclasses.replace(GPU, **change)


def test_a_link_that_nothing_can_cross_is_refused():
    with pytest.raises(SpecError) as error:
        Link(source="gpu", target="tpu", latency_s=math.nan, bandwidth_bytes_per_s=0.0)
    assert str(error.value) == (
        "link 'gpu' -> 'tpu': latency is nan s; give 0 or more; bandwidth is 0 bytes/s, so nothing "
        "could cross it; give a positive rate or leave the link out"
    )


def test_a_cluster_reports_all_that_does_not_fit_together():
    link = Link(source="gpu", target="gone", latency_s=0.0, bandwidth_bytes_per_s=1.0)
    with pytest.raises(SpecError) as error:
        Cluster(
            meshes=(GPU, GPU, dataclasses.replace(GPU, name="odd", device_kind="Z80")),
            links=(link, link, dataclasses.replace(link, target="gpu")),
        )
    for part in (
        "the name 'gpu' is there 2 times",
        "mesh 'odd': device kind 'Z80' is not known",
        "link 'gpu' -> 'gone': no mesh and no group is called 'gone' (there are 'gpu', 'odd')",
        "link 'gpu' -> 'gone' is there more than once",
        "link 'gpu' -> 'gpu': within a mesh it is free",
    ):
        assert part in str(error.value)


def test_one_memory_has_one_size():
    with pytest.raises(SpecError, match="'cpu' and 'plugin' share the memory of 'here', but one"):
        Cluster(meshes=(CPU, dataclasses.replace(PLUGIN, memory_bytes=7)))


def test_a_name_means_one_kind():
    faster = dataclasses.replace(OWN_KIND, memory_bytes_per_s=9e9)
    twin = dataclasses.replace(OWN_KIND, name="twin")
    mesh = dataclasses.replace(GPU, device_kind="Thing 1")
    for kinds, said in (
        ((OWN_KIND, faster), "'a \"quoted\" kind' is there twice; keep one"),
        ((OWN_KIND, twin), "'twin': its alias 'Thing 1' also means 'a \"quoted\" kind'"),
    ):
        with pytest.raises(SpecError, match=f"device kind {re.escape(said)}"):
            Cluster(meshes=(mesh,), kinds=kinds)
    text = Cluster(meshes=(mesh,), kinds=(OWN_KIND,)).to_toml()
    block = text[text.index("[[kind]]") :]
    with pytest.raises(SpecError, match=r"device kind .* is there twice") as once:
        Cluster.from_toml(text + block)
    assert str(once.value).count("twice") == 1


def live(name, first_device, num_devices, host="", backend="cpu"):
    return MeshSpec(
        name=name,
        device_kind="cpu",
        num_devices=num_devices,
        backend=backend,
        first_device=first_device,
        host=host,
    )


def test_meshes_do_not_have_devices_in_common():
    m, n = live("m", 0, 4), live("n", 2, 4)
    pattern = "meshes 'm' and 'n' share devices 2 to 3 of backend 'cpu'"
    with pytest.raises(SpecError, match=pattern):
        Cluster(meshes=(n, m))
    blocks = "".join(
        f'[[mesh]]\nname = "{x.name}"\ndevice_kind = "cpu"\nbackend = "cpu"\n'
        f"num_devices = 4\nfirst_device = {x.first_device}\n"
        for x in (m, n)
    )
    with pytest.raises(SpecError, match=pattern) as once:
        Cluster.from_toml(blocks)
    assert str(once.value).count("share devices") == 1
    with pytest.raises(SpecError, match="'m' and 'o' share device 3 of"):
        Cluster(meshes=(m, live("n", 1, 2, "h"), live("o", 3, 1, "h")))
    Cluster(meshes=(m, live("n", 4, 4), live("o", 2, 4, backend="other")))
    Cluster(meshes=(live("m", 0, 4, "h0"), live("n", 2, 4, "h1")))


@hypothesis.given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(1, 4), st.sampled_from(["", "h", "g"])))
)
def test_common_devices_are_found_like_pair_by_pair(drawn):
    meshes = [live(str(k), *row) for k, row in enumerate(drawn)]
    apart = all(
        (a.host != b.host and a.host and b.host)
        or a.first_device + a.num_devices <= b.first_device
        or b.first_device + b.num_devices <= a.first_device
        for a, b in itertools.combinations(meshes, 2)
    )
    assert (not list(overlapping(meshes))) == apart


words = st.text(min_size=1, max_size=8).filter(lambda word: not list(name_mistakes(word)))


@st.composite
def clusters(draw):
    names = draw(st.lists(words, min_size=1, max_size=4, unique=True))
    meshes = []
    for place, name in enumerate(names):
        data, model = draw(st.integers(1, 4)), draw(st.integers(1, 4))
        host = draw(st.sampled_from(["", "here"]))
        shares = draw(st.sampled_from([(), ("compute",), ("compute", "memory")])) if host else ()
        backend = draw(st.sampled_from(["", "cpu", "ü"]))
        meshes.append(
            MeshSpec(
                name=name,
                device_kind=draw(st.sampled_from(["cpu", "Thing 1", "TPU v5 lite"]))
                if "memory" not in shares
                else "cpu",
                num_devices=data * model,
                axes=(("data", data), ("model", model)),
                backend=backend,
                first_device=draw(st.integers(0, 9)) + 32 * place if backend else 0,
                host=host,
                shares=shares,
                memory_bytes=None
                if "memory" in shares
                else draw(st.none() | st.integers(1, 2**60)),
                usd_per_hour=draw(st.none() | st.floats(0, 1e6)),
                host_memory_bytes=draw(st.none() | st.integers(1, 2**60)),
            )
        )
    pairs = list(itertools.permutations(names, 2))
    ends = draw(st.sets(st.sampled_from(pairs))) if pairs else set()
    if len({end for pair in ends for end in pair}) < len(names):
        ends = set()  # in a file that joins some, no mesh is left alone
    links = [
        Link(
            source=source,
            target=target,
            latency_s=draw(st.floats(0, 10)),
            bandwidth_bytes_per_s=draw(st.floats(1e-3, math.inf)),
        )
        for source, target in sorted(ends)
    ]
    return Cluster(meshes=tuple(meshes), links=tuple(links), kinds=(OWN_KIND,))


@hypothesis.given(clusters())
def test_a_file_says_the_same_as_its_cluster(cluster):
    read = Cluster.from_toml(cluster.to_toml())
    assert read == cluster
    assert read.fingerprint() == cluster.fingerprint()


def test_a_file_with_many_mistakes_reports_all(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(
        """
        speed = 3
        [[mesh]]
        name = "a"
        device_kind = "cpu"
        nun = 3
        [[mesh]]
        name = "b"
        device_kind = "Z80"
        num_devices = 4
        [[mesh]]
        device_kind = 3
        shares = "memory"
        [[mesh]]
        name = "c"
        device_kind = "cpu"
        num_devices = 4
        axes = { data = 2, modle = 2 }
        [[mesh]]
        name = "d"
        device_kind = "cpu"
        num_devices = 1.5
        first_device = true
        [[mesh]]
        name = "e"
        device_kind = "cpu"
        num_devices = 2
        axes = { data = 2, model = 2 }
        [[link]]
        source = "a"
        target = "z"
        latency_s = 1
        bandwidth_bytes_per_s = 0
        [[link]]
        source = "a"
        target = "y"
        latency_s = 1
        bandwidth_bytes_per_s = 1
        """
    )
    with pytest.raises(SpecError) as error:
        Cluster.load(path)
    lines = [line for line in str(error.value).splitlines() if "cannot be reached" not in line]
    assert all(line.startswith(f"{path}: ") for line in lines)
    expected = [
        "unknown key 'speed'; known are group, kind, link, mesh",
        "mesh 'a': unknown key 'nun'; known are axes, backend",
        "mesh 'b': device kind 'Z80' is not known",
        "mesh number 3: name is missing; give a string",
        "mesh number 3: device_kind is 3; give a string",
        "mesh number 3: shares is 'memory'; give a list",
        "mesh 'c': axes: unknown key 'modle'; known are data, model",
        "mesh 'd': num_devices is 1.5; give a whole number",
        "mesh 'd': first_device is True; give a whole number",
        "mesh 'e': its axes are 2 x 2, but num_devices is 2",
        "link 'a' -> 'z': bandwidth is 0 bytes/s",
        "link 'a' -> 'y': no mesh and no group is called 'y' (there are 'a', 'b', ",
    ]
    for part in expected:
        assert any(part in line for line in lines), part
    assert len(lines) == len(expected)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "cluster: it has no mesh; give at least one"),
        ("mesh = 3", "cluster: mesh is 3; give a list"),
        ("mesh = [3]", "cluster: mesh number 1 is 3; give a table"),
        ("[[mesh", "cluster: not TOML"),
    ],
)
def test_a_text_that_is_no_cluster_is_refused(text, message):
    with pytest.raises(SpecError, match=re.escape(message)):
        Cluster.from_toml(text)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(SpecError, match=r"cluster file '.*gone.toml' cannot be read"):
        Cluster.load(tmp_path / "gone.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(SpecError, match=r"cluster file '.*binary.toml' cannot be read"):
        Cluster.load(tmp_path / "binary.toml")


def test_the_example_of_the_readme_is_a_cluster():
    readme = Path(gimlax.devices.__file__).with_name("README.md").read_text()
    (example,) = re.findall(r"```toml\n(.*?)```", readme, re.DOTALL)
    cluster = Cluster.from_toml(example)
    assert [mesh.name for mesh in cluster.meshes] == ["gpu", "cpu", "accelerator"]
    assert [group.name for group in cluster.groups] == ["l4"]
    assert cluster.memory_bytes("cpu") == 768 * 10**9
    assert cluster.kind("accelerator").peak("bfloat16") == 200e12


def test_a_file_nested_beyond_reason_is_refused():
    with pytest.raises(SpecError, match="nested too deeply"):
        Cluster.from_toml("a = " + "[" * 100_000)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Cluster(meshes=[1]), "cluster: meshes[0] is 1; give a MeshSpec"),
        (lambda: Cluster(meshes=5), "cluster: meshes is 5; give a tuple of MeshSpecs"),
        (lambda: Cluster.from_toml(None), "from_toml: text is None; give a string"),
        (lambda: Cluster.from_toml(b""), "from_toml: text is b''; give a string"),
        (lambda: Cluster.load("a\0b"), r"cluster file 'a\x00b' cannot be read"),
        (lambda: Cluster.load(5), "cluster file '5' cannot be read"),
        (lambda: Cluster.load("/dev/zero"), "cluster file '/dev/zero' has more than 16.0 MiB"),
        (
            lambda: Link(source="a", target=1, latency_s="x", bandwidth_bytes_per_s=10**400),
            "link 'a' -> 1: target is 1; give a string; latency_s is 'x'; give a number; "
            "bandwidth_bytes_per_s is a huge number; give a number",
        ),
        (lambda: MeshSpec(name=5, device_kind="cpu"), "mesh 5: name is 5; give a string"),
        (lambda: dataclasses.replace(GPU, num_devices="4"), "num_devices is '4'; give a whole"),
        (lambda: dataclasses.replace(GPU, num_devices=2.5), "num_devices is 2.5; give a whole"),
        (lambda: dataclasses.replace(GPU, num_devices=True), "num_devices is True; give a whole"),
        (
            lambda: dataclasses.replace(GPU, axes={"data": 2}),
            "axes is {'data': 2}; give a tuple of tuples of a string and a whole number",
        ),
        (lambda: dataclasses.replace(GPU, axes=(("data", 2, 2),)), "axes[0] has 3 items; give 2"),
        (lambda: Group(name="g", device_kind="cpu", num_devices="8"), "num_devices is '8'"),
        (lambda: Interconnect(name=None, bytes_per_s="x"), "bytes_per_s is 'x'; give a number"),
        (lambda: dataclasses.replace(OWN_KIND, memory_bytes=1.5), "memory_bytes is 1.5; give a"),
        (lambda: dataclasses.replace(OWN_KIND.prices[0], usd_per_hour="2"), "usd_per_hour is '2'"),
    ],
)
def test_fields_of_another_kind_are_named(make, says):
    with pytest.raises(SpecError, match=re.escape(says)):
        make()


def test_lists_of_meshes_and_links_are_taken():
    assert Cluster(meshes=list(CLUSTER.meshes), links=list(CLUSTER.links)) == CLUSTER


def test_a_kind_with_a_mistake_is_told_once():
    text = Cluster(meshes=(dataclasses.replace(GPU, device_kind="Thing 1"),), kinds=(OWN_KIND,))
    for old, new in (('vendor = "nobody"', "vendor = 7"), ("value = 300.5", 'value = "a lot"')):
        toml = text.to_toml()
        assert old in toml
        with pytest.raises(SpecError) as refused:
            Cluster.from_toml(toml.replace(old, new))
        assert len(str(refused.value).splitlines()) == 1
        assert "is not known" not in str(refused.value)
