"""How much gimlax knows of a kind of device first hand: a tier, when it was reached, and by what.

Figures on a card say what a device should do; a tier says whether anybody here has seen it. Data
(`catalogue/evidence.toml`), since it changes with every device that somebody tries.
"""

import datetime
import functools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from gimlax.checking import shown
from gimlax.devices.catalogue import catalogue, read_data
from gimlax.errors import SpecError

__all__ = ["TIERS", "Evidence", "find_evidence", "read_evidence"]

# From the lowest to the highest.
TIERS = ("figures only", "lowered only", "compiled for", "ran")
_KEYS = ("device_kind", "tier", "date", "what")


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """The tier of a kind; `date` (ISO) and `what` was done are empty for 'figures only'."""

    device_kind: str
    tier: str
    date: str = ""
    what: str = ""

    @property
    def rank(self) -> int:
        """The place of its tier in TIERS, where higher is better."""
        return TIERS.index(self.tier)

    def __str__(self) -> str:
        return f"{self.tier} ({self.date})" if self.date else self.tier


def find_evidence(device_kind: str) -> Evidence:
    """What there is of a kind, by its name in the catalogue; 'figures only' of any other."""
    nothing = Evidence(device_kind=device_kind, tier=TIERS[0])
    return _shipped().get(device_kind, nothing)


@functools.cache
def _shipped() -> dict[str, Evidence]:
    tables = read_data("evidence.toml")["evidence"]
    found = read_evidence(tables, [kind.name for kind in catalogue()])
    return {of.device_kind: of for of in found}


def read_evidence(tables: Iterable[dict[str, Any]], kinds: Iterable[str]) -> tuple[Evidence, ...]:
    """The `[[evidence]]` tables of a file, each of another of these kinds.

    Raises:
        SpecError: all that is wrong with any of them.
    """
    mistakes: list[str] = []
    found: dict[str, Evidence] = {}
    kinds = set(kinds)
    for number, table in enumerate(tables):
        where = f"evidence {number} ({shown(table.get('device_kind'))})"
        if sorted(table) != sorted(_KEYS) or not all(isinstance(v, str) for v in table.values()):
            mistakes.append(f"{where} has {shown(table)}; give {', '.join(_KEYS)} as strings")
            continue
        evidence = Evidence(**table)
        if evidence.device_kind not in kinds:
            mistakes.append(f"{where} is of no kind of the catalogue; correct its name")
        if evidence.device_kind in found:
            mistakes.append(f"{where} is there twice; keep the better one")
        if evidence.tier not in TIERS[1:]:
            known = ", ".join(map(repr, TIERS[1:]))
            mistakes.append(f"{where} has tier {evidence.tier!r}; give one of {known}")
        if not evidence.what or not evidence.what.isprintable():
            mistakes.append(f"{where} does not say what was done, on a line; say it in 'what'")
        try:
            datetime.date.fromisoformat(evidence.date)
        except ValueError:
            mistakes.append(f"{where} has date {evidence.date!r}; give year-month-day")
        found[evidence.device_kind] = evidence
    if mistakes:
        raise SpecError("\n".join(mistakes))
    return tuple(found.values())
