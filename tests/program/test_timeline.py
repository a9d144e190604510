"""A timeline adds up and opens in a trace viewer."""

import json

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
