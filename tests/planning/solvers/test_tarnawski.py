"""The reader of published graphs takes what the format allows and names what it does not."""

import copy
import importlib.util
import json
from pathlib import Path

import pytest

from gimlax.errors import SpecError

SOURCE = Path(__file__).parents[3] / "benchmarks" / "instances" / "tarnawski.py"


@pytest.fixture(scope="module")
def tarnawski():
    spec = importlib.util.spec_from_file_location("tarnawski_instances", SOURCE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def found(tarnawski, folder):
    files = [(path, json.loads(path.read_text())) for path in sorted(folder.rglob("*.json"))]
    return [tarnawski.read(path, data) for path, data in files if tarnawski.recognises(data)]


def node(name, seconds, **changes):
    return {
        "id": name,
        "fpgaLatency": seconds,
        "cpuLatency": seconds * 10,
        "size": 1.0,
        "supportedOnFpga": 1,
        "isBackwardNode": 0,
    } | changes


GOOD = {
    "maxFPGAs": 2,
    "maxCPUs": 1,
    "maxSizePerFPGA": 8.0,
    "nodes": [node(7, 2.0), node(3, 3.0, colorClass=5), node(11, 0.5, colorClass=5)],
    "edges": [
        {"sourceId": 7, "destId": 3, "cost": 0.25},
        {"sourceId": 3, "destId": 11, "cost": 1.0},
    ],
}


def test_a_record_says_where_each_node_is_and_what_was_published(tarnawski, tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "small.json").write_text(json.dumps(GOOD))
    known = {"small": {"optimum": 3.75, "reference_seconds": 2.0}}
    optima = {"source": "by hand", "instances": known}
    (tmp_path / "deep" / "optima.json").write_text(json.dumps(optima))
    (tmp_path / "other.json").write_text("[1, 2]")
    (instance,) = found(tarnawski, tmp_path)
    record = json.loads(json.dumps(tarnawski.solve(instance, 5.0)))
    assert record["instance"] == "small" and record["proven"] and record["gap"] == 0
    assert record["objective"] == record["bound"] == 3.75
    assert record["published"] == {"optimum": 3.75, "seconds": 2.0, "source": "by hand"}
    held = [device["nodes"] for device in record["placement"]]
    assert sorted(held) == [[], [3, 11], [7]]
    assert max(device["load"] for device in record["placement"]) == 3.75


def test_figures_beside_an_instance_that_are_no_use_are_a_remark(tarnawski, tmp_path):
    (tmp_path / "small.json").write_text(json.dumps(GOOD))
    for text in ("{", "[]", '{"instances": {"small": {"optimum": "x"}}}', '{"instances": 5}'):
        (tmp_path / "optima.json").write_text(text)
        instance = tarnawski.read(tmp_path / "small.json", GOOD)
        record = tarnawski.solve(instance, 5.0)
        assert record["objective"] == 3.75 and record["published"] is None
        assert "optima.json" in record["remarks"][0]


def test_of_many_mistakes_a_few_are_told(tarnawski, tmp_path):
    nodes = [node(index, -1.0) for index in range(1000)]
    with pytest.raises(SpecError, match=r"nodes\[2\].*and 1995 more$") as caught:
        tarnawski.read(tmp_path / "bad.json", GOOD | {"nodes": nodes, "edges": []})
    assert len(str(caught.value)) < 1000


def test_what_fits_nowhere_is_an_error_in_its_record(tarnawski, tmp_path):
    data = GOOD | {"maxCPUs": 0, "maxSizePerFPGA": 1.5}
    (tmp_path / "tight.json").write_text(json.dumps(data))
    (instance,) = found(tarnawski, tmp_path)
    assert "bytes" in tarnawski.solve(instance, 5.0)["error"]


def changed(path, value):
    data = copy.deepcopy(GOOD)
    *way, last = path
    spot = data
    for key in way:
        spot = spot[key]
    spot[last] = value
    return data


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        (("maxFPGAs",), 1.5, "maxFPGAs: is 1.5"),
        (("maxCPUs",), -1, "maxCPUs: is -1"),
        (("maxFPGAs",), 10**9, "maxFPGAs: is 1000000000; give a whole number from 0 to 10000"),
        (("nodes", 0, "cpuLatency"), 10**400, r"nodes\[0\].cpuLatency: is 1000"),
        (("nodes", 0, "size"), True, r"nodes\[0\].size: is True"),
        (("edges", 0, "sourceId"), [7], r"edges\[0\].sourceId: \[7\] is the id of no node"),
        (("edges",), [3], "edges: is no list of records"),
        (("maxSizePerFPGA",), float("nan"), "maxSizePerFPGA: is nan"),
        (("nodes",), [], "nodes: there are none"),
        (("nodes",), 5, "nodes: is no list"),
        (("nodes", 1, "id"), 7, r"nodes\[1\].id: 7 is taken"),
        (("nodes", 1, "id"), "x", r"nodes\[1\].id: is 'x'"),
        (("nodes", 0, "fpgaLatency"), -2.0, r"nodes\[0\].fpgaLatency: is -2"),
        (("nodes", 0, "cpuLatency"), float("nan"), r"nodes\[0\].cpuLatency: is nan"),
        (("nodes", 2, "size"), float("inf"), r"nodes\[2\].size: is inf"),
        (("nodes", 2, "supportedOnFpga"), "yes", r"supportedOnFpga: is 'yes'"),
        (("nodes", 2, "colorClass"), 0.5, "colorClass: is 0.5"),
        (("edges", 0, "destId"), 99, r"edges\[0\].destId: 99 is the id of no node"),
        (("edges", 0, "cost"), None, r"edges\[0\].cost: is None"),
        (("edges", 1, "sourceId"), 7, r"edges\[1\].cost: is 1.0, but 0.25 on another edge"),
        (("edges", 1, "destId"), 7, "cycle"),
    ],
)
def test_wrong_files_are_named_with_key_and_reason(tarnawski, tmp_path, path, value, says):
    (tmp_path / "bad.json").write_text(json.dumps(changed(path, value)))
    with pytest.raises(SpecError, match=says) as caught:
        found(tarnawski, tmp_path)
    assert "bad.json" in str(caught.value)
