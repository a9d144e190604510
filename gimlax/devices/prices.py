"""What an hour of one device costs: rows by provider, region and kind of contract.

A price without provider and date says nothing, so it is a row with both rather than a figure of the
device. Units: US dollars an hour, of one JAX device.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from gimlax.checking import mistakes_of_fields, shown
from gimlax.errors import SpecError

__all__ = ["PRICE_KINDS", "Price"]

PRICE_KINDS = ("on_demand", "spot", "reserved", "owned", "list")


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """One row.

    Attributes:
        provider: who asks for it.
        region: where it holds, empty where that is not known.
        kind: 'on_demand', 'spot', 'reserved' (for a term), 'owned' (what it costs its owner) or
            'list' (asked for publicly, usually above what is paid).
        usd_per_hour: of one JAX device.
        source: where it was read.
        date: when, as year and month or day.
    """

    provider: str
    region: str
    kind: str
    usd_per_hour: float
    source: str
    date: str

    def __post_init__(self) -> None:
        if wrong := mistakes_of_fields(self) or list(self._mistakes()):
            raise SpecError(f"price of {shown(self.provider)}: {'; '.join(wrong)}")

    def _mistakes(self) -> Iterator[str]:
        if self.kind not in PRICE_KINDS:
            yield f"kind is {self.kind!r}; give one of {', '.join(PRICE_KINDS)}"
        if not (self.usd_per_hour > 0 and math.isfinite(self.usd_per_hour)):
            yield f"usd_per_hour is {self.usd_per_hour}; give a positive figure"
        if not self.provider:
            yield "its provider is empty; name who asks for it"
