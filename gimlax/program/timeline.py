"""Spans of time on meshes and links, the same record from simulation and from life; units: seconds.

Written as Chrome-trace JSON because Perfetto and chrome://tracing open it and it needs no library.
"""

import json
import os
from dataclasses import dataclass
from typing import Any

from gimlax.checking import check_arguments
from gimlax.errors import SpecError
from gimlax.planning import Plan
from gimlax.program.account import Account
from gimlax.program.accounting import account_for
from gimlax.program.picture import svg


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A task on a mesh, or on a link where `mesh` reads `a -> b`; seconds since the beginning."""

    mesh: str
    task: str
    start_s: float
    end_s: float

    def __post_init__(self) -> None:
        if not 0 <= self.start_s <= self.end_s:
            raise SpecError(
                f"span {self.task!r} on {self.mesh!r} runs from {self.start_s} s to {self.end_s} s;"
                " give times that start at 0 or later and do not run backwards"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    """What happened where; spans of one mesh or link do not overlap."""

    spans: tuple[Span, ...]

    @property
    def end_s(self) -> float:
        """The end of the last span, 0 without spans."""
        return max((span.end_s for span in self.spans), default=0.0)

    def tracks(self) -> tuple[str, ...]:
        """Names of the meshes and links, in the order in which they first have something to do."""
        ordered = sorted(self.spans, key=lambda span: span.start_s)
        return tuple(dict.fromkeys(span.mesh for span in ordered))

    def busy_s(self, track: str, task: str | None = None) -> float:
        """Seconds that a mesh or link was busy, with one task only if it is named."""
        return sum(
            span.end_s - span.start_s
            for span in self.spans
            if span.mesh == track and task in (None, span.task)
        )

    def compare(self, plan: Plan) -> Account:
        """Why it took as long as it did: each stage and link against what `plan` predicts.

        Args:
            plan: the one that was run.

        Raises:
            SpecError: it is no plan, or another one than was run; or nothing was recorded.
            PlanError: the plan has several routes.
        """
        check_arguments("timeline.compare", Timeline.compare, {"plan": plan})
        return account_for(self.spans, plan)

    def to_chrome_trace(self) -> dict[str, Any]:
        """The object form of the Trace Event Format: one named thread per mesh and link."""
        threads = {track: number for number, track in enumerate(self.tracks(), start=1)}
        named: list[dict[str, Any]] = [
            {"name": "process_name", "ph": "M", "pid": 1, "tid": 0, "args": {"name": "gimlax"}}
        ]
        for track, number in threads.items():
            for what, key, value in (
                ("thread_name", "name", track),
                ("thread_sort_index", "sort_index", number),
            ):
                named.append(
                    {"name": what, "ph": "M", "pid": 1, "tid": number, "args": {key: value}}
                )
        events = [
            {
                "name": span.task,
                "cat": "link" if " -> " in span.mesh else "mesh",
                "ph": "X",
                "pid": 1,
                "tid": threads[span.mesh],
                "ts": span.start_s * 1e6,
                "dur": (span.end_s - span.start_s) * 1e6,
            }
            for span in sorted(self.spans, key=lambda span: span.start_s)
        ]
        return {"traceEvents": named + events, "displayTimeUnit": "ms"}

    def to_svg(self) -> str:
        """A picture: a row for each mesh and link, with the name of a span where it is pointed at.

        Notebooks show it of a timeline that is the last value of a cell.
        """
        return svg(self.spans, self.tracks())

    def _repr_svg_(self) -> str:
        return self.to_svg()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the Chrome trace to a file that ui.perfetto.dev opens."""
        with open(path, "w", encoding="utf-8") as file:
            json.dump(self.to_chrome_trace(), file)
