"""Seconds of a group on one device, for each way to split it.

The equations of the group are given the shapes that one device has of their values and described
as operations, as whole segments are; the rates of the device price them. Units: seconds.
"""

import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any

import jax

from gimlax import _jax
from gimlax.graph.counting import count
from gimlax.graph.fusing import fuse
from gimlax.graph.operations import ELEMENTWISE, Operation
from gimlax.partition import Group, Run
from gimlax.partition.flattening import Step
from gimlax.partition.rules import is_chain
from gimlax.planning.rates import Rates

__all__ = ["Pricer", "Works", "local_operations"]


class Works:
    """What steps do, whatever device does it: found once for all meshes.

    Steps are known by identity, which those of equal segments share.
    """

    def __init__(self) -> None:
        self._alone: dict[tuple[Step, tuple[tuple[int, ...], ...]], tuple[Operation, ...]] = {}
        self._flops: dict[Step, float] = {}
        self._segments: dict[Hashable, tuple[Operation, ...]] = {}

    def alone(
        self, step: Step, values: Sequence[int], shapes: tuple[tuple[int, ...], ...]
    ) -> tuple[Operation, ...]:
        """The operations of a step whose values have these shapes on a device."""
        if (step, shapes) not in self._alone:
            eqn = _alone(step, dict(zip(values, shapes, strict=True)))
            self._alone[step, shapes] = tuple(fuse([eqn], escaping=eqn.outvars, resident=()))
        return self._alone[step, shapes]

    def flops(self, step: Step) -> float:
        """Of a whole step."""
        if step not in self._flops:
            self._flops[step] = sum(count(step.eqn).flops.values())
        return self._flops[step]

    def segment(
        self, key: Hashable, found: Callable[[], tuple[Operation, ...]]
    ) -> tuple[Operation, ...]:
        """The operations of a segment that lies as `key` says."""
        if key not in self._segments:
            self._segments[key] = found()
        return self._segments[key]


class Pricer:
    """Prices groups; equal operations once."""

    def __init__(self, rates: Rates, works: Works) -> None:
        self._rates = rates
        self._works = works
        self._known: dict[Operation, float] = {}

    def operation_s(self, operation: Operation) -> float:
        """Seconds of an operation, as often as it is done."""
        if operation not in self._known:
            self._known[operation] = operation.count * self._rates.seconds(operation)
        return self._known[operation]

    def group_s(self, run: Run, group: Group, parts: Mapping[int, int]) -> float:
        """Seconds of a group whose labels are split into so many `parts` each."""
        if group.small:
            return 0.0

        def shape(value: int) -> tuple[int, ...]:
            of = group.labels[value]
            sizes = run.flat.avals[value].shape
            return tuple(
                s // parts.get(x, 1) if x is not None else s for s, x in zip(sizes, of, strict=True)
            )

        first = run.flat.steps[group.steps[0]]
        if is_chain(first.eqn):
            return self._chain_s(run, group, shape)
        operands = [v for v in first.inputs if v is not None]
        values = (*operands, *first.outputs)
        found = self._works.alone(first, values, tuple(map(shape, values)))
        return sum(map(self.operation_s, found))

    def _chain_s(self, run: Run, group: Group, shape: Callable[[int], tuple[int, ...]]) -> float:
        """A chain streams its inputs and results through memory once."""

        def num_bytes(values: Iterable[int]) -> float:
            avals = (jax.ShapeDtypeStruct(shape(v), run.flat.avals[v].dtype) for v in values)
            return float(sum(map(_jax.nbytes, avals)))

        writes = group.writes
        if not writes or all(math.prod(run.flat.avals[v].shape) < 2 for v in writes):
            return 0.0
        flops = 0.0
        for index in group.steps:
            step = run.flat.steps[index]
            whole = math.prod(run.flat.avals[step.outputs[0]].shape)
            share = math.prod(shape(step.outputs[0])) / max(whole, 1)
            flops += share * self._works.flops(step)
        if not flops and num_bytes(group.reads) == num_bytes(writes):
            return 0.0  # only names of memory
        operation = Operation(
            kind=ELEMENTWISE,
            dims=(max(math.prod(shape(v)) for v in writes),),
            dtype=str(run.flat.avals[writes[0]].dtype),
            flops=flops,
            bytes_read=num_bytes(group.reads),
            bytes_written=num_bytes(writes),
        )
        return self.operation_s(operation)


def local_operations(
    run: Run, shape_of: Callable[[int, int], tuple[int, ...]]
) -> tuple[Operation, ...]:
    """The operations of a run on one device.

    Args:
        run: a segment.
        shape_of: what one device has, at a step, of a value.
    """
    flat = run.flat
    variables: dict[tuple[int, tuple[int, ...]], _jax.Var] = {}

    def atoms(at: int, values: Sequence[int | None], old: Sequence[_jax.Atom]) -> list[Any]:
        found: list[Any] = []
        for value, atom in zip(values, old, strict=True):
            if value is None:
                found.append(atom)
                continue
            key = (value, shape_of(at, value))
            if key not in variables:
                variables[key] = _jax.Var(_jax.reshaped(atom, key[1]))
            found.append(variables[key])
        return found

    eqns: list[_jax.JaxprEqn] = []
    uncounted: set[int] = set()
    inside: dict[int, tuple[int, list[int]]] = {}  # composite -> its place and its steps
    for index, step in enumerate(flat.steps):
        if step.fused is None:
            if index in run.uncounted:
                uncounted.add(len(eqns))
            eqns.append(_localised(step, atoms, index))
        elif step.fused in inside:
            inside[step.fused][1].append(index)
        else:
            inside[step.fused] = (len(eqns), [index])
            eqns.append(step.eqn)  # the composite will stand here
    for number, (place, steps) in inside.items():
        fused = flat.fused[number]
        body = [_localised(flat.steps[index], atoms, index) for index in steps]
        readers = {v: i for i in reversed(steps) for v in flat.steps[i].inputs if v is not None}
        writers = {v: i for i in steps for v in flat.steps[i].outputs}
        inputs = [
            atoms(readers.get(v, steps[0]), [v], [a])[0] if v is not None else a
            for v, a in zip(fused.inputs, fused.eqn.invars, strict=True)
        ]
        outputs = [
            atoms(writers.get(v, steps[0]), [v], [a])[0] if v is not None else a
            for v, a in zip(fused.outputs, fused.eqn.outvars, strict=True)
        ]
        eqns[place] = _jax.with_body(fused.eqn, inputs, outputs, body)
    parameters = {v for v, s in run.sources.items() if s.kind in ("resident", "constant")}
    return fuse(
        eqns,
        escaping=[var for (value, _), var in variables.items() if value in run.escaping],
        resident=[var for (value, _), var in variables.items() if value in parameters],
        uncounted=frozenset(uncounted),
    )


def _localised(step: Step, atoms: Callable[..., list[Any]], at: int) -> _jax.JaxprEqn:
    inputs = atoms(at, step.inputs, step.eqn.invars)
    return _jax.with_shapes(step.eqn, inputs, atoms(at, step.outputs, step.eqn.outvars))


def _alone(step: Step, shapes: Mapping[int, tuple[int, ...]]) -> _jax.JaxprEqn:
    made = {
        v: _jax.Var(_jax.reshaped(a, shapes[v]))
        for v, a in zip(
            (*step.inputs, *step.outputs), (*step.eqn.invars, *step.eqn.outvars), strict=True
        )
        if v is not None
    }
    inputs = [
        a if v is None else made[v] for v, a in zip(step.inputs, step.eqn.invars, strict=True)
    ]
    return _jax.with_shapes(step.eqn, inputs, [made[v] for v in step.outputs])
