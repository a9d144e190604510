"""What crosses a cut, against a slow twin that walks every equation for every position."""

import hypothesis
import hypothesis.strategies as st
import jax.numpy as jnp
import numpy as np
import pytest

from gimlax.graph import Part, Role, build_graph, trace
from gimlax.graph.segments import crossing_values
from gimlax.graph.traced import merge_parts
from tests import zoo


def slow_crossings(graph, position):
    """Values that any stage after `position` needs from before, shadows recomputed."""
    found = set()
    for index in range(position, len(graph.nodes)):
        if graph.nodes[index].shadow:
            continue
        todo = list(graph.nodes[index].reads)
        while todo:
            value = todo.pop()
            writer = graph.nodes[graph.producer[value]]
            if writer.shadow:
                todo.extend(writer.reads)
            elif graph.producer[value] < position:
                found.add(value)
    return tuple(sorted(found))


@pytest.mark.parametrize("kind", zoo.ZOO)
def test_crossings_equal_those_of_the_slow_twin(kind):
    specimen = zoo.ZOO[kind]()
    graph = build_graph(trace(specimen.fn, *specimen.args, carried=specimen.carried))
    last = graph.last_reader()
    for position in range(1, len(graph.nodes)):
        assert crossing_values(graph, last, position) == slow_crossings(graph, position)


@hypothesis.given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 7), st.integers(0, 7)), max_size=12)
)
def test_crossings_of_random_programs(steps):
    def program(w, x):
        values = [x, x + 1.0]
        for kind, i, j in steps:
            a, b = values[i % len(values)], values[j % len(values)]
            values.append([a + b, a @ w, jnp.sin(a), a * jnp.arange(3.0)][kind])
        return values[-1], values[len(values) // 2]

    graph = build_graph(trace(program, zoo.normal(3, 3), zoo.normal(2, 3)))
    last = graph.last_reader()
    for position in range(1, len(graph.nodes)):
        assert crossing_values(graph, last, position) == slow_crossings(graph, position)


def test_masks_positions_and_casts_of_weights_are_shadows_activations_are_not():
    def model(params, tokens, x):
        weights = params.astype(jnp.bfloat16).T
        mask = tokens[:, None] > jnp.arange(3)
        return jnp.where(mask, x.astype(jnp.bfloat16) @ weights, 0)

    graph = build_graph(trace(model, zoo.normal(3, 4), np.arange(2), zoo.normal(2, 4)))
    kinds = {node.primitive: node.shadow for node in graph.nodes}
    assert kinds["transpose"] and kinds["gt"] and kinds["iota"]
    assert not kinds["dot_general"] and not kinds["select_n"]
    casts = [n.shadow for n in graph.nodes if n.primitive == "convert_element_type"]
    assert casts[:2] == [True, False]  # of the weights, of the activations


def test_a_scan_is_one_node_per_iteration_with_its_rows():
    graph = build_graph(trace(zoo.scanned().fn, *zoo.scanned().args, carried={2: 1}))
    layers = graph.traced.leaves(Role.RESIDENT)[1]
    rows = [[p for p in n.parts if p.leaf == layers] for n in graph.nodes if n.iteration >= 0]
    assert rows == [[Part(layers, k, k + 1)] for k in range(5)]
    back = build_graph(trace(zoo.scanned_back().fn, *zoo.scanned_back().args, carried={2: 1}))
    rows = [[p for p in n.parts if p.leaf == layers] for n in back.nodes if n.iteration >= 0]
    assert rows == [[Part(layers, 4 - k, 5 - k)] for k in range(5)]


def test_parts_are_merged():
    traced = trace(zoo.scanned().fn, *zoo.scanned().args, carried={2: 1})
    layers = traced.leaves(Role.RESIDENT)[1]
    rows = [Part(layers, k, k + 1) for k in range(5)]
    assert merge_parts(rows[1:3], traced) == (Part(layers, 1, 3),)
    assert merge_parts([rows[0], rows[3]], traced) == (rows[0], rows[3])
    assert merge_parts(rows, traced) == (Part(layers),)
    assert merge_parts([*rows[:2], Part(layers)], traced) == (Part(layers),)
