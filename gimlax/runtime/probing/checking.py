"""`probe`, and what a compilation asks of it: a report, an error if it is bad."""

from typing import Any

from gimlax.checking import shown
from gimlax.errors import BackendError, SpecError
from gimlax.runtime.probing.bisecting import find_divergence
from gimlax.runtime.probing.probing import Probe, probe_program
from gimlax.runtime.probing.reference import Reference
from gimlax.runtime.probing.report import Report
from gimlax.runtime.probing.seam import Probeable, Target

__all__ = ["ADVICE", "examine", "probe", "require"]

ADVICE = (
    "place it elsewhere; if products of matrices run at lower precision there, trace under"
    " jax.default_matmul_precision('highest')"
)


def probe(executable: Probeable, *args: Any, **kwargs: Any) -> Report:
    """Runs every stage on its backend and on the reference, and compares what comes out.

    The reference is JAX's CPU client in float32: narrower parameters, state and inputs are widened.
    A stage is given what the reference made of the stages before it, so a breach is its own.
    Handles stay good: state is read and not used up.

    Args:
        executable: what `compile` returns for a phase.
        *args: as in a call; without any they are made from the shapes that were traced.
        **kwargs: streamed arguments by keyword.

    Returns:
        A report that prints as a table. It says of the first stage with a breach which segment
        diverges first.

    Raises:
        TraceError, SpecError: as a call with these arguments does.
        BackendError: a stage failed, or there is no CPU client.
    """
    if not hasattr(executable, "target"):
        raise SpecError(
            f"gimlax.probe was given {shown(executable)}; give what gimlax.compile returns, of a"
            " workload one of its phases"
        )
    target = executable.target(args, kwargs)
    return examine(target, Reference(target.runner.program.partition.traced.config))


def examine(target: Target, reference: Reference, *, bisect: bool = True) -> Report:
    """The report on a target; where to `bisect`, with the segment that diverges first."""
    probe = Probe(target.runner, reference, target.edges)
    report, values = probe_program(probe, target)
    broken = [f.stage for f in report.breaches if not f.is_transfer]
    if not broken or target.phase is None or not bisect:
        return report
    if target.observed is not None:
        values.update(target.observed.received(broken[0]))
    divergence = find_divergence(probe, target.phase, broken[0], target.given, values)
    return report.with_divergence(divergence)


def require(report: Report) -> None:
    """Raises `BackendError` if a report has a breach; names stage, segment, error and bound."""
    if not report.ok:
        raise BackendError(f"{report.explain()}; {ADVICE}")
