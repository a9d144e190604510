"""Tokens per second of a service: what the model says of layouts whose order is known."""

import numpy as np
import pytest

from gimlax.planning.solvers.decode_loop import serve
from gimlax.planning.solvers.decode_proposals import propose
from gimlax.planning.solvers.serving_problem import Held, ServingMachine, ServingProblem


def machine(count=4, *, prompt_ms=10.0, decode_ms=2.0, room=1e5, most=3):
    """One whose decodes take as long for one as for a hundred."""
    return ServingMachine(
        count=count,
        prompt_s=np.array([[0.0, 0.0], [1000.0, prompt_ms * 1e-3]]),
        decode_s=np.array([[0.0, decode_ms * 1e-3], [100.0, decode_ms * 1e-3]]),
        kv_token_layers=np.full(most, room),
        max_prompts=1,
        max_decodes=np.full(most, 100.0),
    )


def problem(**changes):
    figures = {
        "num_layers": 6,
        "machines": {"a": machine()},
        "latency_s": 1e-3,
        "token_s": 1e-6,
        "input_tokens": 500.0,
        "output_tokens": 100.0,
    }
    return ServingProblem(**(figures | changes))


def series(*parts):
    layout, first = [], 0
    for kind, num_layers, copies in parts:
        layout += [Held(first_layer=first, num_layers=num_layers, machine=kind)] * copies
        first += num_layers
    return layout


def test_an_unloaded_service_is_its_room_over_its_loop():
    quick = problem(machines={"a": machine(prompt_ms=1e-6, room=1e3)})
    served = serve(quick, series(("a", 3, 1), ("a", 3, 1)))
    in_flight = 0.8 * (1e3 / 3) / 600
    assert served.in_flight == pytest.approx(in_flight)
    loop_s = 6 * 2e-3 + 3 * 1e-3 + 2e-6
    assert served.tokens_per_s == pytest.approx(in_flight / loop_s, rel=0.1)


def test_the_smallest_pool_bounds_what_is_in_flight_and_replicas_widen_it():
    tight = problem(machines={"a": machine(), "b": machine(room=2e4)})
    one = serve(tight, series(("a", 3, 1), ("b", 3, 1)))
    two = serve(tight, series(("a", 3, 1), ("b", 3, 2)))
    assert two.in_flight == pytest.approx(2 * one.in_flight)
    assert one.in_flight == pytest.approx(0.8 * (2e4 / 3) / 600)


def test_decodes_pass_prompts_where_there_are_replicas():
    chain, wide = (
        serve(
            problem(machines={"a": machine(12, prompt_ms=60.0, room=room)}),
            series(*(("a", 1, copies),) * 6),
        )
        for room, copies in ((1e4, 1), (5e3, 2))
    )
    assert wide.in_flight == pytest.approx(chain.in_flight)
    assert wide.loop_s < chain.loop_s * 0.9


def test_slower_prompts_make_a_longer_loop():
    loops = [
        serve(
            problem(machines={"a": machine(prompt_ms=ms, room=3e4)}),
            series(("a", 3, 1), ("a", 3, 1)),
        ).loop_s
        for ms in (1.0, 10.0, 40.0, 80.0)
    ]
    assert loops == sorted(loops)


def test_a_rate_is_never_above_the_busiest_machine():
    full = problem(machines={"a": machine(room=1e9)})
    served = serve(full, series(("a", 3, 1), ("a", 3, 1)))
    assert served.tokens_per_s <= served.most_tokens_per_s
    work_s = 3 * (2e-3 / 100 + 5e-3 / 100)
    assert served.most_tokens_per_s == pytest.approx(1 / work_s)


def test_a_machine_may_be_entered_in_the_middle():
    overlap = [
        Held(first_layer=0, num_layers=3, machine="a"),
        Held(first_layer=2, num_layers=3, machine="a"),
        Held(first_layer=4, num_layers=2, machine="a"),
    ]
    served = serve(problem(), overlap)
    assert served.tokens_per_s > 0


def test_a_layer_without_holder_serves_nothing():
    assert serve(problem(), series(("a", 3, 1))).tokens_per_s == 0


def test_a_proposal_keeps_to_the_machines_and_is_no_worse_than_a_plain_chain():
    asked = problem(machines={"a": machine(3, room=3e4), "b": machine(4, prompt_ms=40.0, room=2e4)})
    layout = propose(asked)
    for kind, own in asked.machines.items():
        held = [h for h in layout if h.machine == kind]
        assert len(held) <= own.count and all(h.num_layers <= own.max_layers for h in held)
    plain = serve(asked, series(("a", 3, 1), ("a", 3, 1)))
    assert serve(asked, layout).tokens_per_s >= plain.tokens_per_s
    assert propose(asked) == layout
