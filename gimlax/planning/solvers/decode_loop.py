"""Tokens per second of a language model served by machines that each hold an interval of layers.

The goal of `cover` says how many tokens could pass if batches were full. In service they seldom
are: what is in flight is bounded by the room for keys and values, and a request decodes its next
token only when the last one has been around. So, by Little's law,

    tokens/s = requests in flight / seconds of one decode loop,

where requests in flight fill the smallest pool on their way. A loop is a decode's way through the
layers at the batch that this rate leads to, with its hops, and with its wait behind prompts: a
decode that has caught up with a prompt follows it from machine to machine, until it is sent to
another replica. That wait is the mean over sampled ways (with a fixed seed) of one decode behind
the prompts that entered before it, which arrive at random and have exponential lengths. The rate is
on both sides, and bisection finds it. Good for ranking layouts, to be judged by simulation.
Units: seconds, tokens, bytes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gimlax.planning.problem import Array
from gimlax.planning.solvers.decode_ways import Ways, at
from gimlax.planning.solvers.serving_problem import Held, ServingProblem

__all__ = ["Served", "serve"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """What a layout is predicted to do.

    Attributes:
        tokens_per_s: decoded.
        in_flight: requests.
        loop_s: from one token of a request to the next.
        most_tokens_per_s: where the first machine would be always busy.
    """

    tokens_per_s: float
    in_flight: float
    loop_s: float
    most_tokens_per_s: float


NOTHING = Served(tokens_per_s=0.0, in_flight=0.0, loop_s=math.inf, most_tokens_per_s=0.0)


def serve(problem: ServingProblem, layout: Sequence[Held], *, num_samples: int = 64) -> Served:
    """The rate at which a layout serves, nothing if some layer is held by no machine."""
    layout = sorted(layout)
    rates = [_full_rate(problem, held) for held in layout]
    flow = _flows(problem, layout, rates)
    if flow is None:
        return NOTHING
    used = [index for index in range(len(layout)) if flow[index].any()]
    pools = [_pool_tokens(problem, layout[k]) / float(flow[k].cumsum().mean()) for k in used]
    per_request = problem.input_tokens + problem.output_tokens
    in_flight = min(pools) * problem.kv_share / per_request
    work = {k: float(flow[k].cumsum().sum()) for k in used}  # layers that a request has there
    most = min(rates[k] * layout[k].num_layers / work[k] for k in used)
    ways = Ways(problem, layout, rates, num_samples)

    def held(rate: float) -> float:
        """Requests in flight that this rate leads to."""
        layer_s, wait_s = [0.0] * len(layout), [0.0] * len(layout)
        for k in used:
            entered = float(flow[k].sum())
            busy = _decode_sweep(problem, layout[k], work[k] / entered, rate * entered)
            if busy is None:
                return math.inf
            layer_s[k], wait_s[k] = busy
        decode_s, prompt_s = ways.times_s(rate / problem.output_tokens, layer_s, wait_s)
        return rate * (decode_s + prompt_s / problem.output_tokens)

    low, high = 0.0, most
    for _ in range(16):
        middle = (low + high) / 2
        low, high = (middle, high) if held(middle) < in_flight else (low, middle)
    return Served(
        tokens_per_s=low,
        in_flight=in_flight,
        loop_s=in_flight / low if low else math.inf,
        most_tokens_per_s=most,
    )


def _pool_tokens(problem: ServingProblem, held: Held) -> float:
    """Tokens whose keys and values fit on a machine."""
    room = problem.machines[held.machine].kv_token_layers[held.num_layers - 1]
    return float(room) / held.num_layers


def _flows(
    problem: ServingProblem, layout: Sequence[Held], rates: Sequence[float]
) -> list[Array] | None:
    """For each machine the share of requests that enters it at each of its layers.

    A request goes to one of the machines that hold its next layer, in proportion to their rates,
    and leaves it after the last layer that it holds.
    """
    entering = np.zeros(problem.num_layers + 1)
    entering[0] = 1.0
    flow = [np.zeros(held.num_layers) for held in layout]
    for layer in range(problem.num_layers):
        if not entering[layer]:
            continue
        holders = [k for k, h in enumerate(layout) if h.first_layer <= layer < h.stop]
        if not holders:
            return None
        total = sum(rates[k] for k in holders)
        for k in holders:
            share = entering[layer] * rates[k] / total
            flow[k][layer - layout[k].first_layer] += share
            entering[min(layout[k].stop, problem.num_layers)] += share
    return flow


def _full_rate(problem: ServingProblem, held: Held) -> float:
    """Tokens/s of a machine that is always busy with batches of the largest size."""
    machine = problem.machines[held.machine]
    batch = max(float(machine.max_decodes[held.num_layers - 1]), 1.0)
    prompt_s = at(machine.prompt_s, problem.input_tokens) / problem.output_tokens
    return 1 / (held.num_layers * max(at(machine.decode_s, batch) / batch + prompt_s, 1e-12))


def _decode_sweep(
    problem: ServingProblem, held: Held, num_layers: float, decodes_per_s: float
) -> tuple[float, float] | None:
    """Seconds of a layer with the decodes that gather, and of waiting for a sweep under way.

    A machine sweeps over its layers and takes at each what waits there; what arrives meanwhile is
    in the next sweep. None if more arrives than it can do.
    """
    machine = problem.machines[held.machine]
    prompts_s = num_layers * at(machine.prompt_s, problem.input_tokens) / problem.output_tokens
    prompt_busy = decodes_per_s * prompts_s
    if prompt_busy >= 1:
        return None
    batch, sweep_s = 1.0, 0.0
    for _ in range(30):
        sweep_s = num_layers * at(machine.decode_s, batch)
        batch = max(1.0, decodes_per_s * sweep_s / (1 - prompt_busy))
        if batch > machine.max_decodes[held.num_layers - 1]:
            return None
    decode_busy = min(decodes_per_s / batch * sweep_s, 1 - prompt_busy)
    return sweep_s / num_layers, decode_busy * sweep_s / 2
