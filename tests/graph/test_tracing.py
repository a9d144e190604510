"""A trace keeps shapes, roles and trees, touches no device, and refuses what it cannot keep."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from gimlax.errors import TraceError
from gimlax.graph import Role, trace
from tests import zoo


def primitives(closed):
    return [eqn.primitive.name for eqn in closed.jaxpr.eqns]


@pytest.mark.parametrize("kind", zoo.ZOO)
def test_shapes_alone_give_the_same_trace_as_arrays(kind):
    specimen = zoo.ZOO[kind]()
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), specimen.args)
    live = trace(specimen.fn, *specimen.args, carried=specimen.carried)
    abstract = trace(specimen.fn, *shapes, carried=specimen.carried)
    assert str(live.jaxpr) == str(abstract.jaxpr)
    assert live.arguments == abstract.arguments
    assert live.outputs == abstract.outputs


def test_roles_paths_and_carried_outputs():
    specimen = zoo.plain()
    traced = trace(specimen.fn, *specimen.args, carried={1: 1})
    by_role = {role: [traced.arguments[i].path for i in traced.leaves(role)] for role in Role}
    assert by_role[Role.RESIDENT][0] == "params['layers'][0]['down']"
    assert by_role[Role.CARRIED][:2] == ["cache[0][0]", "cache[0][1]"]
    assert by_role[Role.STREAMED] == ["tokens", "position"]
    replaced = [traced.arguments[o.carried].path for o in traced.outputs if o.carried is not None]
    assert replaced == by_role[Role.CARRIED]
    assert traced.outputs[0].path == "output[0]"


def test_grouping_calls_are_opened_with_fresh_variables_and_their_scopes():
    @jax.custom_jvp
    def bent(x):
        return jnp.sin(x)

    bent.defjvps(lambda g, y, x: g)

    @jax.custom_vjp
    def curved(x):
        return jnp.cos(x)

    curved.defvjp(lambda x: (curved(x), None), lambda _, g: (g,))
    twice = jax.jit(lambda x: jax.nn.silu(jax.nn.silu(x)))

    def model(w, x):
        with jax.named_scope("inner"):
            x = twice(x @ w)
        return jax.checkpoint(lambda y: curved(bent(y)))(x) + twice(x)

    args = (np.eye(3, dtype=np.float32), zoo.normal(2, 3))
    traced = trace(model, *args)
    names = primitives(traced.jaxpr)
    assert not {"jit", "pjit", "custom_jvp_call", "custom_vjp_call", "remat2", "checkpoint"} & {
        *names
    }
    written = [v for eqn in traced.jaxpr.jaxpr.eqns for v in eqn.outvars]
    assert len(written) == len(set(written))
    scopes = {eqn.primitive.name: str(eqn.source_info.name_stack) for eqn in traced.jaxpr.eqns}
    assert scopes["dot_general"] == "inner"
    assert scopes["sin"] == ""
    flat = jax.jit(jax.extend.core.jaxpr_as_fun(traced.jaxpr))(*args)
    np.testing.assert_array_equal(flat[0], jax.jit(model)(*args))


def test_composites_and_scans_stay_closed():
    def model(w, x):
        x = jax.lax.composite(jnp.tanh, "mine.tanh")(x @ w)
        return jax.lax.scan(lambda c, _: (c * 2, None), x, length=3)[0]

    names = primitives(trace(model, np.eye(3, dtype=np.float32), zoo.normal(2, 3)).jaxpr)
    assert names == ["dot_general", "composite", "scan"]


def test_a_jit_that_names_a_sharding_keeps_it():
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("data",))
    spec = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    traced = trace(lambda w, x: jax.jit(jnp.sin, out_shardings=spec)(x) * w, np.ones(4), np.ones(4))
    assert "jit" in primitives(traced.jaxpr)


def test_closed_arrays_become_constants_and_are_shared():
    table = np.arange(6.0, dtype=np.float32)
    traced = trace(lambda w, x: jax.jit(lambda y: y + table)(x) * (w + table), table, table)
    assert len(traced.jaxpr.consts) == 1


def test_keyword_arguments_stream():
    traced = trace(lambda w, x, *, scale: x @ w * scale, np.eye(2), np.ones((1, 2)), scale=2.0)
    assert [a.path for a in traced.arguments][-1] == "['scale']"
    assert traced.arguments[-1].role is Role.STREAMED


def test_the_configuration_that_matters_is_kept():
    with jax.default_matmul_precision("highest"):
        traced = trace(lambda w, x: x @ w, np.eye(2, dtype=np.float32), np.ones((1, 2), np.float32))
    assert dict(traced.config)["jax_default_matmul_precision"] == "highest"


def identity(params, state):
    return params, state


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: trace(identity, 1.0, 2.0, resident=(3,)), "2 positional arguments.*no argument 3"),
        (
            lambda: trace(identity, 1.0, 2.0, carried={0: 1}),
            "argument 0 .* both resident and carried",
        ),
        (lambda: trace(identity, 1.0, 2.0, carried={1: 4}), r"carried=\{1: 4\}.*returns 2 values"),
        (
            lambda: trace(lambda p, s: s[:1], 1.0, np.ones(3, np.float32), carried={1: 0}),
            r"carried s .* float32\[3\] and comes back as float32\[1\]",
        ),
        (
            lambda: trace(lambda p, s: {"a": s}, 1.0, 2.0, carried={1: 0}),
            "carried argument 1 .* return the state with the tree",
        ),
        (lambda: trace(identity, 1.0, "text"), r"argument \[0\]\[1\] .* is a str, not an array"),
        (
            lambda: trace(lambda p, x: x @ p, np.ones((2, 2)), np.ones((1, 3))),
            r"'<lambda>' could not be traced with \(float32\[2, 2\], float32\[1, 3\]\)",
        ),
        (
            lambda: trace(lambda p, x: jax.debug.print("{}", x) or x, 1.0, 2.0),
            "has side effects",
        ),
        (lambda: jax.jit(functools.partial(trace, identity))(1.0, 2.0), "is a tracer"),
    ],
)
def test_refusals_name_the_thing(call, says):
    with pytest.raises(TraceError, match=says):
        call()


def test_an_nnx_module_that_was_split_traces_from_abstract_state():
    graphdef, state = nnx.split(nnx.eval_shape(lambda: nnx.Linear(3, 4, rngs=nnx.Rngs(0))))
    traced = trace(
        lambda s, x: nnx.merge(graphdef, s)(x), state, jax.ShapeDtypeStruct((2, 3), "float32")
    )
    assert {a.aval.shape for a in traced.arguments} == {(3, 4), (4,), (2, 3)}
