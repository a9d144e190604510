"""Rates: the roofline by hand, and prices of segments as sums over their operations."""

import numpy as np
import pytest

from gimlax.errors import SpecError
from gimlax.graph import chain
from gimlax.graph.operations import ELEMENTWISE, MATMUL, Operation
from gimlax.planning.cost import costs
from gimlax.planning.rates import CARD, Roofline, rates_for
from gimlax.planning.rates.pricing import price
from tests.planning.cases import chain_of, cluster_of, kind, two_phases
from tests.zoo import ZOO


def operation(**changes):
    figures = {
        "kind": MATMUL,
        "dims": (1, 4, 8, 16),
        "dtype": "float32",
        "flops": 6e9,
        "bytes_read": 2e9,
        "bytes_written": 1e9,
    }
    return Operation(**(figures | changes))


def test_an_operation_takes_the_longer_of_compute_and_memory():
    rates = Roofline(kind("a", flops_per_s=1e9, bytes_per_s=1e9))
    assert rates.source == CARD
    assert rates.seconds(operation()) == 6.0
    assert rates.seconds(operation(flops=1.0)) == 3.0
    assert rates.seconds(operation(count=5.0)) == 6.0


def test_a_dtype_without_a_figure_is_refused_where_it_computes():
    rates = Roofline(kind("a"))
    assert rates.seconds(operation(kind=ELEMENTWISE, dtype="float64", flops=0.0)) > 0
    with pytest.raises(SpecError, match="no rate for float64"):
        rates.seconds(operation(dtype="float64"))


@pytest.mark.parametrize("name", [*ZOO, "two_phases"])
def test_a_segment_is_the_sum_of_its_operations(name):
    tested = chain(two_phases()) if name == "two_phases" else chain_of(name)
    cluster = cluster_of([kind("a"), kind("b", flops_per_s=1e8)])
    segments = [s for phase in tested.phases for s in phase.segments]
    rates = [rates_for(cluster, mesh.name) for mesh in cluster.meshes]
    for rate, priced in zip(rates, price(segments, rates, cluster.kinds), strict=True):
        for i, segment in enumerate(segments):
            by_hand = sum(op.count * rate.seconds(op) for op in segment.operations)
            assert priced.seconds[i] == pytest.approx(by_hand)
            assert priced.memory_bound_s[i] <= priced.seconds[i] * (1 + 1e-9)
            parts = max(priced.compute_s[i], priced.memory_s[i])
            assert parts <= priced.seconds[i] * (1 + 1e-9)


def test_repeated_layers_are_priced_once():
    asked = []

    class Counting:
        source = CARD

        def seconds(self, operation):
            asked.append(operation)
            return 1.0

    segments = chain(two_phases()).phases[0].segments
    price(segments, [Counting()], [kind("a")])
    assert len(asked) == len(set(asked)) < sum(len(s.operations) for s in segments)


def test_costs_say_what_their_rates_rest_on():
    figures = costs(chain(two_phases()), cluster_of([kind("a"), kind("b")]))
    assert [rates.source for rates in figures.rates] == [CARD, CARD]
    np.testing.assert_allclose(figures.segment_s, np.tensordot(figures.calls, figures.seconds, 1))
