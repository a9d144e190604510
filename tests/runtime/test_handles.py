"""Handles are opaque, used once, and readable by part."""

import jax
import numpy as np
import pytest

from gimlax.errors import SpecError, TraceError
from gimlax.graph import trace
from gimlax.runtime import Carried, Placed, gather
from tests import zoo
from tests.runtime.conftest import can_donate, over_backends, trace_specimen

pytestmark = over_backends

THREE = ("cpu", "plugin", "cpu:1")


@pytest.fixture(scope="module")
def plain(deploy_once):
    specimen = zoo.plain()
    return deploy_once(trace_specimen(specimen), THREE), specimen.args


@pytest.fixture(scope="module")
def scanned(deploy_once):
    specimen = zoo.scanned()
    return deploy_once(trace_specimen(specimen), THREE), specimen.args


def assert_same(found, expected):
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_handles_are_leaves(plain):
    step, (params, cache, *_) = plain
    for handle in (step.place(params), step.init(cache)):
        assert jax.tree.leaves({"a": handle}) == [handle]


@pytest.mark.parametrize("kind", ["plain", "scanned", "scanned_back"])
def test_gather_gives_back_what_was_placed(kind, deploy):
    specimen = zoo.ZOO[kind]()
    step = deploy(trace_specimen(specimen), ("cpu", "plugin"))
    found = gather({"p": step.place(specimen.args[0]), "other": specimen.args[1]})
    assert_same(found, {"p": specimen.args[0], "other": specimen.args[1]})


def test_a_tied_leaf_lies_on_both_meshes_and_counts_twice(plain):
    step, (params, *_) = plain
    placed = step.place(params)
    assert sorted(placed.meshes) == sorted(THREE)
    total = sum(x.nbytes for x in jax.tree.leaves(params))
    assert placed.nbytes == total + params["table"].nbytes
    assert repr(placed).startswith("Placed(resident argument 0 of 'plain_model', ")


def test_two_stages_on_one_mesh_share_a_leaf(deploy):
    specimen = zoo.plain()
    step = deploy(trace_specimen(specimen), ("cpu", "plugin", "cpu"))
    params = specimen.args[0]
    assert step.place(params).nbytes == sum(x.nbytes for x in jax.tree.leaves(params))


def test_scanned_leaves_lie_in_rows(scanned):
    step, (params, *_) = scanned
    placed = step.place(params)
    assert placed.nbytes == sum(x.nbytes for x in jax.tree.leaves(params))
    assert len(placed.meshes) > 1
    assert_same(gather(placed), params)


def test_a_state_is_used_once(plain):
    step, (params, cache, tokens, position) = plain
    placed, state = step.place(params), step.init(cache)
    _, after = step(placed, state, tokens, position)
    assert (state.generation, after.generation) == (0, 1)
    message = r"carried argument 1 of 'plain_model', generation 0: has been used by a pass"
    for use in (
        lambda: step(placed, state, tokens, position),
        lambda: step.submit(placed, state, tokens, position),
        lambda: gather(state),
        state.copy,
        lambda: state.read("cache[0][0]"),
        lambda: state.write("cache[0][0]", np.zeros((12, 16), np.float32)),
    ):
        with pytest.raises(SpecError, match=message):
            use()
    assert "has been used" in repr(state)
    gather(after)


def test_wrong_arguments_do_not_use_up_the_state(plain):
    step, (params, cache, tokens, position) = plain
    placed, state = step.place(params), step.init(cache)
    with pytest.raises(TraceError):
        step(placed, state, tokens[:3], position)
    step(placed, state, tokens, position)


def test_a_copy_goes_its_own_way(plain):
    step, (params, cache, tokens, position) = plain
    placed, state = step.place(params), step.init(cache)
    other = state.copy()
    first, state = step(placed, state, tokens, position)
    second, other = step(placed, other, tokens, position)
    assert_same(first, second)
    assert_same(gather(state), gather(other))


def test_init_leaves_the_arrays_of_the_caller_alone(deploy, meshes):
    specimen = zoo.plain()
    params, cache, tokens, position = specimen.args
    step = deploy(trace_specimen(specimen), ("cpu",))
    mine = jax.device_put(cache, meshes["cpu"].devices.flat[0])
    step(step.place(params), step.init(mine), tokens, position)
    assert_same(mine, cache)


def test_donation_takes_the_memory_of_the_state(deploy, meshes):
    specimen = zoo.plain()
    params, cache, tokens, position = specimen.args
    for donates in (True, False):
        step = deploy(trace_specimen(specimen), ("cpu", "plugin"), donates=donates)
        placed, state = step.place(params), step.init(cache)
        arrays = {
            mesh: cell.arrays
            for mesh, cell in zip(step.program.placement, state._cells[0], strict=True)
        }
        logits, _ = step(placed, state, tokens, position)
        logits.block_until_ready()
        for mesh, of in arrays.items():
            gone = donates and can_donate(meshes[mesh])
            assert [x.is_deleted() for x in of] == [gone] * len(of)
        assert not any(x.is_deleted() for x in placed._shelf.values())


def test_a_leaf_is_read_and_written_by_part(plain):
    step, (params, cache, tokens, position) = plain
    state = step.init(cache)
    block = zoo.normal(2, 16)
    state.write("cache[2][1]", block, (slice(4, 6),))
    state.write("cache[0][0]", block[0], (1,))
    assert_same(state.read("cache[2][1]", (slice(4, 6),)), block)
    assert_same(state.read("cache[2][1]", (5, 3)), block[1, 3])
    expected = jax.tree.map(np.array, cache)
    expected[2][1][4:6] = block
    expected[0][0][1] = block[0]
    assert_same(gather(state), expected)
    logits, _ = step(step.place(params), state, tokens, position)
    other, _ = step(step.place(params), expected, tokens, position)
    assert_same(logits, other)


def test_rows_of_several_stages_are_read_and_written_as_one_leaf(scanned):
    step, (params, x, old, bias) = scanned
    state = step.init(old)
    new = zoo.normal(3, 16, seed=4)
    state.write("state['memory']", new, (slice(1, 4),))
    expected = old["memory"].copy()
    expected[1:4] = new
    assert_same(state.read("state['memory']"), expected)
    assert_same(state.read("state['memory']", (3, 2)), expected[3, 2])
    out = step(step.place(params), x, state, bias)
    assert_same(gather(out), gather(step(step.place(params), x, old | {"memory": expected}, bias)))


def test_what_was_read_does_not_change_with_the_state(plain):
    step, (params, cache, tokens, position) = plain
    state = step.init(cache)
    before = state.read("cache[0][0]")
    step(step.place(params), state, tokens, position)[0].block_until_ready()
    assert_same(before, cache[0][0])


def test_no_such_leaf_and_no_such_shape(plain):
    step, (_, cache, *_) = plain
    state = step.init(cache)
    with pytest.raises(SpecError, match=r"has no leaf 'cache\[9\]'; it has cache\[0\]\[0\], "):
        state.read("cache[9]")
    with pytest.raises(TraceError, match=r"cache\[0\]\[0\] is float32\[3\], traced as .*16"):
        state.write("cache[0][0]", np.zeros(3, np.float32), (0,))


@pytest.mark.parametrize("index", [99, (99, 0), (0, 0, 0)])
def test_an_index_outside_of_a_leaf_is_refused(plain, index):
    step, (_, cache, *_) = plain
    state = step.init(cache)
    with pytest.raises(SpecError, match=r"cache\[0\]\[0\] has shape \[12, 16\] and was indexed"):
        state.read("cache[0][0]", index)
    with pytest.raises(SpecError, match="give ints and slices within it"):
        state.write("cache[0][0]", np.float32(1), index)


def test_handles_of_another_compilation_are_refused(plain, deploy):
    step, (params, cache, tokens, position) = plain
    other = deploy(trace_specimen(zoo.plain()), ("cpu", "plugin"))
    with pytest.raises(SpecError, match=r"resident argument 0 .* was made by another compilation"):
        step(other.place(params), cache, tokens, position)
    with pytest.raises(SpecError, match=r"carried argument 1 .* was made by another compilation"):
        step(step.place(params), other.init(cache), tokens, position)
    with pytest.raises(SpecError, match=r"carried argument 1 .* stands for another argument"):
        step(step.place(params), step.place(params), tokens, position)


def test_leaves_that_do_not_fit_are_named_up_to_ten(plain):
    step, (params, *_) = plain
    bad = jax.tree.map(lambda x: x[:1], params)
    with pytest.raises(TraceError) as caught:
        step.place(bad)
    text = str(caught.value)
    assert text.startswith("resident argument 0 of 'plain_model': params['layers'][0]['down'] is ")
    assert "float32[1, 16], traced as float32[32, 16]; " in text
    assert text.count("traced as") == 10
    assert "; and 9 more; " in text


def test_missing_and_extra_leaves_are_named(plain):
    step, (params, *_) = plain
    bad = {"layers": params["layers"], "tables": params["table"]}
    with pytest.raises(TraceError, match=r"\['table'\] is missing; params\['tables'\] is extra"):
        step.place(bad)


def test_one_tree_per_argument_is_asked_for(plain):
    step, (params, *_) = plain
    with pytest.raises(SpecError, match=r"place\(\) was given 2 trees, but there are 1 resident"):
        step.place(params, params)
    with pytest.raises(SpecError, match=r"init\(\) was given 0 trees, but there are 1 carried"):
        step.init()


def test_several_handles_come_as_a_tuple(deploy):
    def fn(a, s, b, t):
        return a * b + s + t, s + 1, t + 2

    ones = [np.float32(i) for i in range(4)]
    traced = trace(fn, *ones, resident=(0, 2), carried={1: 1, 3: 2})
    step = deploy(traced, ("cpu",))
    (a, b), (s, t) = step.place(ones[0], ones[2]), step.init(ones[1], ones[3])
    assert [type(x) for x in (a, b, s, t)] == [Placed, Placed, Carried, Carried]
    y, s, t = step(a, s, b, t)
    assert (float(y), gather(s), gather(t)) == (4, 2, 5)
    with pytest.raises(SpecError):
        step(b, s, a, t)
