"""One figure of a card: a number in a unit, which way it goes, where it is from, and when.

In a card a figure is a table `{ value, unit, direction, source, date, note }`; in the records it is
a number in the unit that ends its key: bytes, bytes/s, FLOP/s, watts.
"""

import datetime
import re
from collections.abc import Mapping
from decimal import Decimal
from types import MappingProxyType
from typing import Any

from gimlax.devices.tables import TableReader

__all__ = ["UNITS", "FigureReader"]

_BYTES = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "PB": 10**15}
_BINARY = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}

UNITS: Mapping[str, Mapping[str, int]] = MappingProxyType(
    {
        "bytes_per_s": {f"{unit}/s": factor for unit, factor in (_BYTES | _BINARY).items()},
        "flops_per_s": {
            "FLOP/s": 1,
            "GFLOP/s": 10**9,
            "TFLOP/s": 10**12,
            "PFLOP/s": 10**15,
        },
        "bytes": _BYTES | _BINARY,
        "watts": {"W": 1, "kW": 10**3},
        "devices": {"devices": 1},
    }
)
"""The units that a card may use, by what is measured, with their factors."""

_DIRECTIONS = {"one_way": 1, "both": 2}
_DATE = re.compile(r"\d{4}-\d{2}(-\d{2})?")
_MOST = 1e24  # beyond every unit above: a figure like that is a slip of the pen
UNKNOWN = "unknown"


class FigureReader:
    """Reads the figures of one kind and keeps where each is from.

    Args:
        today: a later date is a mistake; None where nobody asked what day it is.
        needs_source: whether 'unknown' is refused as a source and date.
    """

    def __init__(self, *, today: datetime.date | None, needs_source: bool) -> None:
        self.sources: list[tuple[str, str]] = []
        self.notes: list[tuple[str, str]] = []
        self._today = today
        self.needs_source = needs_source

    def read(
        self,
        reader: TableReader,
        key: str,
        *default: None,
        figure: str = "",
        quantity: str,
        whole: bool = False,
        directed: bool = False,
    ) -> Any:
        """The value under a key in its base unit; None if anything in it is wrong.

        Args:
            reader: the table that has it.
            key: where it is.
            default: None where it may be left out.
            figure: what sources and notes call it, the key if empty.
            quantity: a key of `UNITS`.
            whole: whether it is a whole number of the base unit.
            directed: whether it says its direction; both directions summed are halved.
        """
        unit = next(iter(UNITS[quantity]))
        table = reader.get(
            key,
            dict,
            *default,
            words=f'a table: {{ value = ..., unit = "{unit}", source = "...", date = "2026-11" }}',
        )
        if table is None:
            return None
        inner = TableReader(table, f"{reader.where}: {key}", reader.mistakes, reader)
        value = inner.get("value", float)
        if value is not None and not 0 < value < _MOST:
            inner.wrong(
                f"value is {value:g}; give a positive, finite figure, or leave out what is not "
                "known"
            )
        units = UNITS[quantity]
        unit = inner.get("unit", str, next(iter(units)))
        if unit is not None and unit not in units:
            inner.wrong(f"unit is {unit!r}, which is not known; give one of {', '.join(units)}")
        ways = self._direction(inner) if directed else 1
        source = inner.get("source", str)
        if source is not None and not source.strip():
            inner.wrong("source is empty; say where the figure is from")
        date = self.date(inner)
        note = inner.get("note", str, "")
        if note and not note.strip():
            inner.wrong("note is blank; say something, or leave it out")
        inner.finish()
        if not inner.clean or value is None or unit is None:
            return None
        exact = Decimal(repr(value)) * units[unit] / ways  # 2.039 TB are 2039 GB, to the last byte
        if quantity == "devices" and exact != int(exact):
            inner.wrong(f"value is {value:g}; give a whole number of devices")
            return None
        self.sources.append((figure or key, f"{source}, {date}"))
        if note:
            self.notes.append((figure or key, note))
        return int(exact) if whole else float(exact)

    def date(self, reader: TableReader) -> str | None:
        """The date in a table, as it stands there; None if wrong."""
        date = reader.get("date", str)
        if date is None or (date == UNKNOWN and not self.needs_source):
            return date
        try:
            if not _DATE.fullmatch(date):
                raise ValueError
            day = datetime.date.fromisoformat(date if len(date) > 7 else f"{date}-01")
        except ValueError:
            reader.wrong(f"date is {date!r}; give year and month or day: '2026-11', '2026-11-24'")
            return None
        if self._today is not None and day > self._today:
            reader.wrong(f"date is {date!r}, which is still to come; give when it was read")
        return date

    @staticmethod
    def _direction(reader: TableReader) -> int:
        """By what a rate is divided to be that of one direction."""
        direction = reader.get("direction", str)
        if direction is not None and direction not in _DIRECTIONS:
            reader.wrong(
                f"direction is {direction!r}; give 'one_way', or 'both' if both are summed"
            )
        return _DIRECTIONS.get(direction or "", 1)
