"""What a probe has found, as a record and as a table: error, bound and verdict of every value."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from gimlax.planning import Tolerance

__all__ = ["BREACH", "OK", "UNDECIDED", "Divergence", "Finding", "Report"]

OK = "ok"
BREACH = "BREACH"
UNDECIDED = "undecided"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One value that left a stage, or crossed a link.

    Attributes:
        stage: that made it.
        mesh: of the stage; of a link, `source -> target`.
        what: the value in words.
        dtype, shape: of the array.
        absolute, relative, ulp: the error, as `Difference` has it.
        bound: the largest absolute error that is allowed; steps are told by `tolerance`.
        tolerance: what is allowed.
        num_outside: elements further off than that.
        num_undecided: elements that would be, but that the reference does not decide either: it
            gives another result itself in the dtypes of the stage, or for inputs that differ in the
            last bits. An argmax between two equal logits is one.
        verdict: 'ok', 'BREACH', or 'undecided': nothing is outside but what is undecided.
    """

    stage: int
    mesh: str
    what: str
    dtype: str
    shape: tuple[int, ...]
    absolute: float
    relative: float
    ulp: float
    bound: float
    tolerance: Tolerance
    num_outside: int
    num_undecided: int
    verdict: str

    @property
    def is_transfer(self) -> bool:
        """Whether it is of a link and not of a stage."""
        return " -> " in self.mesh

    def __str__(self) -> str:
        return (
            f"{self.what} ({self.dtype}{list(self.shape)}) is off by {self.absolute:.2g}"
            f" ({self.relative:.2g} of the largest, {self.ulp:.3g} ULP) in {self.num_outside}"
            f" elements, where {_allowed(self)} is allowed"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Divergence:
    """Where in a stage a breach begins.

    Attributes:
        stage: the stage.
        segments: names of the segments that diverge though what they are given is right: one, or a
            run that cannot be cut or of which no half diverges alone.
        finding: the worst breach of that run compiled alone, None if the stage as a whole breaches
            and no part of it does.
    """

    stage: int
    segments: tuple[str, ...]
    finding: Finding | None

    def __str__(self) -> str:
        first, last = self.segments[0], self.segments[-1]
        span = repr(first) if len(self.segments) == 1 else f"{first!r} to {last!r}"
        if self.finding is None:
            return f"compiled in parts none of {span} diverges, only the whole does"
        one = "the first segment that diverges is" if first == last else "it begins in"
        return f"{one} {span}: {self.finding}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """All findings of one probe of one phase; `print` shows a table.

    Attributes:
        phase: what was run.
        inputs: where the inputs were from.
        stages: each stage in words.
        findings: in the order of the stages, those of links last.
        divergence: of the first stage with a breach, where it was looked for.
    """

    phase: str
    inputs: str
    stages: tuple[str, ...]
    findings: tuple[Finding, ...]
    divergence: Divergence | None = None

    @property
    def breaches(self) -> tuple[Finding, ...]:
        """What is further off than it may be."""
        return tuple(finding for finding in self.findings if finding.verdict == BREACH)

    @property
    def ok(self) -> bool:
        """Whether nothing is."""
        return not self.breaches

    def with_divergence(self, divergence: Divergence) -> "Report":
        """The same with where the first breach begins."""
        return replace(self, divergence=divergence)

    def explain(self) -> str:
        """The first breach in a sentence: stage, first segment, error, bound; empty without one."""
        if self.ok:
            return ""
        first = self.breaches[0]
        where = self.stages[first.stage] if not first.is_transfer else f"link {first.mesh!r}"
        parts = [f"{where} breaks the numerical contract: {first}"]
        if len(self.breaches) > 1:
            parts.append(f"{len(self.breaches) - 1} more values are off")
        if self.divergence is not None:
            parts.append(str(self.divergence))
        return "; ".join(parts)

    def __str__(self) -> str:
        rows = [("stage", "mesh", "value", "absolute", "relative", "ULP", "bound", "verdict")]
        rows += [
            (
                str(f.stage),
                f.mesh,
                f"{f.what} {f.dtype}{list(f.shape)}",
                f"{f.absolute:.2g}",
                f"{f.relative:.2g}",
                f"{f.ulp:.3g}",
                _allowed(f),
                f.verdict + (f", {f.num_undecided} undecided" if f.num_undecided else ""),
            )
            for f in self.findings
        ]
        num = len(self.breaches)
        said = "all within their bounds" if self.ok else f"{num} beyond their bounds"
        lines = [*_columns(rows), f"{self.phase!r} with {self.inputs}: {said}"]
        return "\n".join(lines if self.ok else [*lines, self.explain()])


def _allowed(finding: Finding) -> str:
    if not finding.tolerance.computed_in:
        return "none"
    return f"{finding.bound:.2g} or {finding.tolerance.ulp:g} ULP"


def _columns(rows: list[tuple[str, ...]]) -> Iterator[str]:
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    for index, row in enumerate(rows):
        yield " | ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip()
        if not index:
            yield "-+-".join("-" * width for width in widths)
