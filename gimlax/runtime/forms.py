"""The form of a stage as it is compiled: one function, its inputs, and how its results lie.

A stage takes four tuples: the rows of each resident tree, the arrays of each carried tree, its
constants, and what is streamed or received; it returns the updated arrays of each carried tree,
what it produces, and a completion token: four bytes that nobody donates, ready when the stage is
done. A mesh may be live or an `AbstractMesh`: a form needs no devices, so the same one is compiled
here or exported for another process.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from gimlax.graph import Part, Role
from gimlax.partition import Stage
from gimlax.program import Program
from gimlax.runtime.inventory import Inventory

__all__ = ["Form", "form_of"]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Form:
    """A stage as a function over all state that it owns, also what only other phases use.

    `inputs` are four tuples of `jax.ShapeDtypeStruct`s with shardings, `results` the shardings of
    what `function` returns.
    """

    function: Callable[..., Any]
    inputs: tuple[Any, ...]
    results: tuple[Any, ...]

    def jit(self, *, donates: bool) -> Any:
        """The function under `jax.jit`; where it `donates`, it takes over the carried state."""
        return jax.jit(
            self.function,
            keep_unused=True,
            donate_argnums=1 if donates else (),
            out_shardings=self.results,
        )


def form_of(program: Program, stage: Stage, row: int, inventory: Inventory) -> Form:
    """The form of one stage.

    Args:
        program: that it belongs to.
        stage: a stage.
        row: its number among the stages of all phases.
        inventory: how arguments lie on the meshes.
    """
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
    function = _with_token(stage, rows, state, lying.evaluator(mesh, program, stage))
    return Form(function=function, inputs=inputs, results=results)


def _with_token(
    stage: Stage,
    rows: tuple[tuple[Part, ...], ...],
    state: tuple[tuple[Part, ...], ...],
    evaluate: Callable[..., list[Any]],
) -> Callable[..., tuple[Any, ...]]:
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
