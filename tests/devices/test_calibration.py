"""Calibrations: files come back equal, cannot be untrue, and are refused where they are stale."""

import dataclasses
import json

import jax
import pytest

from gimlax.devices import (
    Calibration,
    Cluster,
    Link,
    MeasuredLink,
    MeshCalibration,
    MeshSpec,
    Sample,
    Slowdown,
)
from gimlax.devices.measuring.grids import microbenchmarks
from gimlax.devices.processor import processor_name
from gimlax.devices.samples import _NUM_DIMS
from gimlax.errors import SpecError
from gimlax.graph.operations import KINDS, ROUTED


def sample(**changes):
    figures = {
        "kind": "matmul",
        "dims": (1, 8, 64, 64),
        "dtype": "float32",
        "layout": "mk,kn",
        "flops": 65536.0,
        "num_bytes": 20480.0,
        "seconds": 1.2e-6,
    }
    return Sample(**(figures | changes))


MESH = MeshCalibration(
    mesh="a",
    device_kind="cpu",
    num_devices=1,
    dispatch_s=5e-6,
    probe_s=4e-3,
    samples=(sample(), sample(kind="elementwise", dims=(64,))),
)
LINK = MeasuredLink(source="a", target="b", latency_s=1e-5, bandwidth_bytes_per_s=8e9, aliases=True)
CALIBRATION = Calibration(
    jax_version=jax.__version__,
    processor=processor_name(),
    date="2026-11-24",
    meshes=(MESH, dataclasses.replace(MESH, mesh="b", samples=MESH.samples[:1])),
    links=(LINK,),
    slowdowns=(Slowdown(meshes=("a", "b"), factor=1.7),),
)


ALONE = {"links": (), "slowdowns": ()}


def cluster(**changes):
    meshes = (
        MeshSpec(**({"name": "a", "device_kind": "cpu", "backend": "cpu"} | changes)),
        MeshSpec(name="b", device_kind="cpu"),
    )
    links = tuple(
        Link(source=s, target=t, latency_s=5e-5, bandwidth_bytes_per_s=1e9)
        for s, t in (("a", "b"), ("b", "a"))
    )
    return Cluster(meshes=meshes, links=links)


def test_a_file_is_read_back_to_an_equal_calibration(tmp_path):
    CALIBRATION.save(tmp_path / "calibration.json")
    assert Calibration.load(tmp_path / "calibration.json") == CALIBRATION
    bare = dataclasses.replace(CALIBRATION, links=(), slowdowns=())
    assert Calibration.from_json(bare.to_json()) == bare


def test_people_can_read_the_file():
    lines = CALIBRATION.to_json().splitlines()
    record = json.loads(CALIBRATION.to_json())
    assert record["schema_version"] == 1
    assert record["date"] == "2026-11-24"
    assert sum('"seconds"' in line for line in lines) == len(MESH.samples) + 1


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"jax_version": "0.1.2"}, rf"with JAX 0\.1\.2, this is {jax.__version__}"),
        ({"processor": "Another, 64 cores"}, r"measured on 'Another, 64 cores', this host has '"),
        (
            {"meshes": (dataclasses.replace(MESH, device_kind="TPU v4"),), **ALONE},
            "mesh 'a' was 1 x 'TPU v4', here it is 1 x 'cpu'",
        ),
        (
            {"meshes": (dataclasses.replace(MESH, num_devices=2),), **ALONE},
            "mesh 'a' was 2 x 'cpu', here it is 1 x 'cpu'",
        ),
        (
            {"meshes": (dataclasses.replace(MESH, mesh="tpu"),), **ALONE},
            "it knows meshes 'tpu', but the cluster has 'a', 'b'",
        ),
    ],
)
def test_a_stale_calibration_says_what_differs_and_what_to_do(changes, says):
    stale = dataclasses.replace(CALIBRATION, **changes)
    with pytest.raises(SpecError, match=rf"2026-11-24.*{says}.*run scripts/calibrate\.py again"):
        stale.check(cluster())


def test_everything_that_is_stale_is_told_at_once():
    stale = dataclasses.replace(CALIBRATION, jax_version="0.1.2", processor="Another")
    with pytest.raises(SpecError, match=r"JAX 0\.1\.2.*'Another'"):
        stale.check(cluster())


def test_a_calibration_of_these_meshes_is_taken():
    CALIBRATION.check(cluster())


def test_meshes_that_are_only_described_may_stand_elsewhere():
    dataclasses.replace(CALIBRATION, processor="Another").check(cluster(backend=""))


def test_measured_links_take_the_place_of_declared_ones():
    put = CALIBRATION.onto(cluster())
    assert put.link("a", "b").latency_s == LINK.latency_s
    assert put.link("a", "b").bandwidth_bytes_per_s == LINK.bandwidth_bytes_per_s
    assert put.link("b", "a") == cluster().link("b", "a")
    unlinked = dataclasses.replace(cluster(), links=())
    assert CALIBRATION.onto(unlinked) == unlinked


def test_meshes_whose_slowdown_was_not_measured_take_turns():
    assert CALIBRATION.slowdown(("a", "b")) == 1.7
    assert CALIBRATION.slowdown(("a", "b", "c")) == 1.7
    assert CALIBRATION.slowdown(("a", "c")) == 2.0


def hostile(change):
    """The file after a change of its record."""
    record = json.loads(CALIBRATION.to_json())
    change(record)
    return json.dumps(record)


def put(*path):
    """A change of a record: the last of `path` becomes the value at the keys before it."""

    def change(record):
        *keys, last, value = path
        for key in keys:
            record = record[key]
        record[last] = value

    return change


FIRST = ("meshes", 0, "samples", 0)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (put(*FIRST, "seconds", float("nan")), "NaN is not a number"),
        (put(*FIRST, "seconds", float("inf")), "Infinity is not a number"),
        (put(*FIRST, "seconds", -1.0), r"meshes\[0\].samples\[0\].*seconds is -1.0"),
        (put(*FIRST, "seconds", 0), "seconds is 0; give 1e-12 to 1000000.0"),
        (put(*FIRST, "seconds", "fast"), "seconds is 'fast'"),
        (put(*FIRST, "seconds", True), "seconds is True"),
        (
            put(*FIRST, "flops", 10**400),
            r"samples\[0\].flops is a huge number, not a finite number",
        ),
        (put(*FIRST, "num_bytes", -1), "num_bytes is -1"),
        (put(*FIRST, "dims", [1, 0, 4, 4]), r"dims\[1\] is 0; give 1 to "),
        (put(*FIRST, "dims", [1, 2.5]), r"dims\[1\] is 2.5"),
        (put(*FIRST, "dims", [2**70]), r"dims\[0\] is a huge number"),
        (put(*FIRST, "dims", []), r"dims is \(\)"),
        (put(*FIRST, "dims", None), "dims is None"),
        (put(*FIRST, "kind", ""), "kind is ''; give one of matmul, "),
        (put(*FIRST, "kind", "magic"), "kind is 'magic'; give one of matmul, attention"),
        (put(*FIRST, "dims", [1]), r"dims is \(1,\); give the 4 sizes of a matmul"),
        (put(*FIRST, "dims", [2**20] * 4), r"more elements than any device has"),
        (
            lambda r: r["meshes"][0]["samples"][1].update(kind="sweep", num_bytes=0),
            "num_bytes is 0, but a sweep goes over bytes",
        ),
        (put(*FIRST, "dtype", "floaty"), "dtype is 'floaty'; give a dtype of JAX"),
        (put(*FIRST, "dtype", "f4"), "dtype is 'f4'; give a dtype of JAX"),
        (put(*FIRST, "flops", 1e308), r"flops is 1e\+308; give 0 to 1e\+21"),
        (put(*FIRST, "num_bytes", 10**400), "num_bytes is a huge number"),
        (put(*FIRST, "seconds", 10**400), "seconds is a huge number"),
        (put(*FIRST, "seconds", 1e-320), "seconds is 1e-320; give 1e-12 to"),
        (put("meshes", 0, "dispatch_s", 10**400), "dispatch_s is a huge number"),
        (put("meshes", 0, "mesh", "a\x1b"), "mesh is 'a.x1b', which cannot be printed"),
        (put("processor", "x\ny"), r"processor is 'x\\ny', which cannot be printed"),
        (put("date", "x"), "date is 'x'; give year, month and day"),
        (put("links", 0, "target", "c"), "a link of 'a' and 'c', but no mesh 'c'; leave it out"),
        (put("slowdowns", 0, "meshes", ["c", "d"]), "a slowdown of .*, but no mesh 'c' and 'd'"),
        (put("slowdowns", 0, "meshes", [["a"], "b"]), r"slowdowns\[0\].meshes\[0\] is a list of 1"),
        (put("schema_version", True), "schema version True"),
        (put(*FIRST, "colour", "red"), r"samples\[0\].colour is not known"),
        (put("meshes", 0, "samples", {}), r"meshes\[0\].samples is an object of 0, not a list"),
        (put("meshes", 0, "probe_s", -4e-3), r"meshes\[0\].*probe_s is -0.004"),
        (put("meshes", 0, "num_devices", 0), "num_devices is 0"),
        (put("meshes", "cpu"), "meshes is 'cpu', not a list"),
        (put("meshes", 0, 7), r"meshes\[0\] is 7, not an object"),
        (put("links", 0, "bandwidth_bytes_per_s", 0), r"links\[0\].*bandwidth_bytes_per_s is 0"),
        (put("links", 0, "latency_s", -1e-6), "latency_s is -1e-06; give 0 to "),
        (put("links", 0, "aliases", "no"), "aliases is 'no', not true or false"),
        (put("slowdowns", 0, "meshes", ["a", "a"]), r"slowdowns\[0\].*name two"),
        (put("slowdowns", 0, "factor", 0), "factor is 0"),
        (put("schema_version", 2), "schema version 2, and this gimlax reads 1"),
        (put("jax_version", None), "jax_version is None"),
        (lambda record: record.pop("date"), "date is missing"),
        (lambda record: record["meshes"].append(record["meshes"][0]), "'a' is there 2 times"),
        (lambda record: record["links"].append(record["links"][0]), "'a' -> 'b' is there 2"),
    ],
)
def test_a_file_that_cannot_be_true_is_refused_with_its_place(change, says):
    with pytest.raises(SpecError, match=rf"^odd\.json.*{says}.*write it anew"):
        Calibration.from_json(hostile(change), name="odd.json")


@pytest.mark.parametrize("text", ["", "[]", "7", "{", "[" * 100_000, '{"schema_version": 1}'])
def test_what_is_no_calibration_at_all_is_refused(text):
    with pytest.raises(SpecError, match=r"scripts/calibrate\.py"):
        Calibration.from_json(text)


def test_a_key_comes_once():
    text = CALIBRATION.to_json().replace('"date":', '"date": "2026-11-23", "date":')
    with pytest.raises(SpecError, match="key 'date' comes twice"):
        Calibration.from_json(text)


def test_every_kind_that_is_measured_can_be_read():
    assert {b.kind for b in microbenchmarks()} <= set(_NUM_DIMS)
    assert set(KINDS) - {ROUTED} <= set(_NUM_DIMS)  # which is priced by what it consists of


def test_many_mistakes_are_counted_and_not_all_shown():
    record = json.loads(CALIBRATION.to_json())
    record["meshes"][0]["samples"] = [7] * 100
    with pytest.raises(SpecError, match=r"samples\[9\] is 7, not an object; and 90 more"):
        Calibration.from_json(json.dumps(record))


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(SpecError, match=r"absent\.json' cannot be read"):
        Calibration.load(tmp_path / "absent.json")
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SpecError, match=r"binary\.json' cannot be read"):
        Calibration.load(tmp_path / "binary.json")
    with (tmp_path / "huge.json").open("wb") as file:
        file.truncate(2**26 + 1)
    with pytest.raises(SpecError, match=r"huge\.json' has more than 64.0 MiB"):
        Calibration.load(tmp_path / "huge.json")
