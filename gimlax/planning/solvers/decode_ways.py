"""Sampled ways of one decode behind the prompts that entered before it.

Each machine serves one after another, in order of arrival; an item goes to one of the machines that
hold its next layer with a probability in proportion to their rates. The same samples serve all
rates, so what is computed with them is smooth in the rate. Units: seconds, tokens.
"""

import bisect
import itertools
from collections.abc import Sequence

import numpy as np

from gimlax.planning.problem import Array
from gimlax.planning.solvers.serving_problem import Held, ServingProblem

__all__ = ["Ways", "at"]

_NUM_AHEAD = 5


def at(table: Array, x: float) -> float:
    """Linear between the rows of a table, and beyond the last in proportion to it."""
    last_x, last_y = table[-1]
    if x > last_x > 0:
        return float(last_y * x / last_x)
    return float(np.interp(x, table[:, 0], table[:, 1]))


class Ways:
    """Random ages, lengths and ways, drawn once: a row a sample, of prompts and last the decode."""

    def __init__(
        self,
        problem: ServingProblem,
        layout: Sequence[Held],
        rates: Sequence[float],
        num_samples: int,
    ) -> None:
        random = np.random.default_rng(0)
        self._problem = problem
        shape = (num_samples, _NUM_AHEAD)
        # Intervals between prompts in units of the mean one, the oldest first.
        self._ages = random.exponential(size=shape)[:, ::-1].cumsum(axis=1)[:, ::-1]
        lengths = random.exponential(problem.input_tokens, shape)
        # Stratified: the mean length of each sample's rank is that of the distribution.
        self._lengths = lengths * problem.input_tokens / lengths.mean()
        draws = random.random((num_samples, _NUM_AHEAD + 1, problem.num_layers))
        holders = _holders(problem, layout, rates)
        self._ways = [[_way(holders, layout, problem.num_layers, d) for d in row] for row in draws]
        self._prompt_s = [
            [[at(problem.machines[h.machine].prompt_s, x) for h in layout] for x in row]
            for row in self._lengths
        ]

    def times_s(
        self, prompts_per_s: float, layer_s: Sequence[float], wait_s: Sequence[float]
    ) -> tuple[float, float]:
        """Mean seconds of a decode and of a prompt through all layers.

        Args:
            prompts_per_s: that enter.
            layer_s: of decodes that share a layer, by machine.
            wait_s: for decodes under way, by machine.
        """
        decodes = prompts = 0.0
        latency_s, token_s = self._problem.latency_s, self._problem.token_s
        for ages, lengths, ways, costs in zip(
            self._ages, self._lengths, self._ways, self._prompt_s, strict=True
        ):
            visits: dict[int, list[tuple[float, float]]] = {}
            for item, way in enumerate(ways):
                is_decode = item == _NUM_AHEAD
                now = start = 0.0 if is_decode else -float(ages[item]) / max(prompts_per_s, 1e-12)
                hop_s = latency_s + (token_s if is_decode else float(lengths[item]) * token_s)
                for machine, num_layers in way:
                    now += hop_s
                    each = layer_s[machine] + (0.0 if is_decode else costs[item][machine])
                    before = visits.setdefault(machine, [])
                    begin = now + wait_s[machine]
                    for arrived, left in before:
                        if arrived > now:
                            break
                        begin = max(begin, left)
                    left = begin + num_layers * each
                    bisect.insort(before, (now, left))
                    now = left
                now += latency_s
                if is_decode:
                    decodes += now - start
                elif item == _NUM_AHEAD - 1:
                    prompts += now - start
        return decodes / len(self._ways), prompts / len(self._ways)


def _holders(
    problem: ServingProblem, layout: Sequence[Held], rates: Sequence[float]
) -> list[tuple[list[int], list[float]]]:
    """Of each layer: who holds it, and the summed shares up to each of them."""
    result = []
    for layer in range(problem.num_layers):
        own = [k for k, h in enumerate(layout) if h.first_layer <= layer < h.stop]
        total = sum(rates[k] for k in own)
        result.append((own, list(itertools.accumulate(rates[k] / total for k in own))))
    return result


def _way(
    holders: Sequence[tuple[list[int], list[float]]],
    layout: Sequence[Held],
    num_layers: int,
    draws: Array,
) -> list[tuple[int, int]]:
    """(machine, layers done there) from the first layer to the last."""
    way: list[tuple[int, int]] = []
    layer = 0
    while layer < num_layers:
        own, sums = holders[layer]
        machine = own[min(bisect.bisect(sums, draws[layer]), len(own) - 1)]
        stop = min(layout[machine].stop, num_layers)
        way.append((machine, stop - layer))
        layer = stop
    return way
