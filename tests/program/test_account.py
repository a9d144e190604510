"""Timelines made by hand, whose cause of slowness is known, and what is told of them."""

import dataclasses
import random

import numpy as np
import pytest

from gimlax.devices import Cluster
from gimlax.errors import PlanError, SpecError
from gimlax.graph import Workload, trace
from gimlax.planning import Objective, plan
from gimlax.program import Account, Span, Timeline
from gimlax.program.accounting import overlap_s, united

CLUSTER = """
[[mesh]]
name = "a"
device_kind = "cpu"
host = "here"
shares = ["compute", "memory"]

[[mesh]]
name = "b"
device_kind = "cpu"
host = "here"
shares = ["compute", "memory"]

[[mesh]]
name = "far"
device_kind = "L4"

"""
LINK = '[[link]]\nsource = "{}"\ntarget = "{}"\nlatency_s = 1e-3\nbandwidth_bytes_per_s = 1e9\n'
HARDWARE = Cluster.from_toml(
    CLUSTER
    + "\n".join(LINK.format(s, t) for s in ("a", "b", "far") for t in ("a", "b", "far") if s != t)
)


def layers(params, x):
    for w in params:
        x = x @ w
    return x


PARAMS = [np.zeros((64, 64), np.float32)] * 4
TRACED = trace(layers, PARAMS, np.zeros((8, 64), np.float32))


def plan_on(*meshes, workload=TRACED):
    return plan(workload, HARDWARE, cuts=len(meshes), meshes=meshes)


def stage(found, number):
    """Predicted seconds, task and mesh of a stage."""
    phase = found.phases[0]
    return phase.stages[number].seconds, f"{phase.name}: stage {number}", found.route.meshes[number]


def run(found, passes=4, *, slower=None, pause_s=0.0):
    """Spans of passes one after another, as predicted, or slower: {(pass, place): seconds more}.

    Places are in the order of a pass: stage 0, its link, stage 1, and so on.
    """
    now, spans = 0.0, []
    name = found.phases[0].name
    for number in range(passes):
        places = []
        for k, mesh in enumerate(found.route.meshes):
            if k:
                track = f"{found.route.meshes[k - 1]} -> {mesh}"
                places.append((found.phases[0].transfers[k - 1].seconds, f"{name}: {track}", track))
            places.append(stage(found, k))
        for place, (seconds, task, track) in enumerate(places):
            seconds += (slower or {}).get((number, place), 0.0)
            spans.append(Span(mesh=track, task=task, start_s=now, end_s=now + seconds))
            now += seconds
        now += pause_s
    return Timeline(spans=tuple(spans))


def test_a_run_as_predicted_has_no_difference():
    found = plan_on("a", "far")
    account = run(found, passes=3).compare(found)
    assert [entry.what for entry in account.entries] == ["stage 0", "stage 1", "a -> far"]
    for entry in account.entries:
        assert entry.passes == 3
        assert entry.measured_s == pytest.approx(entry.predicted_s)
        assert entry.receiving_s == entry.shared_s == 0
    [link] = [use for use in account.uses if use.track == "a -> far"]
    assert link.copying_s == pytest.approx(3 * found.phases[0].transfers[0].seconds)
    assert account.sentence == "Nothing took much longer than predicted."


def test_a_pipeline_that_is_not_filled_is_said_to_be():
    found = plan_on("a", "b")
    spans, now = [], 0.0
    for _ in range(3):
        for k in range(2):
            seconds, task, mesh = stage(found, k)
            spans.append(Span(mesh=mesh, task=task, start_s=now, end_s=now + seconds))
            now += seconds
    sentence = Timeline(spans=tuple(spans)).compare(found).sentence
    assert "which has most to do, waited for others 48% of the time" in sentence
    assert "more passes in flight would fill" in sentence


@pytest.mark.parametrize(
    ("place", "beginning", "cause"),
    [
        (0, "Stage 0 on 'a' took ", "so calibrate"),
        (1, "Link 'a -> far' took ", "rests on what the cluster declares of it, so calibrate"),
        (2, "Stage 1 on 'far' took ", "so calibrate"),
    ],
)
def test_what_is_slow_in_every_pass_is_named(place, beginning, cause):
    found = plan_on("a", "far")
    account = run(found, slower={(n, place): 0.02 for n in range(4)}).compare(found)
    assert account.sentence.startswith(beginning)
    assert "times what was predicted: " in account.sentence
    assert account.sentence.endswith(f"{cause}.")
    worst = max(account.entries, key=lambda entry: entry.excess_s)
    assert worst.excess_s == pytest.approx(0.08)
    assert f" {worst.measured_s / worst.predicted_s:.2g} times" in account.sentence


def test_a_calibrated_stage_is_told_to_have_been_quicker():
    found = plan_on("a", "far")
    meshes = tuple(dataclasses.replace(mesh, basis="measured") for mesh in found.meshes)
    found = dataclasses.replace(found, meshes=meshes)
    sentence = run(found, slower={(n, 0): 0.02 for n in range(4)}).compare(found).sentence
    assert "it was quicker when it was measured" in sentence


def test_one_slow_pass_is_told_from_slow_passes():
    found = plan_on("a", "far")
    sentence = run(found, slower={(0, 2): 0.5}).compare(found).sentence
    assert sentence.startswith("Stage 1 on 'far' took ")
    assert "one pass alone took 500 ms" in sentence


def test_a_mesh_that_shares_the_host_is_blamed_when_it_ran_as_well():
    found = plan_on("a", "b")
    spans = []
    for n in range(4):
        for k, mesh in enumerate("ab"):
            task = stage(found, k)[1]
            spans.append(
                Span(mesh=mesh, task=task, start_s=n * 0.1, end_s=n * 0.1 + 0.1 - k * 0.02)
            )
    account = Timeline(spans=tuple(spans)).compare(found)
    assert account.sentence.startswith("Stage 0 on 'a' took 100 ms a pass")
    assert "for 80% of it 'b', which shares its host, ran as well" in account.sentence


def test_an_input_that_was_on_the_way_is_blamed():
    found = plan_on("a", "far")
    _, task, mesh = stage(found, 1)
    name = found.phases[0].name
    spans = [s for s in run(found).spans if s.mesh == "a"]
    for n in range(4):
        spans += [
            Span(mesh="a -> far", task=f"{name}: a -> far", start_s=n * 0.1, end_s=n * 0.1 + 0.08),
            Span(mesh=mesh, task=task, start_s=n * 0.1 + 0.001, end_s=n * 0.1 + 0.085),
        ]
    found = dataclasses.replace(
        found, phases=(_with_transfer(found.phases[0], 0.08),), latency_s=found.latency_s
    )
    account = Timeline(spans=tuple(spans)).compare(found)
    assert account.sentence.startswith("Stage 1 on 'far' took 84.0 ms a pass")
    assert account.sentence.endswith("for 79.0 ms of it its input was still on the way.")


def _with_transfer(phase, seconds):
    transfers = tuple(dataclasses.replace(t, seconds=seconds) for t in phase.transfers)
    return dataclasses.replace(phase, transfers=transfers)


def test_a_host_that_hands_over_nothing_is_named():
    found = plan_on("a", "far")
    account = run(found, pause_s=0.05).compare(found)
    assert account.sentence.startswith("Nothing was at work for 150 ms of ")
    assert [use.idle_s for use in account.uses] == pytest.approx([0.15] * 3)


def test_phases_are_told_apart():
    workload = Workload(
        {"prefill": TRACED, "decode": trace(layers, PARAMS, np.zeros((1, 64), np.float32))}
    )
    found = plan_on("a", "far", workload=workload)
    spans = (
        *run(found).spans,
        Span(mesh="far", task="decode: stage 1", start_s=1.0, end_s=3.0),
    )
    account = Timeline(spans=spans).compare(found)
    assert account.sentence.startswith("Stage 1 of 'decode' on 'far' took 2.00 s a pass")
    assert [e.passes for e in account.entries if e.phase == "decode"] == [1]
    assert "decode: stage 1" in str(account)


def test_it_prints_and_is_json_again():
    found = plan_on("a", "far")
    account = run(found, slower={(n, 1): 0.02 for n in range(4)}).compare(found)
    assert Account.from_json(account.to_json()) == account
    text = str(account)
    assert text.endswith(account.sentence)
    assert "predicted" in text and "receiving" in text and "idle" in text
    [line] = [line for line in text.splitlines() if line.startswith("a -> far  -")]
    assert "21.0 ms" in line


def test_another_plan_and_no_spans_are_refused():
    found = plan_on("a", "far")
    with pytest.raises(
        SpecError, match=r"has 'layers: a -> far' on 'a -> far', but the plan has only '"
    ):
        run(found).compare(plan_on("a", "b"))
    with pytest.raises(SpecError, match="no span that takes time"):
        Timeline(spans=()).compare(found)
    with pytest.raises(SpecError, match=r"timeline\.compare: plan is 'no plan'"):
        Timeline(spans=()).compare("no plan")
    with pytest.raises(SpecError, match="schema version"):
        Account.from_json('{"schema_version": 0}')


@pytest.mark.parametrize("seed", range(30))
def test_uses_add_up_and_equal_those_of_a_walk_over_moments(seed):
    rng = random.Random(seed)
    found = plan_on("a", "far", "b")
    pieces = []
    for track, task in (
        ("a", "layers: stage 0"),
        ("a -> far", "layers: a -> far"),
        ("far", "layers: stage 1"),
        ("far -> b", "layers: far -> b"),
        ("b", "layers: stage 2"),
    ):
        now = 0
        for _ in range(rng.randrange(1, 6)):
            start = now + rng.randrange(3)
            now = start + rng.randrange(1, 4)
            pieces.append((track, task, start, now))
    spans = tuple(Span(mesh=m, task=t, start_s=float(a), end_s=float(b)) for m, t, a, b in pieces)
    account = Timeline(spans=spans).compare(found)
    expected = {use.track: [0, 0, 0, 0] for use in account.uses}
    for moment in range(int(account.seconds)):
        active = {m for m, _, a, b in pieces if a <= moment < b}
        for track, sums in expected.items():
            if track in active:
                sums[1 if " -> " in track else 0] += 1
            elif any(other.endswith(f" -> {track}") for other in active):
                sums[1] += 1
            else:
                sums[2 if active else 3] += 1
    for use in account.uses:
        parts = [use.computing_s, use.copying_s, use.waiting_s, use.idle_s]
        assert parts == pytest.approx(expected[use.track])
        assert sum(parts) == pytest.approx(account.seconds)
    some, others = ([(a, b) for m, _, a, b in pieces if m == track] for track in ("a", "b"))
    shared = sum(
        any(a <= t < b for a, b in some) and any(a <= t < b for a, b in others) for t in range(100)
    )
    assert overlap_s(some, united(others)) == shared


def test_a_plan_with_replicas_is_refused():
    group = '[[group]]\nname = "l4"\ndevice_kind = "L4"\nnum_devices = 2\n'
    link = LINK.format("l4", "l4")
    found = plan(TRACED, Cluster.from_toml(group + link), objective=Objective(goal="throughput"))
    assert found.layout.branches
    with pytest.raises(PlanError, match="several routes"):
        run(plan_on("a", "far")).compare(found)
