"""Runs every stage on its backend and on the reference, and compares what comes out.

Errors do not pile up: a stage is given what the *reference* made of the stages before it, rounded
to the dtypes in which that crosses, and the reference of the stage is given the very same numbers.
So an error belongs to the stage in which it is found, and a breach in one stage says nothing about
the next. What a link does to values is looked at apart from stages. Of a pass that was run already
each stage, and its reference, is given what it was given then; to the same end.

An element further off than its tolerance is judged once more before it counts: if the reference
gives something else itself, in the dtypes of the stage or for inputs that differ in their last
bits, then it does not decide that element (an argmax between equal logits, a sum that cancels), and
neither does the probe.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from gimlax.graph import Part, Role
from gimlax.graph.widening import widen_arrays
from gimlax.partition import Stage
from gimlax.planning import EdgeTolerance, Tolerance
from gimlax.planning.tolerances import BETWEEN_CLIENTS, SAME_CLIENT, narrowest, tolerance
from gimlax.program import Program
from gimlax.runtime.handles import to_host
from gimlax.runtime.probing.comparing import Difference, compare_arrays, narrowed
from gimlax.runtime.probing.reference import Reference
from gimlax.runtime.probing.report import BREACH, OK, UNDECIDED, Finding, Report
from gimlax.runtime.probing.seam import Given, Observed, StageInputs, StageRunner, Target

__all__ = ["Probe", "probe_program"]

# To see what the reference decides, inputs are moved so many times by so many roundings of the
# narrowest dtype of the stage.
_NUM_MOVED = 8
_LAST_BITS = 4


class Probe:
    """Stages of one runner against one reference."""

    def __init__(
        self,
        runner: StageRunner,
        reference: Reference,
        edges: Sequence[EdgeTolerance] = (),
    ) -> None:
        """`edges` are what the plan allows from each stage to the next, none for the usual."""
        self.runner = runner
        self.reference = reference
        self._edges = dict(enumerate(edges))

    @property
    def program(self) -> Program:
        """What is probed."""
        return self.runner.program

    def inputs(self, stage: Stage, given: Given, values: Mapping[int, Any]) -> StageInputs:
        """What a stage takes, where `values` are those that stages before it made."""
        traced = self.program.partition.traced
        streamed = traced.leaves(Role.STREAMED)
        return StageInputs(
            resident=tuple(given(Role.RESIDENT, part) for part in stage.resident),
            carried=tuple(given(Role.CARRIED, part) for part in stage.carried),
            constants=tuple(to_host(traced.jaxpr.consts[i]) for i in stage.constants),
            streamed=tuple(given(Role.STREAMED, Part(streamed.index(i))) for i in stage.streamed),
            received=tuple(values[v] for v in stage.received),
        )

    def stage(self, stage: Stage, inputs: StageInputs) -> tuple[list[Finding], dict[int, Any]]:
        """What was found of a stage, and the reference of what it produces in its own dtypes."""
        expected = self.reference.run(stage.jaxpr, inputs.flat)
        found = self.runner.run(stage.index, inputs)
        named = list(self.named(stage))
        checks = [
            (tolerance, compare_arrays(mine, theirs, tolerance))
            for (_, tolerance), mine, theirs in zip(named, found.flat, expected, strict=True)
        ]
        outside = [difference.outside for _, difference in checks]
        undecided = [np.zeros(of.shape, bool) for of in outside]
        if any(of.any() for of in outside):
            undecided = self._undecided(stage, inputs, expected, [t for t, _ in checks])
        findings = [
            self._finding(stage.index, self._mesh(stage), what, mine, *check, unsure)
            for (what, _), mine, check, unsure in zip(
                named, found.flat, checks, undecided, strict=True
            )
        ]
        produced = expected[len(stage.carried) :]
        avals = self.program.partition.avals
        return findings, {
            value: narrowed(array, avals[value].dtype)
            for value, array in zip(stage.produced, produced, strict=True)
        }

    def links(self, values: dict[int, Any], observed: Observed | None = None) -> Iterator[Finding]:
        """What each transfer makes of the values that cross it, or made of those observed."""
        partition = self.program.partition
        producer = {v: stage for stage in partition.stages for v in stage.produced}
        for (source, target), todo in self.program.links:
            named = (e for e in self._edges.values() if (e.source, e.target) == (source, target))
            edge = next(named, None)
            for transfer in todo:
                if observed is not None:
                    sent = observed.sent(transfer)
                else:
                    sent = [values[v] for v in transfer.values]
                for value, before, after in zip(
                    transfer.values, sent, self.runner.send(transfer, sent), strict=True
                ):
                    stage = producer[value]
                    allowed = self._tolerance(stage, before.dtype, edge)
                    difference = compare_arrays(after, before, allowed)
                    yield self._finding(
                        stage.index,
                        f"{source} -> {target}",
                        f"transfer of {self._value(stage, value)}",
                        before,
                        allowed,
                        difference,
                        np.zeros(difference.outside.shape, bool),
                    )

    def _mesh(self, stage: Stage) -> str:
        return self.program.placement[stage.index]

    def _undecided(
        self,
        stage: Stage,
        inputs: StageInputs,
        expected: Sequence[Any],
        tolerances: Sequence[Tolerance],
    ) -> list[np.ndarray]:
        """By result and element, whether the reference gives something else itself."""
        rng = np.random.default_rng(stage.index)
        bits = _LAST_BITS * float(jnp.finfo(narrowest([stage.jaxpr]) or np.float32).eps) / 2
        others = [self.reference.run_as_written(stage.jaxpr, inputs.flat)]
        for _ in range(_NUM_MOVED):
            moved = [_moved(array, bits, rng) for array in inputs.flat]
            others.append(self.reference.run(stage.jaxpr, moved))
        return [
            np.logical_or.reduce(
                [
                    compare_arrays(
                        narrowed(other[k], tolerance.dtype), expected[k], tolerance
                    ).outside
                    for other in others
                ]
            )
            for k, tolerance in enumerate(tolerances)
        ]

    def named(self, stage: Stage) -> Iterator[tuple[str, Tolerance]]:
        """Each result of a stage in words, with what is allowed."""
        partition = self.program.partition
        traced = partition.traced
        for part in stage.carried:
            argument = traced.arguments[partition.leaf(Role.CARRIED, part)]
            rows = "" if part.whole else f", rows {part.start} to {part.stop - 1}"
            yield f"state {argument.path}{rows}", self._tolerance(stage, argument.aval.dtype)
        for value in stage.produced:
            dtype = partition.avals[value].dtype
            crosses = any(e.source == stage.index and value in e.values for e in partition.edges)
            edge = self._edges.get(stage.index) if crosses else None
            if edge is not None and edge.narrowing:  # which is for what the link does to it
                edge = None
            yield self._value(stage, value), self._tolerance(stage, dtype, edge)

    def _value(self, stage: Stage, value: int) -> str:
        partition = self.program.partition
        outputs = [
            output.path
            for output, of in zip(partition.traced.outputs, partition.outputs, strict=True)
            if of == value
        ]
        if outputs:
            return f"output {outputs[0] or partition.traced.name}"
        edge = next(e for e in partition.edges if e.source == stage.index and value in e.values)
        return f"value {edge.values.index(value)} for stage {edge.target}"

    def _tolerance(self, stage: Stage, dtype: Any, edge: EdgeTolerance | None = None) -> Tolerance:
        """What the edge allows, and at least what two clients may differ by, if they are two."""
        same = self.runner.is_reference(self._mesh(stage))
        computed_in = narrowest([stage.jaxpr])
        usual = tolerance(dtype, SAME_CLIENT if same else BETWEEN_CLIENTS, computed_in)
        of_edge = edge.of(usual.dtype) if edge else None
        return usual.looser(of_edge) if of_edge else usual

    def _finding(
        self,
        stage: int,
        mesh: str,
        what: str,
        array: Any,
        tolerance: Tolerance,
        difference: Difference,
        undecided: np.ndarray,
    ) -> Finding:
        outside = int(np.count_nonzero(difference.outside & ~undecided))
        unsure = int(np.count_nonzero(difference.outside & undecided))
        return Finding(
            stage=stage,
            mesh=mesh,
            what=what,
            dtype=tolerance.dtype,
            shape=tuple(array.shape),
            absolute=difference.absolute,
            relative=difference.relative,
            ulp=difference.ulp,
            bound=tolerance.bound(difference.largest),
            tolerance=tolerance,
            num_outside=outside,
            num_undecided=unsure,
            verdict=BREACH if outside else UNDECIDED if unsure else OK,
        )


def probe_program(probe: Probe, target: Target) -> tuple[Report, dict[int, Any]]:
    """Probes all stages and links of a target.

    Args:
        probe: its runner and the reference.
        target: with its arguments.

    Returns:
        The report, and the reference of all values.
    """
    program, observed = probe.program, target.observed
    values: dict[int, Any] = {}
    findings: list[Finding] = []
    for stage in program.partition.stages:
        came = values if observed is None else observed.received(stage.index)
        found, made = probe.stage(stage, probe.inputs(stage, target.given, came))
        findings += found
        values.update(made)
    findings += probe.links(values, observed)
    report = Report(
        phase=program.phase,
        inputs=target.inputs,
        stages=tuple(map(program.describe_stage, range(len(program.placement)))),
        findings=tuple(findings),
    )
    return report, values


def _moved(array: Any, bits: float, rng: np.random.Generator) -> Any:
    """An array whose floats are off by this share of themselves, to either side."""
    if not jnp.issubdtype(array.dtype, np.floating):
        return array
    sign = rng.integers(0, 2, array.shape) * 2 - 1
    (wide,) = widen_arrays([np.asarray(array)])
    return (wide * (1 + sign * bits)).astype(wide.dtype)
