"""What a backend makes of the operations, as a record, a table and JSON."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from gimlax.runtime.conformance.operations import needed, operations

__all__ = ["CRASHED", "OFF", "RIGHT", "UNSUPPORTED", "Conformance", "Outcome"]

RIGHT = "right"
OFF = "off"
UNSUPPORTED = "unsupported"
CRASHED = "crashed"

_CELLS = {UNSUPPORTED: "none", CRASHED: "CRASH"}
_GOOD = (RIGHT, UNSUPPORTED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of an operation in a dtype.

    Attributes:
        operation, dtype: which.
        status: 'right', 'off' (beyond its bound), 'unsupported', or 'crashed' (its process ended).
        absolute, relative, ulp, bound, result: of the result that is furthest off: its error, the
            largest absolute error that is allowed, its dtype and shape.
        why: what the backend said, where it does not run.
    """

    operation: str
    dtype: str
    status: str
    absolute: float = 0.0
    relative: float = 0.0
    ulp: float = 0.0
    bound: float = 0.0
    result: str = ""
    why: str = ""

    @property
    def rank(self) -> tuple[bool, float]:
        """The worse, the higher."""
        return self.status != RIGHT, self.relative


@dataclass(frozen=True, slots=True, kw_only=True)
class Conformance:
    """What a backend makes of all cases; `print` shows a table.

    Attributes:
        platform: registered name of the backend.
        device_kind: what its first device calls itself.
        version: what its client says of itself.
        jax: version of JAX.
        outcomes: in the order of the list.
    """

    platform: str
    device_kind: str
    version: str
    jax: str
    outcomes: tuple[Outcome, ...]

    @property
    def failures(self) -> tuple[Outcome, ...]:
        """What keeps the backend from being fit: wrong, crashed, or missing in a needed dtype."""
        return tuple(
            of
            for of in self.outcomes
            if of.status not in _GOOD or (of.status == UNSUPPORTED and of.dtype in needed())
        )

    def to_json(self) -> str:
        """All of it as JSON."""
        record = asdict(self) | {"fit": not self.failures}
        return json.dumps(record, indent=1, default=str) + "\n"

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        by_case = {(of.operation, of.dtype): of for of in self.outcomes}
        used = {of.dtype for of in self.outcomes}
        dtypes = [d for d in dict.fromkeys(d for o in operations() for d in o.dtypes) if d in used]
        names = [of.name for of in operations() if any((of.name, d) in by_case for d in dtypes)]
        rows = [["operation", *dtypes]]
        rows += [[name, *(_cell(by_case.get((name, d))) for d in dtypes)] for name in names]
        widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
        yield f"{self.platform!r}: {self.device_kind}, {self.version}; JAX {self.jax}"
        yield "errors relative to the largest magnitude of the reference; = equal, - not tried"
        yield ""
        for index, row in enumerate(rows):
            yield " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip()
            if not index:
                yield "-+-".join("-" * width for width in widths)
        yield from self._told(OFF, "beyond their bounds")
        yield from self._told(CRASHED, "ended the process")
        yield from self._told(UNSUPPORTED, "not supported")
        yield ""
        counts = {
            s: sum(of.status == s for of in self.outcomes)
            for s in (RIGHT, OFF, CRASHED, UNSUPPORTED)
        }
        said = ", ".join(f"{n} {status}" for status, n in counts.items() if n)
        verdict = "fit" if not self.failures else f"not fit, for {len(self.failures)} of them"
        yield f"{len(self.outcomes)} cases: {said}; {self.platform!r} is {verdict}"

    def _told(self, status: str, words: str) -> Iterator[str]:
        found = [of for of in self.outcomes if of.status == status]
        if not found:
            return
        yield ""
        yield f"{words}:"
        uses = {of.name: of.used_by for of in operations()}
        for of in found:
            if status == OFF:
                said = (
                    f"{of.result} is off by {of.absolute:.2g} ({of.relative:.2g} of the largest,"
                    f" {of.ulp:.3g} ULP), {of.bound:.2g} is allowed"
                )
            else:
                said = of.why
            must = " [needed]" if status == UNSUPPORTED and of.dtype in needed() else ""
            yield f"  {of.operation} {of.dtype}{must} ({uses[of.operation]}): {said}"


def _cell(outcome: Outcome | None) -> str:
    if outcome is None:
        return "-"
    if outcome.status in _CELLS:
        return _CELLS[outcome.status]
    error = "=" if not outcome.absolute else f"{outcome.relative:.1e}"
    return error if outcome.status == RIGHT else f"{error} OFF"
