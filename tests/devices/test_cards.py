"""Cards: what a vendor may write, and what is refused with file, key and reason."""

import datetime
import os
import re
import subprocess
import sys
from importlib import resources
from pathlib import Path

import hypothesis
import pytest
from hypothesis import strategies as st

import gimlax
from gimlax.devices import Interconnect, Price, catalogue, check_cards, show_kinds
from gimlax.devices.card_figures import UNITS, FigureReader
from gimlax.devices.cards import DTYPES, read_card, read_kind
from gimlax.devices.kinds import FIGURES
from gimlax.devices.prices import PRICE_KINDS
from gimlax.devices.tables import TableReader
from gimlax.errors import SpecError

TODAY = datetime.date(2026, 11, 24)
CARD = """
schema_version = 1
name = "Example 1"
vendor = "Example"
aliases = ["EXAMPLE-1"]
note = "a device that is not"
memory_bytes = { value = 32, unit = "GB", source = "data sheet, page 3", date = "2026-11" }
memory_bytes_per_s = { value = 2.039, unit = "TB/s", source = "page 3", date = "2026-11-24" }
on_chip_bytes = { value = 64, unit = "MiB", source = "page 4", date = "2026-11", note = "SRAM" }
on_chip_bytes_per_s = { value = 10e12, source = "page 4", date = "2026-11" }
host_link_bytes_per_s = { value = 128e9, direction = "both", source = "p", date = "2026-11" }
tdp_watts = { value = 0.7, unit = "kW", source = "page 5", date = "2026-11" }
idle_watts = { value = 60, source = "page 5", date = "2026-11" }

[peak_flops_per_s]
bfloat16 = { value = 200, unit = "TFLOP/s", source = "page 2, without sparsity", date = "2026-11" }
float8 = { value = 400, unit = "TFLOP/s", source = "page 2", date = "2026-11" }
float32 = { value = 50, unit = "TFLOP/s", source = "page 2", date = "2026-11" }

[interconnect]
name = "Link"
bytes_per_s = { value = 900e9, direction = "both", source = "page 6", date = "2026-11" }
num_devices = { value = 8, source = "page 6", date = "2026-11" }

[[price]]
provider = "Cloud"
region = "west"
kind = "on_demand"
usd_per_hour = 2.5
source = "price page"
date = "2026-11"

[[price]]
provider = "Cloud"
kind = "spot"
usd_per_hour = 1
source = "price page"
date = "2026-11"
"""


def read(text, today=TODAY):
    mistakes = []
    return read_card(text, "example.toml", mistakes, today=today), mistakes


def test_a_card_is_read_in_base_units_and_one_way():
    kind, mistakes = read(CARD)
    assert mistakes == []
    assert (kind.name, kind.vendor, kind.aliases) == ("Example 1", "Example", ("EXAMPLE-1",))
    assert (kind.memory_bytes, kind.memory_bytes_per_s) == (32 * 10**9, 2.039e12)
    assert (kind.on_chip_bytes, kind.on_chip_bytes_per_s) == (64 * 2**20, 1e13)
    assert isinstance(kind.memory_bytes, int) and isinstance(kind.on_chip_bytes, int)
    assert kind.host_link_bytes_per_s == 64e9
    assert (kind.tdp_watts, kind.idle_watts) == (700.0, 60.0)
    assert kind.peak("bfloat16") == 200e12
    assert kind.interconnect == Interconnect(name="Link", bytes_per_s=450e9, num_devices=8)
    assert kind.prices[0] == Price(
        provider="Cloud",
        region="west",
        kind="on_demand",
        usd_per_hour=2.5,
        source="price page",
        date="2026-11",
    )
    assert (kind.prices[1].region, kind.usd_per_hour) == ("", 2.5)
    assert kind.figure_source("memory_bytes") == "data sheet, page 3, 2026-11"
    assert kind.figure_source("interconnect.bytes_per_s") == "page 6, 2026-11"
    assert kind.figure_source("float64") == "no source given"
    assert dict(kind.notes) == {"on_chip_bytes": "SRAM", "": "a device that is not"}


def test_what_is_not_known_is_left_out():
    needed = [line for line in CARD.splitlines() if not re.match(r"on_chip|host|tdp|idle", line)]
    kind, mistakes = read("\n".join(needed).partition("[interconnect]")[0])
    assert mistakes == []
    for figure in ("on_chip_bytes", "on_chip_bytes_per_s", "host_link_bytes_per_s", "tdp_watts"):
        assert getattr(kind, figure) is None
    assert kind.idle_watts is kind.interconnect is kind.usd_per_hour is None
    assert kind.prices == ()


MISTAKES = [
    ("value = 32,", "value = -32,", "memory_bytes: value is -32; give a positive, finite figure"),
    ("value = 32,", "value = 0,", "memory_bytes: value is 0; give a positive, finite figure"),
    ("value = 32,", "value = nan,", "memory_bytes: value is nan; give a positive, finite"),
    ("value = 32,", "value = inf,", "memory_bytes: value is inf; give a positive, finite"),
    ("value = 32,", "value = 1e300,", "memory_bytes: value is 1e+300; give a positive, finite"),
    ("value = 32,", f"value = 1{'0' * 400},", "memory_bytes: value is 1000"),
    ("value = 32,", 'value = "32",', "memory_bytes: value is '32'; give a number"),
    ("value = 32,", "value = true,", "memory_bytes: value is True; give a number"),
    ("value = 32,", "", "memory_bytes: value is missing; give a number"),
    ('"GB", source', '"Gbit", source', "memory_bytes: unit is 'Gbit', which is not known; give"),
    ('"TFLOP/s", source = "page 2,', '"TOPS", source = "', "bfloat16: unit is 'TOPS', which is"),
    ('"kW"', '"hp"', "tdp_watts: unit is 'hp', which is not known; give one of W, kW"),
    ('source = "data sheet, page 3", ', "", "memory_bytes: source is missing; give a string"),
    ('"data sheet, page 3"', '" "', "memory_bytes: source is empty; say where the figure is"),
    (', date = "2026-11-24"', "", "memory_bytes_per_s: date is missing; give a string"),
    ("2026-11-24", "24.11.2026", "date is '24.11.2026'; give year and month or day: '2026-11'"),
    ("2026-11-24", "2026-13", "memory_bytes_per_s: date is '2026-13'; give year and month"),
    ("2026-11-24", "unknown", "memory_bytes_per_s: date is 'unknown'; give year and month"),
    ("2026-11-24", "2026-11-25", "date is '2026-11-25', which is still to come; give when"),
    ('direction = "both", source = "p"', 'source = "p"', "host_link_bytes_per_s: direction is mis"),
    (
        'direction = "both", source = "page 6"',
        'source = "page 6"',
        "bytes_per_s: direction is mis",
    ),
    ('"both", source = "page 6"', '"up", source = "page 6"', "direction is 'up'; give 'one_way'"),
    ("value = 8,", "value = 1,", "interconnect 'Link': num_devices is 1; give at least 2"),
    ('name = "Link"\n', "", "interconnect: name is missing; give a string"),
    ("[interconnect]", "[interlink]", "unknown key 'interlink'; known are aliases"),
    ("memory_bytes =", "memory_gb =", "memory_bytes is missing; give a table"),
    ("memory_bytes =", "memory_gb =", "unknown key 'memory_gb'; known are"),
    ("bfloat16 =", "bf16 =", "peak_flops_per_s: unknown dtype 'bf16'; known are float64, "),
    ("float32 =", "float64 =", "peak_flops_per_s: float32 is missing; give the rate"),
    ("value = 400", "value = 200", "float8 is 2e+14 FLOP/s, 1 times bfloat16 (2e+14); dense"),
    ("value = 400", "value = 800", "float8 is 8e+14 FLOP/s, 4 times bfloat16 (2e+14); dense"),
    ("without sparsity", "with sparsity", "bfloat16: its source says 'with sparsity'; give"),
    ("without sparsity", "2:4 sparsity", "bfloat16: its source says '2:4'; give the dense peak"),
    ("without sparsity", "no date; sparse", "bfloat16: its source says 'sparse'; give the dense"),
    ("value = 32,", "value = 32e-9,", "memory_bytes is 32 bytes; give 1 MiB or more, with its"),
    ("value = 32,", "value = 1e23,", "memory_bytes is a huge number; give 1 to 2**60"),
    (
        'float32 = { value = 50, unit = "TFLOP/s", source = "page 2", date = "2026-11" }',
        "float32 = 5e13",
        'float32 is 50000000000000.0; give a table: { value = ..., unit = "FLOP/s", source = "...',
    ),
    ('source = "page 4", date', 'source = "a\\tb", date', "its on_chip_bytes is said as 'a"),
    ('"on_demand"', '"hourly"', "price of 'Cloud': kind is 'hourly'; give one of on_demand, spot"),
    ("usd_per_hour = 2.5", "usd_per_hour = -1", "price of 'Cloud': usd_per_hour is -1.0; give a"),
    ('kind = "spot"\n', "", "price number 2: kind is missing; give a string"),
    ('["EXAMPLE-1"]', '["A", "A"]', "aliases has 'A' twice; keep one"),
    ('["EXAMPLE-1"]', '"EXAMPLE-1"', "aliases is 'EXAMPLE-1'; give a list"),
    ('name = "Example 1"', 'name = "Example\\t1"', r"name is 'Example\t1'; give one that can be"),
    ("schema_version = 1", "", "schema_version is missing; give a whole number"),
    ("schema_version = 1", "schema_version = 2", "schema_version is 2; this gimlax reads 1"),
    ("schema_version = 1", "schema_version =", "not TOML: "),
    ("schema_version = 1", f"schema_version = {'1' * 5000}", "not TOML: "),
    ("schema_version = 1", "a = " + "[" * 100_000, "nested too deeply"),
    ("schema_version = 1", ".".join("a" * 60) + " = 1", "line 2 has more than 50 parts joined by"),
    ("value = 32,", f"value = 0x1{'0' * 6000},", "memory_bytes: value is far too long a number"),
    ("value = 32,", 'note = " ", value = 32,', "memory_bytes: note is blank; say something, or"),
    ("value = 8,", "value = 7.5,", "num_devices: value is 7.5; give a whole number of devices"),
    ("value = 60,", "value = 800,", "idle_watts is 800, more than tdp_watts (700); correct one"),
]


@pytest.mark.parametrize(("old", "new", "said"), MISTAKES, ids=[said for *_, said in MISTAKES])
def test_a_mistake_is_named_with_file_key_and_reason(old, new, said):
    assert old in CARD
    kind, mistakes = read(CARD.replace(old, new, 1))
    assert kind is None
    found = [mistake for mistake in mistakes if said in mistake]
    assert len(found) == 1, mistakes
    assert found[0].startswith("example.toml: ")
    assert len(found[0]) < 600


def test_many_unknown_keys_are_one_mistake():
    _, mistakes = read(CARD + "\n".join(f"[a{i}]" for i in range(1000)))
    (mistake,) = mistakes
    assert "unknown keys 'a0', 'a1', 'a2', 'a3', 'a4' and 995 more; known are" in mistake


def test_a_byte_order_mark_is_passed_over():
    assert read("\ufeff" + CARD)[1] == []


def test_all_mistakes_of_a_card_are_found_at_once():
    text = CARD
    for old, new in [
        ("value = 32,", "value = -32,"),
        ('"kW"', '"hp"'),
        ('direction = "both", source = "p"', 'source = "p"'),
        ("value = 400", "value = 800"),
        ("2026-11-24", "soon"),
        ('"on_demand"', '"hourly"'),
        ("value = 8,", "value = 1,"),
        ("idle_watts", "idle_w"),
    ]:
        assert old in text
        text = text.replace(old, new, 1)
    _, mistakes = read(text)
    said = "\n".join(mistakes)
    assert len(mistakes) == 8
    for part in ("-32", "'hp'", "host_link", "float8", "'soon'", "'hourly'", "'Link'", "'idle_w'"):
        assert part in said


@pytest.mark.parametrize(
    "said", ["no sparsity", "dense, not sparse", "without 2:4 structured sparsity", "non-sparse"]
)
def test_a_source_may_say_that_a_peak_is_dense(said):
    assert read(CARD.replace("without sparsity", said))[1] == []


def test_a_note_says_why_eight_bits_are_not_twice_as_fast():
    noted = 'value = 200, note = "operands are widened"'
    kind, mistakes = read(CARD.replace("value = 400", noted))
    assert mistakes == []
    assert dict(kind.notes)["float8"] == "operands are widened"


def test_days_to_come_are_believed_where_nobody_says_what_day_it_is():
    assert read(CARD.replace("2026-11-24", "2999-01-01"), today=None)[1] == []


def test_a_kind_without_sources_may_say_so_in_a_cluster_but_not_in_a_card():
    figure = {"value": 1.0, "source": "unknown", "date": "unknown"}
    table = {
        "name": "x",
        "vendor": "v",
        "memory_bytes": figure,
        "memory_bytes_per_s": figure,
        "peak_flops_per_s": dict.fromkeys(("float32", "bfloat16", "float8"), figure),
    }
    for needs_source, refused in ((False, 0), (True, 5)):
        mistakes = []
        reader = TableReader(table, "x", mistakes)
        read_kind(reader, FigureReader(today=None, needs_source=needs_source))
        assert sum("date is 'unknown'" in mistake for mistake in mistakes) == refused


def test_every_unit_of_the_table_is_read():
    figure = {"source": "s", "date": "2026-11"}
    for quantity, units in UNITS.items():
        for unit, factor in units.items():
            mistakes = []
            reader = TableReader({"f": {"value": 3, "unit": unit, **figure}}, "x", mistakes)
            figures = FigureReader(today=None, needs_source=True)
            assert figures.read(reader, "f", quantity=quantity) == 3 * factor
            assert mistakes == []


def written(tmp_path, **cards):
    paths = []
    for name, text in cards.items():
        paths.append(tmp_path / f"{name}.toml")
        paths[-1].write_text(text)
    return paths


def test_cards_are_checked_against_one_another_and_the_catalogue(tmp_path):
    (kind,) = check_cards(written(tmp_path, one=CARD), TODAY)
    assert kind.name == "Example 1"
    two = CARD.replace("Example 1", "Example 2")
    three = CARD.replace("Example 1", "NVIDIA H200").replace("EXAMPLE-1", "NVIDIA L4")
    four = CARD.replace("Example 1", "Example 4").replace("EXAMPLE-1", "cpu")
    with pytest.raises(SpecError) as error:
        check_cards(written(tmp_path, one=CARD, two=two, three=three), TODAY)
    said = str(error.value)
    assert "'Example 2': its alias 'EXAMPLE-1' also means 'Example 1'; leave it to one" in said
    assert "'L4': its alias 'NVIDIA L4' also means 'NVIDIA H200'" in said
    assert "'H200 SXM': its alias 'NVIDIA H200' also means 'NVIDIA H200'" in said
    assert check_cards(written(tmp_path, four=four), TODAY)  # all report the kind 'cpu' of any CPU
    with pytest.raises(SpecError, match="'Example 1' is there twice"):
        check_cards(written(tmp_path, one=CARD, again=CARD.replace("EXAMPLE-1", "E")), TODAY)


def test_all_files_are_checked_even_those_that_are_none(tmp_path):
    paths = written(tmp_path, bad=CARD.replace("value = 32,", "value = -1,"), worse="name = 3")
    binary, large = tmp_path / "binary.toml", tmp_path / "large.toml"
    binary.write_bytes(b"\xff\xfe")
    large.write_bytes(b"#" * (16 * 2**20 + 1))
    with pytest.raises(SpecError) as error:
        check_cards([*paths, tmp_path / "gone.toml", binary, large], TODAY)
    for said in (
        "bad.toml: memory_bytes: value is -1",
        "worse.toml: schema_version is missing",
        "worse.toml: name is 3; give a string",
        "gone.toml' cannot be read",
        "binary.toml' cannot be read",
        "large.toml' has more than 16.0 MiB",
    ):
        assert said in str(error.value)


def test_the_catalogue_has_the_devices_that_people_have():
    names = {kind.name for kind in catalogue()}
    assert names >= {
        *("A100 SXM 80GB", "H100 SXM", "H200 SXM", "B200 SXM", "L4", "T4", "L40S"),
        *("MI300X", "MI325X", "Gaudi 3", "Arc Pro B60"),
        *("TPU v4", "TPU v5e", "TPU v5p", "TPU v6e", "TPU7x"),
        *("Inferentia2", "Trainium2", "Cerebras WSE-3", "Groq LPU v1", "EPYC 9654", "cpu"),
    }
    for kind in catalogue():
        assert {dtype for dtype, _ in kind.peak_flops_per_s} <= set(DTYPES)


@pytest.mark.parametrize(
    ("name", "one_way"),
    [
        ("A100 SXM 80GB", 300e9),
        ("H100 SXM", 450e9),
        ("B200 SXM", 900e9),
        ("MI300X", 448e9),
        ("Gaudi 3", 600e9),
        ("TPU v5e", 200e9),
        ("TPU v5p", 600e9),
        ("TPU v6e", 400e9),
        ("TPU7x", 300e9),  # half of a chip's 600e9: a chip is two devices
    ],
)
def test_interconnects_of_the_catalogue_are_one_way_of_one_device(name, one_way):
    (kind,) = [kind for kind in catalogue() if kind.name == name]
    assert kind.interconnect.bytes_per_s == one_way


def test_the_example_for_vendors_is_a_card():
    readme = resources.files("gimlax.devices").joinpath("catalogue/kinds/README.md").read_text()
    (example,) = re.findall(r"```toml\n(.*?)```", readme, re.DOTALL)
    kind, mistakes = read(example)
    assert mistakes == []
    assert kind.interconnect.bytes_per_s == 400e9
    for word in (*FIGURES, *DTYPES, *PRICE_KINDS, *(u for units in UNITS.values() for u in units)):
        assert word in readme or word.removesuffix("/s") in readme or word == "devices", word


def test_the_table_of_kinds_has_a_line_for_each():
    lines = show_kinds(catalogue()).splitlines()
    assert len(lines) == 1 + len(catalogue())
    (h100,) = [line for line in lines if line.startswith("H100 SXM")]
    for part in ("NVIDIA", "74.5 GiB", "3.35 TB/s", "989 TFLOP/s", "700 W", "NVLink 4, 450 GB/s"):
        assert part in h100


@pytest.mark.parametrize(
    ("flags", "code", "said"),
    [
        (["--kinds"], 0, "Cerebras WSE-3"),
        (["--check=good.toml"], 0, "Example 1"),
        (["--check=good.toml,bad.toml"], 2, "bad.toml: tdp_watts: unit is 'hp', which is not kn"),
        (["--check="], 2, "no card is named, so none was checked"),
        (["--timeout_s=nan"], 2, "timeout_s is nan; give a positive number of seconds"),
        (["--kinds", "--cluster_out=c.toml"], 2, "--cluster_out needs devices"),
    ],
)
def test_the_script_prints_kinds_and_checks_cards(tmp_path, flags, code, said):
    written(tmp_path, good=CARD, bad=CARD.replace('"kW"', '"hp"'))
    root = Path(gimlax.__file__).parent.parent
    done = subprocess.run(
        [sys.executable, root / "scripts/devices.py", *flags],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == code, done.stderr
    assert said in done.stdout + done.stderr


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)
figures_of_any_kind = st.fixed_dictionaries(
    {},
    optional={
        key: anything | st.sampled_from([1, 2.5, "B", "one_way", "a page", "2026-11", "unknown"])
        for key in ("value", "unit", "direction", "source", "date", "note", "colour")
    },
)


@hypothesis.settings(max_examples=300)
@hypothesis.given(
    st.fixed_dictionaries(
        {},
        optional={
            **dict.fromkeys((*FIGURES, "name", "aliases"), anything | figures_of_any_kind),
            "peak_flops_per_s": anything
            | st.dictionaries(st.sampled_from(DTYPES), figures_of_any_kind),
            "interconnect": anything
            | st.fixed_dictionaries({"name": anything, "bytes_per_s": figures_of_any_kind}),
            "price": anything | st.lists(figures_of_any_kind, max_size=2),
        },
    )
)
def test_whatever_a_table_holds_it_is_a_kind_or_has_mistakes(table):
    mistakes = []
    kind = read_kind(
        TableReader(table, "x.toml", mistakes), FigureReader(today=TODAY, needs_source=True)
    )
    assert (kind is None) == bool(mistakes)
    assert all(mistake.startswith("x.toml: ") and len(mistake) < 600 for mistake in mistakes)
