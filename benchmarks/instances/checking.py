"""Values of a file that is not trusted: each is checked, and what is wrong is said by key."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

MOST_FIGURES = 100_000


def whole(
    record: dict[str, Any],
    key: str,
    wrong: list[str],
    *,
    where: str = "",
    least: int = 0,
    most: int = 2**53,
) -> int:
    """A whole number between `least` and `most`."""
    value = record.get(key)
    if isinstance(value, int) and not isinstance(value, bool) and least <= value <= most:
        return value
    wrong.append(f"{_spot(where, key)}: is {_shown(value)}; give a whole number, {least} to {most}")
    return least


def figure(record: dict[str, Any], key: str, wrong: list[str], *, where: str = "") -> float:
    """A finite number of at least 0."""
    value = record.get(key)
    if _finite(value):
        return float(value)  # type: ignore[arg-type]
    wrong.append(f"{_spot(where, key)}: is {_shown(value)}; give a finite number of at least 0")
    return 0.0


def figures(
    record: dict[str, Any], key: str, wrong: list[str], *, where: str = "", width: int = 0
) -> np.ndarray:
    """A list of such numbers, or of rows of `width` of them that ascend in their first."""
    value = record.get(key)
    spot = _spot(where, key)
    empty = np.zeros((0, width) if width else 0)
    if not isinstance(value, list) or not 0 < len(value) <= MOST_FIGURES:
        wrong.append(f"{spot}: is {_shown(value)}; give a list of 1 to {MOST_FIGURES} figures")
        return empty
    rows = value if width else [[item] for item in value]
    for index, row in enumerate(rows):
        if not isinstance(row, list) or len(row) != max(width, 1) or not all(map(_finite, row)):
            kind = f"{width} finite numbers" if width else "a finite number"
            wrong.append(f"{spot}[{index}]: is {_shown(value[index])}; give {kind} of at least 0")
            return empty
    table = np.array(rows, float)
    if width and not (np.diff(table[:, 0]) > 0).all():
        wrong.append(f"{spot}: rows do not ascend; sort them by their first number, each once")
        return empty
    return table if width else table[:, 0]


def records(value: object, where: str, wrong: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The records of a record."""
    if not isinstance(value, dict) or not value:
        wrong.append(f"{where}: is {_shown(value)}; give at least one record")
        return
    for key, record in value.items():
        if isinstance(record, dict):
            yield key, record
        else:
            wrong.append(f"{where}.{key}: is {_shown(record)}, no record")


def _finite(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > 1e300:
        return False
    return math.isfinite(value) and value >= 0


def _spot(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key


def _shown(value: object) -> str:
    text = repr(value) if not isinstance(value, int) or abs(value) < 10**20 else "a huge number"
    return "missing" if value is None else text if len(text) <= 60 else text[:57] + "..."
