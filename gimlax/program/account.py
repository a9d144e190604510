"""Where the time of a recording went, beside what its plan predicted; units: seconds.

A record of numbers and one sentence, which prints as two tables: stages and links against their
prediction, and each mesh and link over the whole recording. Per stage and per mesh stand apart
because a mesh waits, and a stage does not.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from gimlax.errors import SpecError
from gimlax.records import Amount, Count, from_json, to_json
from gimlax.units import show_seconds

SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A stage or a link in one phase; seconds of one pass, on average.

    Attributes:
        what: 'stage 1', or a link as 'a -> b'.
        track: the mesh of the stage, or the link.
        predicted_s: by the plan. basis: what that rests on, as in the plan.
        slowest_s: of its spans, the longest.
        receiving_s: of a stage, while its own input was still on the way to its mesh.
        shared_s: of a stage, while a mesh that shares its host was running; `shared_with` is that
            mesh, empty if there is none.
    """

    phase: str
    what: str
    track: str
    passes: Count
    predicted_s: Amount
    measured_s: Amount
    slowest_s: Amount
    basis: str
    receiving_s: Amount = 0.0
    shared_s: Amount = 0.0
    shared_with: str = ""

    @property
    def excess_s(self) -> float:
        """Of all passes, measured less predicted; negative where it was faster."""
        return self.passes * (self.measured_s - self.predicted_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """What a mesh or link did during the whole recording; the four add up to it.

    Attributes:
        computing_s: running a stage.
        copying_s: of a link, carrying values; of a mesh, not computing while values came to it.
        waiting_s: none of these, while another mesh or link was at work.
        idle_s: nothing was at work anywhere.
    """

    track: str
    computing_s: Amount
    copying_s: Amount
    waiting_s: Amount
    idle_s: Amount


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """A recording of `seconds`, accounted for; `sentence` names what differs most from the plan."""

    seconds: Amount
    entries: tuple[Entry, ...]
    uses: tuple[Use, ...]
    sentence: str

    def __str__(self) -> str:
        many_phases = len({entry.phase for entry in self.entries}) > 1
        rows = [["", "mesh", "passes", "predicted", "measured", "", "slowest", "receiving"]]
        for entry in self.entries:
            link = entry.what == entry.track
            rows.append(
                [
                    f"{entry.phase}: {entry.what}" if many_phases else entry.what,
                    "-" if link else entry.track,
                    str(entry.passes),
                    show_seconds(entry.predicted_s),
                    show_seconds(entry.measured_s),
                    f"x {entry.measured_s / entry.predicted_s:.2g}" if entry.predicted_s else "",
                    show_seconds(entry.slowest_s),
                    "-" if link else show_seconds(entry.receiving_s),
                ]
            )
        shares = [["", "computing", "copying", "waiting", "idle"]]
        for use in self.uses:
            parts = (use.computing_s, use.copying_s, use.waiting_s, use.idle_s)
            shares.append([use.track, *(f"{part / self.seconds:.0%}" for part in parts)])
        lines = [*_columns(rows), "", f"of {show_seconds(self.seconds)}:", *_columns(shares)]
        return "\n".join([*lines, "", self.sentence])

    def to_json(self) -> str:
        """The account as JSON."""
        return to_json(self, SCHEMA_VERSION)

    @classmethod
    def from_json(cls, text: str, *, name: str = "account") -> Self:
        """The account that `to_json` wrote.

        Raises:
            SpecError: it is none, or of another schema version.
        """
        advice = "compare a timeline with its plan again"
        return from_json(cls, text, SCHEMA_VERSION, name, error=SpecError, advice=advice)


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
