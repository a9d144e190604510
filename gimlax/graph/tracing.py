"""Traces a callable to a jaxpr and says how long each of its arguments lives.

`trace` needs shapes only: arrays and `jax.ShapeDtypeStruct`s do alike, and no device is touched.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from gimlax import _jax
from gimlax.errors import TraceError
from gimlax.graph.opening import open_calls
from gimlax.graph.traced import Argument, Output, Role, Traced


def trace(
    fn: Callable[..., Any],
    *args: Any,
    resident: Sequence[int] = (0,),
    carried: Mapping[int, int] | None = None,
    name: str | None = None,
    **kwargs: Any,
) -> Traced:
    """Traces `fn(*args, **kwargs)`.

    Args:
        fn: any callable that JAX can trace; see `gimlax.models.from_linen` and `from_nnx` for Flax.
        *args: pytrees of arrays or `jax.ShapeDtypeStruct`s, no static values.
        resident: positional arguments that stay on their meshes between calls (parameters).
        carried: positional argument → position in the returned tuple of its updated value
            (0 for a function that returns no tuple). Same tree, shapes and dtypes on both sides.
        name: what to call the function; by default its own name.
        **kwargs: streamed arguments.

    Raises:
        TraceError: a role names no argument, a carried value changes shape, or tracing fails.
    """
    name = name or str(getattr(fn, "__name__", type(fn).__name__))
    carried = dict(carried or {})
    positions = _positions(name, len(args), tuple(resident), carried)
    avals: tuple[Any, Any] = jax.tree.map_with_path(
        lambda path, leaf: _abstract(name, jax.tree_util.keystr(path), leaf), (args, dict(kwargs))
    )
    in_tree = jax.tree.structure(avals)
    try:
        closed, shapes = jax.make_jaxpr(fn, return_shape=True)(*avals[0], **avals[1])
    except (TypeError, ValueError, IndexError, KeyError, AttributeError) as error:
        raise TraceError(
            f"{name!r} could not be traced with {_describe(*avals)}: "
            f"{type(error).__name__}: {error}"
        ) from error
    closed = open_calls(closed)
    if closed.jaxpr.effects:
        raise TraceError(
            f"{name!r} has side effects {sorted(map(str, closed.jaxpr.effects))}; a stage may be"
            f" run"
            " on any backend, so take callbacks, prints and references out of the traced function"
        )
    _check_alone(name, closed)
    arguments = _arguments(fn, avals, positions)
    outputs, out_tree = _outputs(name, shapes, carried, arguments, avals)
    return Traced(
        name=name,
        jaxpr=closed,
        arguments=arguments,
        outputs=outputs,
        in_tree=in_tree,
        out_tree=out_tree,
        positions=positions,
        carried=tuple(sorted(carried.items())),
        config=_jax.read_config(),
    )


def _check_alone(name: str, closed: _jax.ClosedJaxpr) -> None:
    """Refuses what belongs to another transformation, or to several devices at once."""
    if any(map(_jax.inside_trace, closed.consts)):
        raise TraceError(
            f"{name!r} closes over a tracer of jit, grad or vmap; pass that value as an"
            f" argument, and"
            " call the result outside of the transformation"
        )
    for eqn in closed.jaxpr.eqns:
        devices = _jax.num_devices(eqn)
        mesh = getattr(eqn.params.get("sharding"), "mesh", None)
        if devices > 1 and not isinstance(mesh, jax.sharding.AbstractMesh):
            raise TraceError(
                f"{name!r} uses {eqn.primitive.name!r} over {devices} devices; which devices a"
                " stage runs on is for the planner to say, so leave out meshes and shard_map"
                " (a with_sharding_constraint over an AbstractMesh is kept)"
            )
        for body in _jax.inner_jaxprs(eqn):
            _check_alone(name, body)


def _positions(
    name: str, count: int, resident: tuple[int, ...], carried: dict[int, int]
) -> tuple[Role, ...]:
    wrong = [i for i in (*resident, *carried) if not 0 <= i < count]
    if wrong:
        raise TraceError(
            f"{name!r} was given {count} positional arguments, so it has no argument"
            f" {', '.join(map(str, wrong))}; resident= and carried= count positional arguments"
            f" from 0"
        )
    both = sorted(set(resident) & set(carried))
    if both:
        raise TraceError(
            f"argument {both[0]} of {name!r} is both resident and carried; give it one role"
        )
    roles = [Role.STREAMED] * count
    for i in resident:
        roles[i] = Role.RESIDENT
    for i in carried:
        roles[i] = Role.CARRIED
    return tuple(roles)


def _abstract(name: str, path: str, leaf: Any) -> jax.ShapeDtypeStruct:
    if _jax.inside_trace(leaf):
        raise TraceError(
            f"argument {path} of {name!r} is a tracer of another transformation; trace with"
            f" arrays or"
            " jax.ShapeDtypeStructs, outside of jit, grad and vmap"
        )
    try:
        aval = jax.typeof(leaf) if not isinstance(leaf, jax.ShapeDtypeStruct) else leaf
    except TypeError as error:
        raise TraceError(
            f"argument {path} of {name!r} is a {type(leaf).__name__}, not an array; bind static"
            " values before tracing, for example with functools.partial"
        ) from error
    dtype = aval.dtype
    if not jax.numpy.issubdtype(dtype, jax.dtypes.extended):
        dtype = jax.dtypes.canonicalize_dtype(dtype)  # float64 is float32 unless x64 is enabled
    weak = bool(getattr(aval, "weak_type", False))
    return jax.ShapeDtypeStruct(aval.shape, dtype, weak_type=weak)


def _describe(args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    def one(tree: Any) -> str:
        leaves = jax.tree.leaves(tree)
        if len(leaves) == 1:
            return f"{leaves[0].dtype}{list(leaves[0].shape)}"
        return f"a tree of {len(leaves)} arrays"

    words = [one(a) for a in args] + [f"{k}={one(v)}" for k, v in kwargs.items()]
    return "(" + ", ".join(words) + ")"


def _argument_names(fn: Callable[..., Any], count: int) -> list[str]:
    try:
        names = [p.name for p in inspect.signature(fn).parameters.values() if p.kind in (0, 1)]
    except (TypeError, ValueError):
        names = []
    return [names[i] if i < len(names) else f"args[{i}]" for i in range(count)]


def _arguments(
    fn: Callable[..., Any], avals: tuple[Any, Any], positions: tuple[Role, ...]
) -> tuple[Argument, ...]:
    args, kwargs = avals
    found = []
    names = _argument_names(fn, len(args))
    for position, (tree, role) in enumerate(zip(args, positions, strict=True)):
        for path, aval in jax.tree.leaves_with_path(tree):
            full = names[position] + jax.tree_util.keystr(path)
            found.append(Argument(path=full, position=position, role=role, aval=aval))
    for path, aval in jax.tree.leaves_with_path(kwargs):
        full = jax.tree_util.keystr(path)
        found.append(Argument(path=full, position=-1, role=Role.STREAMED, aval=aval))
    return tuple(found)


def _outputs(
    name: str,
    shapes: Any,
    carried: dict[int, int],
    arguments: tuple[Argument, ...],
    avals: tuple[Any, Any],
) -> tuple[tuple[Output, ...], Any]:
    is_tuple = type(shapes) is tuple
    elements = shapes if is_tuple else (shapes,)
    replaced: dict[int, int] = {}
    for position, output in carried.items():
        if not 0 <= output < len(elements) or output in replaced:
            raise TraceError(
                f"carried={{{position}: {output}}}: {name!r} returns {len(elements)} values and"
                f" each"
                " can take the place of one argument; name the position of the updated value"
            )
        replaced[output] = position
    found: list[Output] = []
    for index, element in enumerate(elements):
        prefix = f"[{index}]" if is_tuple else ""
        leaves = jax.tree.leaves_with_path(element)
        sources: list[int | None] = [None] * len(leaves)
        if index in replaced:
            sources = list(_carried_leaves(name, replaced[index], element, arguments, avals))
        for (path, aval), source in zip(leaves, sources, strict=True):
            aval = jax.ShapeDtypeStruct(aval.shape, aval.dtype)
            full = "output" + prefix + jax.tree_util.keystr(path)
            found.append(Output(path=full, aval=aval, carried=source))
    return tuple(found), jax.tree.structure(shapes)


def _carried_leaves(
    name: str, position: int, element: Any, arguments: tuple[Argument, ...], avals: tuple[Any, Any]
) -> list[int]:
    indices = [i for i, a in enumerate(arguments) if a.position == position]
    before, after = jax.tree.structure(avals[0][position]), jax.tree.structure(element)
    if before != after:
        raise TraceError(
            f"carried argument {position} of {name!r} goes in as {before} and comes back as"
            f" {after};"
            " return the state with the tree that it had"
        )
    for i, leaf in zip(indices, jax.tree.leaves(element), strict=True):
        aval = arguments[i].aval
        if (aval.shape, aval.dtype) != (leaf.shape, leaf.dtype):
            raise TraceError(
                f"carried {arguments[i].path} of {name!r} goes in as"
                f" {aval.dtype}{list(aval.shape)} and"
                f" comes back as {leaf.dtype}{list(leaf.shape)}; state must keep its shape and"
                f" dtype"
            )
    return indices
