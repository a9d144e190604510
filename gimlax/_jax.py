"""Everything that gimlax needs from `jax.extend` or from private JAX, in one file.

Both supported lines (JAX 0.10 and 0.12) are met here and nowhere else: their jaxprs differ in how
closed constants and the parameters of `scan` are stored. Units: bytes.
"""

import contextlib
import functools
import importlib
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.extend.core as jex_core
from jax._src import config as jax_config
from jax._src import core, source_info_util, xla_bridge
from jax._src.array import ArrayImpl
from jax._src.interpreters import pxla
from jax._src.named_sharding import UnspecifiedValue
from jax.extend.core import ClosedJaxpr, DropVar, Jaxpr, JaxprEqn, Literal, Primitive, Var
from jaxlib._jax import ArrayCopySemantics, Device, collect_garbage, hlo_module_cost_analysis
from jaxlib._jax import batched_copy_array_to_devices_with_sharding as _copy

Atom = Var | Literal

# fmt: off
__all__ = [
    "Atom", "ClosedJaxpr", "Device", "DropVar", "Jaxpr", "JaxprEqn", "Literal", "Primitive",
    "ScanParts", "Var", "allowed_backends", "aval_of", "backend_name_of", "backend_names",
    "backends_initialised", "bind", "callee", "close_jaxpr", "compile_lowered", "copy_arrays",
    "cost_of", "empty_scope", "evaluate", "generator_of", "initialise_backends", "inner_jaxprs",
    "inside_trace", "nbytes", "num_devices", "put_shards", "read_config", "register_module",
    "register_plugin", "registered_backends", "registered_plugins", "release_dropped", "rename",
    "reshaped", "scan_parts", "scope_below", "scope_of", "using_config", "with_body", "with_shapes",
]
# fmt: on

# Calls that only group equations: opening them changes no result, since gimlax never
# differentiates.
# fmt: off
_GROUPING = {
    "jit": "jaxpr", "pjit": "jaxpr", "closed_call": "call_jaxpr", "core_call": "call_jaxpr",
    "custom_jvp_call": "call_jaxpr", "custom_vjp_call": "call_jaxpr", "checkpoint": "jaxpr",
    "remat2": "jaxpr",
}

# What changes the meaning or the numbers of a traced function when it is compiled later.
_CONFIG_THAT_MATTERS = (
    "jax_enable_x64", "jax_default_matmul_precision", "jax_default_prng_impl",
    "jax_threefry_partitionable", "jax_numpy_dtype_promotion", "jax_default_device",
)
# fmt: on


def close_jaxpr(
    constvars: Sequence[Var],
    consts: Sequence[Any],
    invars: Sequence[Var],
    outvars: Sequence[Atom],
    eqns: Sequence[JaxprEqn],
    like: ClosedJaxpr,
) -> ClosedJaxpr:
    """Builds a closed jaxpr with the effects and the debug names of `like`."""
    old = like.jaxpr
    jaxpr = Jaxpr(constvars, invars, outvars, eqns, old.effects, old.debug_info)
    return ClosedJaxpr(jaxpr, consts)


def callee(eqn: JaxprEqn) -> ClosedJaxpr | None:
    """The jaxpr of a call that only groups equations, or None if `eqn` has a meaning of its own.

    A `jit` that names shardings, layouts, a mesh or compiler options is not mere grouping.
    """
    key = _GROUPING.get(eqn.primitive.name)
    if key is None:
        return None
    params = eqn.params
    if key == "jaxpr" and "in_shardings" in params:
        shardings = (*params["in_shardings"], *params["out_shardings"])
        layouts = (*params.get("in_layouts", ()), *params.get("out_layouts", ()))
        named = any(not isinstance(s, UnspecifiedValue) for s in shardings)
        if named or any(x is not None for x in layouts) or params.get("compiler_options_kvs"):
            return None
    return _closed(params[key])


def _closed(jaxpr: Any) -> ClosedJaxpr:
    return jaxpr if hasattr(jaxpr, "consts") else ClosedJaxpr(jaxpr, ())


def inner_jaxprs(eqn: JaxprEqn) -> Iterator[ClosedJaxpr]:
    """Every jaxpr among the parameters of `eqn`: loop bodies, branches, decompositions."""
    for value in eqn.params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, Jaxpr | ClosedJaxpr):
                yield _closed(item)


def num_devices(eqn: JaxprEqn) -> int:
    """Devices that an equation names in a mesh or a sharding; 1 if it names none."""
    named = (eqn.params.get(key) for key in ("mesh", "sharding"))
    sizes = (getattr(n, "size", getattr(n, "num_devices", 1)) for n in named if n is not None)
    return max((s for s in sizes if isinstance(s, int)), default=1)


def rename(
    eqn: JaxprEqn, invars: Sequence[Atom], outvars: Sequence[Var], outer_scope: Any
) -> JaxprEqn:
    """`eqn` over other variables, its name stack put below `outer_scope` (a name stack)."""
    info = eqn.source_info
    info = info.replace(name_stack=outer_scope + info.name_stack)
    return eqn.replace(invars=list(invars), outvars=list(outvars), source_info=info)


def reshaped(atom: Atom, shape: tuple[int, ...]) -> Any:
    """The abstract value of `atom` with another shape of the same rank."""
    aval: Any = atom.aval
    return aval if aval.shape == shape else aval.update(shape=shape, sharding=None)


def with_shapes(eqn: JaxprEqn, invars: Sequence[Atom], outvars: Sequence[Var]) -> JaxprEqn:
    """`eqn` over variables of other shapes, to be counted and never run.

    Of its parameters only what a look-up reads is brought into line.
    """
    params = eqn.params
    if eqn.primitive.name == "gather":
        before, after = aval_of(eqn.invars[0]).shape, aval_of(invars[0]).shape
        sizes = params["slice_sizes"]
        sizes = tuple(b if s == a else s for s, a, b in zip(sizes, before, after, strict=True))
        params = {**params, "slice_sizes": sizes}
    return eqn.replace(invars=list(invars), outvars=list(outvars), params=params)


def with_body(
    eqn: JaxprEqn, invars: Sequence[Atom], outvars: Sequence[Var], eqns: Sequence[JaxprEqn]
) -> JaxprEqn:
    """A composite over other variables and with another body, to be counted and never run."""
    key, old = next((k, v) for k, v in eqn.params.items() if isinstance(v, Jaxpr | ClosedJaxpr))
    inner = [v for v in invars if isinstance(v, Var)]
    old = _closed(old).jaxpr
    body = Jaxpr((), inner, list(outvars), list(eqns), old.effects, old.debug_info)
    return eqn.replace(
        invars=list(invars),
        outvars=list(outvars),
        params={**eqn.params, key: ClosedJaxpr(body, ())},
    )


def empty_scope() -> Any:
    """The name stack of the top level."""
    return source_info_util.NameStack()


def scope_below(outer_scope: Any, eqn: JaxprEqn) -> Any:
    """The name stack of `eqn` seen from the top level."""
    return outer_scope + eqn.source_info.name_stack


def scope_of(eqn: JaxprEqn) -> str:
    """The name stack of an equation, such as `layers.3/attention`: what modules and `named_scope`
    wrote, without transformations and without the formulas that `einsum` adds."""
    names = (s.name for s in eqn.source_info.name_stack.stack if type(s).__name__ == "Scope")
    return "/".join(name for name in names if re.fullmatch(r"[\w.]+", name))


@dataclass(frozen=True, slots=True, kw_only=True)
class ScanParts:
    """A scan in the terms of `jax.lax.scan`: inputs are consts, init carry, xs in this order."""

    num_consts: int
    num_carry: int
    length: int
    reverse: bool
    unroll: int
    body: ClosedJaxpr


def scan_parts(eqn: JaxprEqn) -> ScanParts:
    """Reads the parameters of a `scan` equation of either JAX line."""
    params = eqn.params
    if "ft_in" in params:
        consts, carry, _ = params["ft_in"].unpack()
        num_consts, num_carry = len(consts), len(carry)
    else:
        num_consts, num_carry = params["num_consts"], params["num_carry"]
    told = {name: params[name] for name in ("length", "reverse", "unroll")}
    body = _closed(params["jaxpr"])
    return ScanParts(num_consts=num_consts, num_carry=num_carry, body=body, **told)


def bind(eqn: JaxprEqn, inputs: Sequence[Any]) -> list[Any]:
    """Applies one equation to values or tracers, keeping its scope and its compute context."""
    params = eqn.primitive.get_bind_params(eqn.params)
    scope = source_info_util.current_name_stack() + eqn.source_info.name_stack
    where = source_info_util.user_context(eqn.source_info.traceback, name_stack=scope)
    with where, eqn.ctx.manager:
        outputs = eqn.primitive.bind(*inputs, **params)
    return list(outputs) if eqn.primitive.multiple_results else [outputs]


def evaluate(closed: ClosedJaxpr) -> Callable[..., list[Any]]:
    """A callable that evaluates `closed` on flat inputs."""
    return jex_core.jaxpr_as_fun(closed)


def aval_of(atom: Atom) -> jax.ShapeDtypeStruct:
    """Shape and dtype of a variable or literal, without weak types."""
    aval: Any = atom.aval
    return jax.ShapeDtypeStruct(aval.shape, aval.dtype)


def nbytes(aval: Any) -> int:
    """Bytes of an array of this shape and dtype; sub-byte integers are rounded up per array."""
    dtype = aval.dtype
    if jax.numpy.issubdtype(dtype, jax.dtypes.extended):
        return math.prod(aval.shape) * dtype.itemsize
    bits = {"int4": 4, "uint4": 4, "int2": 2, "uint2": 2, "float4_e2m1fn": 4}.get(dtype.name)
    count = math.prod(aval.shape)
    return -(-count * bits // 8) if bits else count * dtype.itemsize


def read_config() -> tuple[tuple[str, Any], ...]:
    """The JAX configuration of this thread that a compilation elsewhere has to repeat."""
    return tuple((name, getattr(jax.config, name)) for name in _CONFIG_THAT_MATTERS)


@contextlib.contextmanager
def using_config(values: Sequence[tuple[str, Any]]) -> Iterator[None]:
    """Reapplies `read_config()` in this thread: a context manager of another one does not reach
    it."""
    with contextlib.ExitStack() as stack:
        for name, value in values:
            stack.enter_context(jax_config.config_states[name](value))
        yield


def generator_of(dtype: Any) -> str:
    """The name of the generator that typed PRNG keys of this dtype belong to."""
    return dtype._impl.name


def inside_trace(leaf: Any) -> bool:
    """Whether `leaf` is a tracer, so no array that could be moved or run."""
    return isinstance(leaf, core.Tracer)


def release_dropped() -> None:
    """Lets go of host memory under arrays that are gone: JAX itself does so at its next call."""
    collect_garbage()


def put_shards(
    shape: tuple[int, ...], sharding: jax.sharding.Sharding, shards: Mapping[Device, Any]
) -> jax.Array:
    """An array from what each device here shall hold, of a dtype that JAX keeps.

    Takes 5 µs where `device_put` and putting together take 45 (AMD Genoa, November 2026).
    """
    devices = sharding._addressable_device_assignment
    host = [shards[device] for device in devices]
    aval = _aval_with_sharding(shape, host[0].dtype, sharding)
    return pxla.batched_device_put(aval, sharding, host, devices)


def copy_arrays(
    arrays: Sequence[Any], shardings: Sequence[jax.sharding.Sharding]
) -> list[jax.Array]:
    """What `device_put` makes, in 3 instead of 45 µs within a client (AMD Genoa, November 2026)."""
    if not all(map(_stays_with_client, arrays, shardings)):
        return jax.device_put(list(arrays), list(shardings))
    lists = [getattr(sharding, "_internal_device_list") for sharding in shardings]  # noqa: B009
    reuse = [ArrayCopySemantics.REUSE_INPUT] * len(arrays)
    return _copy(arrays, lists, shardings, reuse)


def _stays_with_client(array: Any, sharding: jax.sharding.Sharding) -> bool:
    if not isinstance(array, ArrayImpl):
        return False  # a typed PRNG key
    (device, *more), (target, *others) = array.sharding.device_set, sharding.device_set
    return not more and not others and device.client is target.client


@functools.lru_cache(maxsize=1024)
def _aval_with_sharding(
    shape: tuple[int, ...], dtype: Any, sharding: jax.sharding.Sharding
) -> core.ShapedArray:
    return core.update_aval_with_sharding(core.ShapedArray(shape, dtype), sharding)


def backends_initialised() -> bool:
    """Whether JAX has started its backends, after which it starts no other."""
    return xla_bridge.backends_are_initialized()


def backend_names() -> tuple[str, ...]:
    """Registered names of the backends that are live, the default one's first; starts none."""
    if not backends_initialised():
        return ()
    live = xla_bridge.backends()
    default = jax.devices()[0].client
    return tuple(sorted(live, key=lambda name: live[name] is not default))


def registered_backends() -> tuple[str, ...]:
    """Names under which JAX could start a backend, the preferred one first."""
    factories = xla_bridge._backend_factories
    return tuple(sorted(factories, key=lambda name: -factories[name].priority))


def registered_plugins() -> tuple[str, ...]:
    """Names of the plugins that this process has registered so far."""
    factories = xla_bridge._backend_factories
    return tuple(name for name, factory in factories.items() if factory.c_api is not None)


def allowed_backends() -> tuple[str, ...] | None:
    """The names that JAX_PLATFORMS (or `jax_platforms`) leaves, in its order; None for all."""
    platforms = jax_config.jax_platforms.value
    if not platforms:
        return None
    names = [xla_bridge.expand_platform_alias(p.strip()) for p in platforms.split(",")]
    return tuple(name for expanded in names for name in expanded)


def backend_name_of(device: Device) -> str:
    """The registered name of the backend that a device belongs to: no attribute of it says so."""
    live = xla_bridge.backends().items()
    return next((name for name, client in live if client is device.client), device.platform)


def register_plugin(
    name: str, library_path: str, options: Mapping[str, Any], *, priority: int
) -> None:
    """Loads a PJRT library; the backend of the highest priority is the default one, the CPU's is 0.

    Raises whatever the loader raises; a library may also end the process.
    """
    settings = dict(options)
    xla_bridge.register_plugin(name, library_path=library_path, options=settings, priority=priority)


def register_module(module: str) -> tuple[str, ...]:
    """Imports a plugin module and lets it register its backends; returns their names."""
    before = set(xla_bridge._backend_factories)
    importlib.import_module(module).initialize()
    return tuple(name for name in xla_bridge._backend_factories if name not in before)


def initialise_backends(names: Sequence[str]) -> None:
    """Starts exactly these registered backends, the first as default, and no other, ever.

    JAX on its own would import every plugin module and load every library that the environment
    names, one of which may fail or hang; here only what was registered before takes part.

    Raises:
        RuntimeError: one of them failed; JAX then keeps those that stood before it.
    """
    platforms = jax_config.jax_platforms.value
    finders = ("discover_pjrt_plugins", "register_pjrt_plugin_factories_from_env")
    kept = {finder: getattr(xla_bridge, finder) for finder in finders}
    try:
        for finder in finders:
            setattr(xla_bridge, finder, lambda: None)
        jax.config.update("jax_platforms", ",".join(names))
        xla_bridge.backends()
    finally:
        jax.config.update("jax_platforms", platforms)
        for finder in finders:
            setattr(xla_bridge, finder, kept[finder])


def compile_lowered(lowered: Any) -> Any:
    """`lowered.compile()`, which also takes arrays of less than a byte an element: JAX 0.10 tells
    of those that lie packed, as they have to, that they do not, and refuses them for it."""
    compiled = lowered.compile()
    if layouts := getattr(compiled._executable, "_xla_in_layouts", None):
        kept = [None if getattr(of, "sub_byte_element_size_in_bits", 0) else of for of in layouts]
        compiled._executable._xla_in_layouts = kept
    return compiled


def cost_of(compiled: Any) -> Mapping[str, float]:
    """What XLA counts in a compiled program; where its backend counts nothing, what XLA's own
    counter finds in the optimized program, unless that calls libraries, which it takes as free."""
    with contextlib.suppress(NotImplementedError, RuntimeError):
        if found := compiled.cost_analysis():
            return found[0] if isinstance(found, list) else found
    try:
        (module,) = compiled.runtime_executable().hlo_modules()
        if re.search(r'custom_call_target="__cu(blas|dnn)', module.to_string()):
            return {}
        client = jax.local_devices(backend="cpu")[0].client
        return hlo_module_cost_analysis(client, module)
    except (AttributeError, NotImplementedError, RuntimeError, ValueError):
        return {}
