"""The reader of layer placements takes what the format allows and names what it does not."""

import copy
import importlib
import sys
from pathlib import Path

import pytest

from gimlax.errors import SpecError

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"
GOOD = {
    "num_layers": 4,
    "machines": {
        "a": {"count": 2, "max_layers": 3, "tokens_per_s_by_layers": [9.0, 5.0, 3.0]},
        "b": {"count": 1, "tokens_per_s_by_layers": [4.0]},
    },
    "link": {"bandwidth_bytes_per_s": 1e9, "activation_bytes_per_token": 8192},
}


@pytest.fixture
def instances(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield importlib.import_module
    for name in [name for name in sys.modules if name.split(".")[0] == "instances"]:
        del sys.modules[name]


def changed(path, value):
    data = copy.deepcopy(GOOD)
    *outer, last = path
    inner = data
    for key in outer:
        inner = inner[key]
    if value is None:
        del inner[last]
    else:
        inner[last] = value
    return data


def test_a_good_instance_is_read_and_solved(instances):
    helix = instances("instances.helix")
    record = helix.solve(helix.read(Path("x.json"), GOOD), 5.0)
    assert record["objective"] == 5.0 and record["gap"] < 1e-6


def test_no_machine_holds_more_layers_than_it_may(instances):
    helix = instances("instances.helix")
    read = helix.read(Path("x.json"), changed(("machines", "a", "max_layers"), 2))
    assert len(read.problem.rates["a"]) == 2


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("num_layers",), None, "num_layers: is missing"),
        (("num_layers",), 0, "num_layers: is 0"),
        (("machines", "a", "count"), None, "machines.a.count: is missing"),
        (("machines", "a", "count"), 10**30, "machines.a.count: is a huge number"),
        (("machines", "a", "max_layers"), 0, "machines.a.max_layers: is 0"),
        (
            ("machines", "b", "tokens_per_s_by_layers"),
            [-1.0],
            r"tokens_per_s_by_layers\[0\]: is -1",
        ),
        (("machines", "b", "tokens_per_s_by_layers"), None, "tokens_per_s_by_layers: is missing"),
        (("machines", "b"), 3, "machines.b: is 3"),
        (("link", "bandwidth_bytes_per_s"), 0, "link_tokens_per_s is 0"),
    ],
)
def test_what_is_wrong_is_named_with_file_and_key(instances, path, value, said):
    with pytest.raises(SpecError, match=said) as error:
        instances("instances.helix").read(Path("x.json"), changed(path, value))
    assert "x.json" in str(error.value)


def test_random_instances_are_instances_with_room(instances):
    helix, drawn = instances("instances.helix"), instances("instances.random_helix")
    for seed in range(40):
        data = drawn.random_instance(seed)
        assert helix.recognises(data) and data == drawn.random_instance(seed)
        problem = helix.read(Path("x.json"), data).problem
        room = sum(n * len(problem.rates[kind]) for kind, n in problem.counts.items())
        assert room >= problem.num_layers and 3 <= len(problem.counts) <= 8
