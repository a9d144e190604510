"""How much is known of a kind first hand: data that is checked, and shown wherever kinds are."""

import re
from pathlib import Path

import pytest

from gimlax.devices import TIERS, Cluster, catalogue, find_evidence, show_kinds
from gimlax.devices.evidence import read_evidence
from gimlax.errors import SpecError

GOOD = {"device_kind": "L4", "tier": "compiled for", "date": "2026-11-25", "what": "a block"}
README = Path(__file__).parent.parent.parent / "README.md"


def test_what_was_run_is_told_from_what_has_figures_only():
    assert find_evidence("cpu").tier == "ran"
    assert str(find_evidence("cpu")).startswith("ran (2026-")
    unknown = find_evidence("Example 1")
    assert str(unknown) == "figures only"
    assert unknown.rank < find_evidence("cpu").rank


def test_every_kind_has_a_tier_in_the_table_of_kinds():
    _, *lines = show_kinds(catalogue()).splitlines()
    for kind, line in zip(catalogue(), lines, strict=True):
        assert re.match(
            rf"{re.escape(kind.name)} .*  {re.escape(str(find_evidence(kind.name)))} ", line
        )


def test_a_cluster_shows_the_tiers_of_its_kinds():
    mesh = '[[mesh]]\nname = "a"\ndevice_kind = "cpu"\n'
    group = '[[group]]\nname = "b"\ndevice_kind = "L4"\nnum_devices = 2\n'
    cluster = Cluster.from_toml(mesh + group)
    assert str(find_evidence("cpu")) in str(cluster)
    assert str(find_evidence("L4")) in str(cluster)


def test_the_readme_says_of_every_kind_what_the_data_say():
    rows = dict(re.findall(r"^\| \*(.+?)\* \| (.+) \|$", README.read_text(), re.MULTILINE))
    assert sorted(rows) == sorted(TIERS)
    for tier, said in rows.items():
        kinds = [kind.name for kind in catalogue() if find_evidence(kind.name).tier == tier]
        expected = [
            f"{name} ({find_evidence(name).date})" if find_evidence(name).date else name
            for name in kinds
        ]
        assert said == (", ".join(expected) or "none yet")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"device_kind": "L44"}, r"evidence 0 \('L44'\) is of no kind of the catalogue"),
        ({"tier": "figures only"}, "has tier 'figures only'; give one of 'lowered only', "),
        ({"tier": "run"}, "has tier 'run'"),
        ({"date": "2026"}, "has date '2026'; give year-month-day"),
        ({"what": ""}, "does not say what was done"),
        ({"extra": "x"}, "give device_kind, tier, date, what as strings"),
        ({"date": 3}, "give device_kind, tier, date, what as strings"),
    ],
)
def test_evidence_that_is_none_is_refused(change, message):
    assert read_evidence([GOOD], ["L4"])[0].what == "a block"
    with pytest.raises(SpecError, match=message):
        read_evidence([GOOD | change], ["L4"])


def test_evidence_is_given_once():
    with pytest.raises(SpecError, match=r"evidence 1 \('L4'\) is there twice"):
        read_evidence([GOOD, GOOD], ["L4"])
