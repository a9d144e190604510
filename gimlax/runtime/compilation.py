"""Compiles the stages of all phases: equal ones once, different ones in parallel.

Two stages are equal if their StableHLO, arguments, devices and donation are: layers that repeat on
one mesh share an executable. Every stage returns one value more than it was given, a completion
token: four bytes that nobody donates, ready when the stage is done. Compilations go through JAX's
persistent cache wherever the user has configured one (`jax_compilation_cache_dir`); gimlax leaves
JAX's global configuration alone.
"""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from itertools import islice
from typing import Any

import jax
import jax.numpy as jnp

from gimlax import _jax
from gimlax.errors import BackendError
from gimlax.graph import Part, Role
from gimlax.partition import Stage
from gimlax.program import Program
from gimlax.runtime.inventory import Inventory


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a compilation is: `done` of `total` distinct stages; `what` is the one just done."""

    done: int
    total: int
    what: str


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class CompiledStage:
    """A stage as one call on its mesh.

    `call` takes four tuples: of each tree in `resident` its `row`, of each tree in `carried` its
    arrays, the `constants`, the `streamed` leaves and `received` values; it returns the updated
    arrays of each carried tree, the `produced` values, and the token. Tuples that are kept between
    calls are passed as they are: nothing is flattened in Python.
    """

    index: int
    mesh: str
    description: str
    call: Callable[..., Any]
    compiled: Any
    row: int
    resident: tuple[int, ...]
    carried: tuple[int, ...]
    constants: tuple[jax.Array, ...]
    streamed: tuple[tuple[str, int], ...]
    received: tuple[tuple[str, int], ...]
    produced: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class _Order:
    """A stage to compile: what `jax.jit` lowered, and the key that equal stages share."""

    lowered: Any
    key: tuple[Any, ...]
    config: tuple[tuple[str, Any], ...]
    description: str


def compile_stages(
    programs: Sequence[Program],
    inventory: Inventory,
    donates: Mapping[str, bool],
    progress: Callable[[Progress], None] | None = None,
) -> tuple[tuple[tuple[CompiledStage, ...], ...], int]:
    """Compiles the stages of each program.

    Args:
        programs: one per phase.
        inventory: how arguments lie on the meshes.
        donates: whether a stage on this mesh may take over the memory of its carried state.
        progress: told after each distinct stage, in the calling thread.

    Returns:
        The stages of each program, and how many distinct ones were compiled.

    Raises:
        BackendError: a backend refuses a stage; names stage, segments and mesh.
    """
    stages = [(program, stage) for program in programs for stage in program.partition.stages]
    orders = [_lower(*of, row, inventory, donates) for row, of in enumerate(stages)]
    distinct = {order.key: order for order in orders}
    compiled: dict[tuple[Any, ...], Any] = {}
    with ThreadPoolExecutor(os.cpu_count(), "gimlax compile") as pool:
        futures = {pool.submit(_compile, order): order for order in distinct.values()}
        try:
            for future in as_completed(futures):
                order = futures[future]
                compiled[order.key] = future.result()
                if progress is not None:
                    done = Progress(done=len(compiled), total=len(distinct), what=order.description)
                    progress(done)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    constants: dict[tuple[str, int], jax.Array] = {}
    bound = [
        _bind(*of, row, inventory, compiled[orders[row].key], constants)
        for row, of in enumerate(stages)
    ]
    rest = iter(bound)
    by_phase = tuple(tuple(islice(rest, len(p.partition.stages))) for p in programs)
    return by_phase, len(distinct)


def _lower(
    program: Program, stage: Stage, row: int, inventory: Inventory, donates: Mapping[str, bool]
) -> _Order:
    mesh = program.placement[stage.index]
    lying = inventory.arrangement
    whole = lying.whole(mesh)
    state = tuple(of[stage.index] for of in inventory.states if of[stage.index])
    rows = tuple(tuple(part for _, part in of[row]) for of in inventory.rows if of[row])
    traced = program.partition.traced
    leaves = {role: traced.leaves(role) for role in (Role.RESIDENT, Role.CARRIED)}

    def aval_of(role: Role, part: Part) -> Any:
        argument = traced.arguments[leaves[role][part.leaf]]
        aval = argument.aval
        shape = aval.shape if part.whole else (part.stop - part.start, *aval.shape[1:])
        sharding = lying.argument(mesh, argument.path)
        return jax.ShapeDtypeStruct(shape, aval.dtype, sharding=sharding)

    def lie(avals: Iterable[Any]) -> tuple[jax.ShapeDtypeStruct, ...]:
        return tuple(jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=whole) for a in avals)

    def crossing(values: Iterable[int]) -> tuple[jax.ShapeDtypeStruct, ...]:
        avals = program.partition.avals
        return tuple(
            jax.ShapeDtypeStruct(
                avals[v].shape, avals[v].dtype, sharding=lying.value(mesh, program, v)
            )
            for v in values
        )

    inputs = (
        tuple(tuple(aval_of(Role.RESIDENT, p) for p in row) for row in rows),
        tuple(tuple(aval_of(Role.CARRIED, p) for p in of) for of in state),
        lie(jax.typeof(traced.jaxpr.consts[i]) for i in stage.constants),
        lie(traced.arguments[leaf].aval for leaf in stage.streamed) + crossing(stage.received),
    )
    results = (
        tuple(tuple(aval.sharding for aval in of) for of in inputs[1]),
        tuple(aval.sharding for aval in crossing(stage.produced)),
        whole,
    )
    donated = 1 if donates[mesh] else ()
    function = _with_token(stage, rows, state, lying.evaluator(mesh, program, stage))
    description = program.describe_stage(stage.index)
    with _jax.using_config(traced.config):
        jitted = jax.jit(function, keep_unused=True, donate_argnums=donated, out_shardings=results)
        try:
            lowered = jitted.lower(*inputs)
        except (NotImplementedError, RuntimeError) as error:
            raise BackendError(
                f"{description} cannot be lowered for its backend: {error}; place it elsewhere"
            ) from error
    key = (
        lowered.as_text(),
        tuple((i.shape, str(i.dtype)) for i in jax.tree.leaves(inputs)),
        jax.tree.structure(inputs),
        tuple(str(aval) for aval in stage.jaxpr.out_avals),
        tuple(aval.sharding for aval in jax.tree.leaves(inputs)),
        results,
        donated,
        traced.config,
    )
    return _Order(lowered=lowered, key=key, config=traced.config, description=description)


def _with_token(
    stage: Stage,
    rows: tuple[tuple[Part, ...], ...],
    state: tuple[tuple[Part, ...], ...],
    evaluate: Callable[..., list[Any]],
) -> Callable[..., tuple[Any, ...]]:
    """The stage over all state that it owns, also what only other phases use, and a token."""

    def stage_with_token(
        resident: Any, carried: Any, constants: Any, inputs: Any
    ) -> tuple[Any, ...]:
        weights = _by_part(rows, resident)
        held = _by_part(state, carried)
        outputs = evaluate(
            *(weights[part] for part in stage.resident),
            *(held[part] for part in stage.carried),
            *constants,
            *inputs,
        )
        held.update(zip(stage.carried, outputs, strict=False))
        updated = tuple(tuple(held[part] for part in of) for of in state)
        return updated, tuple(outputs[len(stage.carried) :]), jnp.zeros((), jnp.int32)

    return stage_with_token


def _by_part(parts: tuple[tuple[Part, ...], ...], arrays: Any) -> dict[Part, Any]:
    return {
        part: array
        for of, row in zip(parts, arrays, strict=True)
        for part, array in zip(of, row, strict=True)
    }


def _compile(order: _Order) -> Any:
    with _jax.using_config(order.config):
        try:
            return order.lowered.compile()
        except Exception as error:
            first = (str(error).splitlines() or [type(error).__name__])[0]
            raise BackendError(
                f"{order.description} could not be compiled: {first}; place it elsewhere, or cut it"
                " smaller if memory is short"
            ) from error


def _bind(
    program: Program,
    stage: Stage,
    row: int,
    inventory: Inventory,
    compiled: Any,
    constants: dict[tuple[str, int], jax.Array],
) -> CompiledStage:
    mesh = program.placement[stage.index]
    values = program.partition.traced.jaxpr.consts
    for i in stage.constants:
        if (mesh, id(values[i])) not in constants:
            constants[mesh, id(values[i])] = jax.device_put(
                values[i], inventory.arrangement.whole(mesh)
            )
    return CompiledStage(
        index=stage.index,
        mesh=mesh,
        description=program.describe_stage(stage.index),
        call=compiled,
        compiled=compiled,
        row=row,
        resident=tuple(t.index for t in inventory.resident if inventory.rows[t.index][row]),
        carried=tuple(i for i, of in enumerate(inventory.states) if of[stage.index]),
        constants=tuple(constants[mesh, id(values[i])] for i in stage.constants),
        streamed=tuple((mesh, leaf) for leaf in stage.streamed),
        received=tuple((mesh, value) for value in stage.received),
        produced=tuple((mesh, value) for value in stage.produced),
    )
