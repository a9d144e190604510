"""Compiles the stages of all phases: equal ones once, different ones in parallel.

Two stages are equal if their StableHLO, arguments, devices and donation are: layers that repeat on
one mesh share an executable. Compilations go through JAX's persistent cache wherever the user has
configured one (`jax_compilation_cache_dir`); gimlax leaves JAX's global configuration alone.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from itertools import islice
from typing import Any

import jax

from gimlax import _jax
from gimlax.errors import BackendError
from gimlax.partition import Stage
from gimlax.program import Program
from gimlax.runtime.forms import form_of
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
class Order:
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
    compiled, num_distinct = compile_orders(orders, progress)
    constants: dict[tuple[str, int], jax.Array] = {}
    bound = [_bind(*of, row, inventory, compiled[row], constants) for row, of in enumerate(stages)]
    rest = iter(bound)
    by_phase = tuple(tuple(islice(rest, len(p.partition.stages))) for p in programs)
    return by_phase, num_distinct


def compile_orders(
    orders: Sequence[Order],
    progress: Callable[[Progress], None] | None = None,
    known: dict[tuple[Any, ...], Any] | None = None,
) -> tuple[list[Any], int]:
    """Compiles what was ordered, equal orders once and several at a time.

    Args:
        orders: stages to compile.
        progress: told after each distinct one, in the calling thread.
        known: what was compiled before, by key; takes in what is new.

    Returns:
        What was compiled for each order, and how many had to be.

    Raises:
        BackendError: a backend refuses a stage; names it.
    """
    compiled: dict[tuple[Any, ...], Any] = {} if known is None else known
    distinct = {order.key: order for order in orders if order.key not in compiled}
    num_done = 0
    with ThreadPoolExecutor(os.cpu_count(), "gimlax compile") as pool:
        futures = {pool.submit(_compile, order): order for order in distinct.values()}
        try:
            for future in as_completed(futures):
                order = futures[future]
                compiled[order.key] = future.result()
                num_done += 1
                if progress is not None:
                    done = Progress(done=num_done, total=len(distinct), what=order.description)
                    progress(done)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return [compiled[order.key] for order in orders], len(distinct)


def _lower(
    program: Program, stage: Stage, row: int, inventory: Inventory, donates: Mapping[str, bool]
) -> Order:
    mesh = program.placement[stage.index]
    form = form_of(program, stage, row, inventory)
    description = program.describe_stage(stage.index)
    config = program.partition.traced.config
    with _jax.using_config(config):
        jitted = form.jit(donates=donates[mesh])
        try:
            lowered = jitted.lower(*form.inputs)
        except (NotImplementedError, RuntimeError) as error:
            raise BackendError(
                f"{description} cannot be lowered for its backend: {error}; place it elsewhere"
            ) from error
    key = (
        lowered.as_text(),
        tuple((i.shape, str(i.dtype)) for i in jax.tree.leaves(form.inputs)),
        jax.tree.structure(form.inputs),
        tuple(str(aval) for aval in stage.jaxpr.out_avals),
        tuple(aval.sharding for aval in jax.tree.leaves(form.inputs)),
        form.results,
        donates[mesh],
        config,
    )
    return Order(lowered=lowered, key=key, config=config, description=description)


def _compile(order: Order) -> Any:
    with _jax.using_config(order.config):
        try:
            return _jax.compile_lowered(order.lowered)
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
