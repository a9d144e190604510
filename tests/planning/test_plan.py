"""A plan says what it chose, refuses what cannot be, and survives JSON."""

import json
import re
from dataclasses import replace

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from gimlax.devices import Cluster, Interconnect
from gimlax.errors import PlanError, SpecError
from gimlax.graph import chain, trace
from gimlax.planning import Holding, Hop, Layout, Objective, Plan, check_plan, pareto, plan
from gimlax.planning.cost import costs
from tests.planning.cases import cluster_of, kind, two_phases

CHAIN = chain(two_phases())
TWO = cluster_of([kind("a"), kind("b")])
TOTAL_BYTES = costs(CHAIN, TWO).problem.stage_bytes()[0, 0, -1]


def model_with_state_across_a_cut():
    """A counter that every layer reads and the last one updates."""

    def apply(params, state, x):
        for w in params:
            x = jax.nn.silu(x @ w) + state["count"].sum()
        return x, {"count": state["count"] + x.sum()}

    shape = jax.ShapeDtypeStruct((32, 32), np.float32)
    counter = jax.ShapeDtypeStruct((4,), np.float32)
    return chain(trace(apply, [shape] * 3, {"count": counter}, shape, carried={1: 1}))


def layers(number):
    def apply(params, x):
        for w in params:
            x = jax.nn.silu(x @ w)
        return x

    shape = jax.ShapeDtypeStruct((32, 32), np.float32)
    return chain(trace(apply, [shape] * number, shape))


SMALL = layers(3)


def test_one_mesh_is_the_plan_where_transfers_would_only_cost():
    best = plan(CHAIN, TWO)
    assert best.layout.route() == ((), ("a",))
    assert best.gap == pytest.approx(0, abs=1e-9)


def test_a_shared_host_gains_nothing_by_two_stages_and_two_machines_do():
    kinds = [kind("a"), kind("b")]
    goal = Objective(goal="throughput")
    # Arithmetic slow enough that a transfer and a dispatch are small beside it.
    kinds = [kind("a", flops_per_s=1e9), kind("b", flops_per_s=1e9)]
    shared = cluster_of(kinds, hosts=["h", "h"], shares=("compute", "memory"))
    alone = plan(CHAIN, shared, objective=goal)
    assert alone.layout.route().meshes == ("a",)
    both = plan(CHAIN, cluster_of(kinds), objective=goal)
    assert sorted(both.layout.route().meshes) == ["a", "b"]
    assert both.value < 0.8 * alone.value


def test_latency_uses_a_second_mesh_where_each_is_good_at_other_segments():
    memory = kind("memory", flops_per_s=1e9, bytes_per_s=1e13, memory_bytes=TOTAL_BYTES / 2)
    both = plan(CHAIN, cluster_of([memory, kind("compute", flops_per_s=1e13)]))
    assert "compute" in both.mesh_names
    assert both.bound <= both.value


@pytest.mark.parametrize("goal", ["latency", "throughput"])
def test_predictions_add_up_to_the_value(goal):
    chosen = plan(CHAIN, TWO, objective=Objective(goal=goal), meshes=("a", "b", "a"))
    calls = {phase.name: phase.calls for phase in chosen.phases}
    assert calls == {"prefill": 1, "decode": 10}
    if goal == "latency":
        value_s = sum(phase.calls * phase.seconds for phase in chosen.phases)
    else:
        stages = [h.mesh for h in chosen.layout.holdings]
        loads = {"a": 0.0, "b": 0.0}
        for phase in chosen.phases:
            for stage in phase.stages:
                loads[stages[stage.holding]] += phase.calls * stage.seconds
        assert {m.mesh: m.load_s for m in chosen.meshes} == pytest.approx(loads)
        value_s = max(loads.values())
    assert chosen.value == pytest.approx(value_s)


def test_the_plan_prints_and_explains_each_stage():
    chosen = plan(CHAIN, TWO, cuts=(3,), meshes=("b", "a"))
    text = str(chosen)
    first, last = CHAIN.names[2], CHAIN.names[3]
    assert re.search(rf"0 +\| b +\| .* \.\. {re.escape(first)} ", text)
    assert re.search(rf"1 +\| a +\| {re.escape(last)} \.\. ", text)
    assert "prefill" in text and "decode" in text and "transfers" in text
    exact = "; exact: nothing better exists for what was asked ("
    assert f"{exact}{chosen.gap:.1%} above the bound that needs no search, " in text
    assert exact in chosen.explain()
    lines = chosen.explain().splitlines()
    assert len([line for line in lines if line.startswith("stage ")]) == 2
    assert lines[0].startswith("stage 0 on 'b'") and "binds" in lines[0] and "to 'a'" in lines[0]


@pytest.mark.parametrize(
    ("method", "said"), [("stopped", "time ran out"), ("local", "only what lies near a good plan")]
)
def test_what_may_be_improved_says_why_and_by_how_much(method, said):
    chosen = replace(plan(CHAIN, TWO, cuts=(3,)), method=method)
    text = rf"; {method}: {said}.*; at most {chosen.gap:.1%} above the best possible, "
    assert re.search(text, str(chosen)) and re.search(text, chosen.explain())


def test_a_plan_survives_json_and_files(tmp_path):
    chosen = plan(CHAIN, TWO, meshes=("a", "b", "a"))
    assert Plan.from_json(chosen.to_json()) == chosen
    chosen.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == chosen
    assert plan(CHAIN, TWO, meshes=("a", "b", "a")).to_json() == chosen.to_json()
    check_plan(chosen, CHAIN, TWO)


def test_a_plan_for_another_model_or_cluster_says_what_differs():
    chosen = plan(CHAIN, TWO, meshes=("a", "b"))
    with pytest.raises(PlanError, match=r"another model: it has phases \['prefill', 'decode'\]"):
        check_plan(chosen, model_with_state_across_a_cut())
    other = cluster_of([kind("a"), kind("c")])
    with pytest.raises(PlanError, match="another cluster: mesh 'b' is not in this one"):
        check_plan(chosen, CHAIN, other)
    faster = cluster_of([kind("a"), kind("b", flops_per_s=9e12)])
    with pytest.raises(PlanError, match=r"another cluster: .*device figures differ"):
        check_plan(chosen, CHAIN, faster)
    with pytest.raises(PlanError, match="mesh 'c' is not used by the plan, which has 'a', 'b'"):
        chosen.spec("c")


@pytest.mark.parametrize(
    ("wishes", "message"),
    [
        ({"cuts": (99,)}, r"cut 99 is out of range: the model has \d+ segments"),
        ({"cuts": (0,)}, "cut 0 is out of range"),
        ({"cuts": (3, 2)}, r"cuts \(3, 2\) are not in ascending order"),
        ({"cuts": (2, 2)}, r"cuts \(2, 2\) are not in ascending order"),
        ({"cuts": (10**400,)}, "cut a huge number is out of range"),
        ({"cuts": 10**400}, "stages are asked for, but the model has 6"),
        ({"cuts": 0}, "cuts is 0, which is no number of stages"),
        ({"cuts": 3}, "3 stages are asked for, but the cluster has 2 meshes"),
        ({"cuts": 3, "meshes": ("a", "b")}, "cuts ask for 3 stages, but meshes names 2"),
        ({"cuts": (1,), "meshes": ("a",)}, "cuts ask for 2 stages, but meshes names 1"),
        ({"meshes": ("a", "z")}, "meshes names 'z', but the cluster has 'a', 'b'"),
        ({"meshes": ()}, "meshes is empty"),
        ({"meshes": ("a",) * 99}, "99 stages are asked for, but the model has"),
    ],
)
def test_wishes_that_cannot_be(wishes, message):
    with pytest.raises(PlanError, match=message):
        plan(CHAIN, TWO, **wishes)


CUTS = "give a whole number or a sequence of whole numbers"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"workload": 5}, "workload is 5; give a Traced, a Workload or a Chain"),
        ({"cluster": None}, "cluster is None; give a Cluster"),
        ({"objective": "latency"}, "objective is 'latency'; give an Objective"),
        ({"cuts": 1.5}, f"cuts is 1.5; {CUTS}"),
        ({"cuts": "2"}, f"cuts is '2'; {CUTS}"),
        ({"cuts": True}, f"cuts is True; {CUTS}"),
        ({"cuts": (1, 1.5)}, r"cuts[1] is 1.5; give a whole number"),
        ({"meshes": 5}, "meshes is 5; give a sequence of strings"),
        ({"meshes": "a"}, "meshes is 'a'; give a sequence of strings"),
        ({"meshes": ("a", 1)}, "meshes[1] is 1; give a string"),
        ({"calibration": 5}, "calibration is 5; give a Calibration, a string or a path"),
        ({"shardings": "x"}, "shardings is 'x'; give a dict from strings to PartitionSpecs"),
        ({"shardings": {"w": None}}, "shardings['w'] is None; give a PartitionSpec"),
        ({"tiers": "a"}, "tiers is 'a'; give a dict from strings to strings"),
        ({"time_limit_s": "1"}, "time_limit_s is '1'; give a number"),
        ({"time_limit_s": 10**400}, "time_limit_s is a huge number; give a number"),
        ({"cuts": "2", "meshes": 5}, f"cuts is '2'; {CUTS}; meshes is 5; give a sequence"),
    ],
)
@pytest.mark.parametrize("function", [plan, pareto])
def test_arguments_of_another_kind_are_named(function, given, message):
    if function is pareto and "objective" in given:
        given, message = {"goals": None}, "goals is None; give a sequence of strings"
    everything = {"workload": CHAIN, "cluster": TWO} | given
    with pytest.raises(SpecError, match=re.escape(f"gimlax.{function.__name__}: {message}")):
        function(**everything)


@pytest.mark.parametrize("spec", [PartitionSpec(5), PartitionSpec(("data", 5))])
def test_an_entry_of_a_spec_that_is_no_axis_is_named(spec):
    wide = replace(TWO.meshes[0], num_devices=2, axes=())
    joined = replace(TWO.kinds[0], interconnect=Interconnect(name="i", bytes_per_s=1e10))
    made = replace(TWO, meshes=(wide, TWO.meshes[1]), kinds=(joined, TWO.kinds[1]))
    path = "params['table']"
    with pytest.raises(
        SpecError, match=r"params\['table'\]: spec .* has .*; give None, an axis or"
    ):
        plan(CHAIN, made, shardings={path: spec})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"goal": "weighted", "weights": "latency"}, "weights is 'latency'; give a tuple of"),
        ({"goal": "weighted", "weights": ["latency"]}, "weights is ['latency']; give a tuple of"),
        ({"goal": "weighted", "weights": 5}, "weights is 5; give a tuple of tuples of a string"),
        ({"goal": "weighted", "weights": None}, "weights is None; give a tuple of tuples"),
        ({"goal": "weighted", "weights": {"usd": "1"}}, "weights[0][1] is '1'; give a number"),
        ({"max_latency_s": 10**400}, "max_latency_s is a huge number; give a number"),
        ({"max_latency_s": "1"}, "max_latency_s is '1'; give a number"),
        ({"max_latency_s": float("nan")}, "max_latency_s is nan; give a positive number"),
        ({"goal": 5}, "goal is 5; give a string"),
    ],
)
def test_objectives_of_another_kind_are_named(given, message):
    with pytest.raises(SpecError, match=re.escape(f"objective: {message}")):
        Objective(**given)


def test_what_is_no_plan_cannot_be_compared():
    with pytest.raises(SpecError, match=r"plan\.diff: other is None; give a Plan"):
        plan(CHAIN, TWO).diff(None)


def test_a_cut_that_splits_carried_state_names_its_leaf():
    with pytest.raises(PlanError, match=r"cut 1, .* splits carried .*count.* no cut is legal"):
        plan(model_with_state_across_a_cut(), TWO, cuts=(1,))
    with pytest.raises(PlanError, match=r"2 stages are asked for, but only 0 of the model's"):
        plan(model_with_state_across_a_cut(), TWO, cuts=2)


def test_a_model_that_fits_nowhere_says_how_much_is_missing():
    small = cluster_of([kind(name, memory_bytes=TOTAL_BYTES / 5) for name in "ab"])
    with pytest.raises(PlanError, match=r"fits nowhere: it needs .* largest mesh 'a' .* missing"):
        plan(CHAIN, small)


def test_a_stage_that_does_not_fit_names_stage_mesh_and_bytes():
    small = cluster_of([kind("a"), kind("b", memory_bytes=TOTAL_BYTES / 5)])
    pattern = r"stage 1 \(segments '.*' \.\. '.*'\) needs .* on mesh 'b', which has .* missing"
    with pytest.raises(PlanError, match=pattern):
        plan(CHAIN, small, cuts=(1,), meshes=("a", "b"))
    assert plan(CHAIN, small).mesh_names == ("a",)


def test_stages_that_fit_alone_but_not_together_are_told_together():
    shared = cluster_of(
        [kind(name, memory_bytes=TOTAL_BYTES * 0.8) for name in "ab"],
        hosts=["h", "h"],
        shares=("memory",),
    )
    with pytest.raises(PlanError, match=r"the stages on 'a' and 'b' need .* together, .* missing"):
        plan(CHAIN, shared)


def test_meshes_without_a_link_are_named():
    one_way = cluster_of([kind("a"), kind("b")], links=[("a", "b")])
    with pytest.raises(PlanError, match=r"mesh 'a' cannot be reached from 'b': .* no link"):
        plan(CHAIN, one_way, meshes=("b", "a"))
    apart = cluster_of([kind("a"), kind("b")], links=[])
    with pytest.raises(PlanError, match="no 2 of the 2 meshes are joined by links"):
        plan(CHAIN, apart, cuts=2)


def test_a_cluster_without_meshes_and_an_unknown_goal():
    with pytest.raises(SpecError, match="goal is 'speed'; give one of 'latency', 'throughput'"):
        Objective(goal="speed")
    with pytest.raises((PlanError, SpecError), match="no mesh"):
        plan(CHAIN, Cluster(meshes=(), kinds=()))


def test_a_pipeline_has_one_route_and_replicas_have_several():
    pipeline = Layout.pipeline((2,), ("a", "b"), 5)
    assert pipeline.route() == ((2,), ("a", "b"))
    replicas = Layout(
        holdings=tuple(Holding(mesh=m, first_segment=0, num_segments=5) for m in "ab"),
        hops=tuple(
            Hop(source=s, target=t, share=0.5) for k in (0, 1) for s, t in ((-1, k), (k, -1))
        ),
    )
    with pytest.raises(PlanError, match="4 hops lead along several routes"):
        replicas.route()


@pytest.mark.parametrize(
    ("holdings", "hops", "message"),
    [
        ([], [], "holds nothing"),
        ([(0, 5)], [(-1, 0, 1.0)], "shares of 0 instead of 1 arrive at the end"),
        ([(0, 5)], [(-1, 1, 1.0), (0, -1, 1.0)], "hop -1 -> 1 names a holding"),
        ([(0, 3), (4, 1)], [(-1, 0, 1.0), (0, 1, 1.0), (1, -1, 1.0)], "from segment 3 to 4"),
        ([(0, 5)], [(-1, 0, 1.0), (0, -1, 0.5)], "shares of 1 enter holding 0 and 0.5 leave it"),
        ([(0, 0)], [(-1, 0, 1.0), (0, -1, 1.0)], "segments 0 to 0"),
    ],
)
def test_a_layout_that_no_request_can_follow(holdings, hops, message):
    with pytest.raises(PlanError, match=re.escape(message)):
        Layout(
            holdings=tuple(Holding(mesh="a", first_segment=f, num_segments=n) for f, n in holdings),
            hops=tuple(Hop(source=s, target=t, share=x) for s, t, x in hops),
        )


def changed(**changes):
    data = json.loads(plan(CHAIN, TWO, meshes=("a", "b")).to_json())
    data.update(changes)
    return json.dumps(data)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[]", "holds a list of 0 instead of an object"),
        ("{}", "schema version None, and this gimlax reads 2"),
        ('{"a": 1, "a": 2}', "key 'a' comes twice"),
        ('{"schema_version": NaN}', "NaN is not a number"),
        ('{"schema_version": 2}', "objective is missing; layout is missing"),
        (changed(schema_version=1), "schema version 1, and this gimlax reads 2"),
        (changed(schema_version=True), "schema version True"),
        (changed(extra=1), "extra is not known"),
        (changed(value="fast"), "value is 'fast', not a finite number"),
        (changed(value=-1.0), "value is -1.0; give 0 or more"),
        (changed(value=int("9" * 400)), "value is a huge number, not a finite number"),
        (changed(segments="all"), "segments is 'all', not a list"),
        (changed(segments=["one"]), "its layout ends at segment"),
        (changed(specs=[]), "its specs are of []"),
        (changed(phases=[]), "it has no phase"),
        (changed(meshes=[{}]), "meshes[0].mesh is missing"),
        (changed(objective={"goal": "speed"}), "goal is 'speed'"),
        (changed(objective={"goal": None}), "objective.goal is None, not a string"),
        (changed(layout={"holdings": [], "hops": []}), "it holds nothing"),
        (changed(layout=7), "layout is 7, not an object"),
    ],
    ids=range(22),
)
def test_hostile_json_is_one_error(text, message):
    with pytest.raises(PlanError, match=re.escape(message)):
        Plan.from_json(text)


def tampered(plan, path, value):
    """The JSON of a plan with another value at a path of keys and indices."""
    data = json.loads(plan.to_json())
    *keys, last = path
    inner = data
    for key in keys:
        inner = inner[key]
    inner[last] = value
    return json.dumps(data)


RIVAL = {"cuts": [], "meshes": ["a"], "value": 1.0}


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (
            ("comparison", "next_best"),
            RIVAL | {"cuts": [999], "meshes": ["a", "b"]},
            r"its next best plan has cuts (999,) of ",
        ),
        (
            ("comparison", "next_best"),
            RIVAL | {"cuts": [1, 2], "meshes": ["a", "b"]},
            "its next best plan has 2 cuts and 2 meshes",
        ),
        (("comparison", "single_mesh"), RIVAL | {"meshes": []}, "best single mesh is on no mesh"),
        (
            ("comparison", "single_vendor"),
            RIVAL | {"value": -1},
            "comparison.single_vendor.value is -1; give 0 or more",
        ),
        (("comparison", "transfer_share"), 99.0, "transfer_share is 99.0; give 0 to 1"),
        (("comparison", "transfer_share"), -1, "transfer_share is -1; give 0 to 1"),
        (("comparison", "crowded"), [7], "says that stages [7] have no room, but has 2"),
        (("comparison", "break_even"), 0.5, "ends with links 0.5 times slower"),
        (("meshes", 0, "resident_bytes"), 10**400, "meshes[0].resident_bytes is a huge number"),
        (("meshes", 0, "parked_bytes"), 10**9, "mesh 'a' parks 1000000000 bytes, but has"),
        (("meshes", 0, "basis"), "rumour", "seconds of mesh 'a' rest on 'rumour', not one of card"),
        (("bound",), 1e9, "below the bound of 1e+09"),
        (
            ("phases", 0, "transfers", 0, "source"),
            "zzz",
            "phase 'prefill', hop 1 leads from 'zzz' to 'b', in its layout from 'a' to 'b'",
        ),
        (("phases", 0, "transfers", 0, "basis"), "", "hop 1 rests on '', not one of declared"),
        (("phases", 0, "name"), "x\x1b[2J", r"phases[0].name is 'x\x1b[2J', which cannot be"),
        (("segments", 0), "a\nb", r"segments[0] is 'a\nb', which cannot be printed on a line"),
        (("comparison", "vendor"), "\x07", "comparison.vendor is "),
        (("sources",), [{"device_kind": "a", "figure": "f", "source": "\r"}], "sources[0].source"),
        (("calibration",), "\t", "calibration is "),
    ],
    ids=range(19),
)
def test_a_plan_that_contradicts_itself_is_one_error(path, value, message):
    chosen = plan(CHAIN, TWO, meshes=("a", "b"))
    with pytest.raises(PlanError, match=re.escape(message)) as refused:
        Plan.from_json(tampered(chosen, path, value), name="plan 'x.json'")
    text = str(refused.value)
    assert text.startswith("plan 'x.json': ") and text.endswith("; make a new plan")
    assert text.count("plan: ") == 0 and text.count("make a new plan") == 1
    assert text.isprintable()


def leaves(data, path=()):
    """The paths of all values of a JSON, those of lists and objects too."""
    inner = data.items() if isinstance(data, dict) else enumerate(data)
    for key, value in inner:
        yield (*path, key)
        if isinstance(value, dict | list):
            yield from leaves(value, (*path, key))


@pytest.mark.parametrize(
    "value", [0, -1, 1e-320, 1e308, 10**400, 2**61, "", "\n", [], {}, None], ids=range(11)
)
def test_what_is_read_from_a_tampered_file_can_be_printed(value):
    chosen = plan(SMALL, TWO, meshes=("a", "b"), objective=Objective(max_latency_s=1e3))
    read = 0
    for path in leaves(json.loads(chosen.to_json())):
        try:
            again = Plan.from_json(tampered(chosen, path, value))
        except PlanError:
            continue
        read += 1
        assert str(again) and again.explain() and chosen.diff(again) and again.diff(chosen)
    assert read or value in ({}, -1, "\n", 10**400)


def test_keys_are_compared_in_one_pass():
    keys = ", ".join(f'"{k}": 0' for k in range(200_000))
    with pytest.raises(PlanError, match="key '0' comes twice"):
        Plan.from_json(f'{{{keys}, "0": 1}}')


def test_a_file_without_end_is_not_read_to_its_end(tmp_path):
    with pytest.raises(PlanError, match=r"plan '/dev/zero' has more than 64.0 MiB; give a saved"):
        Plan.load("/dev/zero")
    chosen = plan(CHAIN, TWO)
    with pytest.raises(PlanError, match=r"plan cannot be written to '.*nowhere/x.json'"):
        chosen.save(tmp_path / "nowhere" / "x.json")
    with pytest.raises(PlanError, match="plan is a NoneType, not a string of JSON"):
        Plan.from_json(None)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(PlanError, match=r"nowhere.json' cannot be read"):
        Plan.load(tmp_path / "nowhere.json")
