"""A timeline adds up and opens in a trace viewer."""

import dataclasses
import json
from xml.etree import ElementTree

import pytest

from gimlax.errors import SpecError
from gimlax.program import Span, Timeline

TIMELINE = Timeline(
    spans=(
        Span(mesh="gpu", task="decode: stage 1", start_s=0.003, end_s=0.004),
        Span(mesh="cpu", task="decode: stage 0", start_s=0.0, end_s=0.002),
        Span(mesh="cpu -> gpu", task="decode: cpu -> gpu", start_s=0.002, end_s=0.003),
        Span(mesh="cpu", task="prefill: stage 0", start_s=0.004, end_s=0.009),
    )
)


def test_tracks_come_in_the_order_of_their_first_span():
    assert TIMELINE.tracks() == ("cpu", "cpu -> gpu", "gpu")


def test_busy_time_adds_up_by_track_and_task():
    assert TIMELINE.busy_s("cpu") == pytest.approx(0.007)
    assert TIMELINE.busy_s("cpu", "decode: stage 0") == pytest.approx(0.002)
    assert TIMELINE.busy_s("tpu") == 0
    assert TIMELINE.end_s == 0.009
    assert Timeline(spans=()).end_s == 0


def test_the_chrome_trace_names_one_thread_per_track(tmp_path):
    TIMELINE.save(tmp_path / "out.json")
    trace = json.loads((tmp_path / "out.json").read_text())
    events = trace["traceEvents"]
    names = {e["tid"]: e["args"]["name"] for e in events if e["name"] == "thread_name"}
    assert sorted(names.values()) == ["cpu", "cpu -> gpu", "gpu"]
    assert {e["tid"] for e in events if e["name"] == "thread_sort_index"} == set(names)
    assert [e["args"]["name"] for e in events if e["name"] == "process_name"] == ["gimlax"]
    spans = [e for e in events if e["ph"] == "X"]
    assert {e["ph"] for e in events} == {"M", "X"}
    assert [(names[e["tid"]], e["name"], e["cat"]) for e in spans] == [
        ("cpu", "decode: stage 0", "mesh"),
        ("cpu -> gpu", "decode: cpu -> gpu", "link"),
        ("gpu", "decode: stage 1", "mesh"),
        ("cpu", "prefill: stage 0", "mesh"),
    ]
    assert [e["ts"] for e in spans] == pytest.approx([0, 2000, 3000, 4000])  # µs
    assert [e["dur"] for e in spans] == pytest.approx([2000, 1000, 1000, 5000])
    assert {e["pid"] for e in events} == {1}


@pytest.mark.parametrize(("start_s", "end_s"), [(-1.0, 0.0), (2.0, 1.0), (float("nan"), 1.0)])
def test_a_span_that_runs_backwards_is_refused(start_s, end_s):
    with pytest.raises(SpecError, match=r"span 't' on 'm'"):
        Span(mesh="m", task="t", start_s=start_s, end_s=end_s)


def test_the_picture_has_a_row_for_each_track_and_a_box_for_each_span():
    picture = ElementTree.fromstring(TIMELINE.to_svg())
    space = {"svg": "http://www.w3.org/2000/svg"}
    rows = [text.text for text in picture.findall("svg:text", space)]
    assert rows[-3:] == ["cpu", "cpu -> gpu", "gpu"]
    assert rows[0] == "0 ms" and rows[6] == "9 ms"
    boxes = [
        box
        for box in picture.findall("svg:rect", space)
        if box.find("svg:title", space) is not None
    ]
    named = {box.find("svg:title", space).text: box for box in boxes}
    assert set(named) == {
        "decode: stage 0: 2 ms",
        "decode: stage 1: 1 ms",
        "decode: cpu -> gpu: 1 ms",
        "prefill: stage 0: 5 ms",
    }
    first, second = named["decode: stage 0: 2 ms"], named["decode: stage 1: 1 ms"]
    assert float(first.get("width")) == pytest.approx(2 * float(second.get("width")), abs=0.02)
    assert float(second.get("x")) > float(first.get("x")) and second.get("y") > first.get("y")
    assert len({box.get("fill") for box in named.values()}) == 4
    assert TIMELINE._repr_svg_() == TIMELINE.to_svg()
    later = [
        dataclasses.replace(span, start_s=span.start_s + 5, end_s=span.end_s + 5)
        for span in TIMELINE.spans
    ]
    assert Timeline(spans=tuple(later)).to_svg() == TIMELINE.to_svg()


def test_a_picture_of_nothing_and_of_very_much_is_small():
    assert ElementTree.fromstring(Timeline(spans=()).to_svg()).tag.endswith("svg")
    many = Timeline(
        spans=tuple(
            Span(mesh="<a>", task="t", start_s=i * 1e-6, end_s=i * 1e-6 + 5e-7)
            for i in range(100_000)
        )
    )
    assert many.to_svg().count("<title>") < 3000
