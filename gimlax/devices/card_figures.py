"""One figure of a card: a number in a unit, which way it goes, and where it is from.

Figures are kept in the unit that ends their key: bytes, bytes/s, FLOP/s, watts.
"""

from typing import Any

from gimlax.devices.tables import TableReader

__all__ = ["read_figure"]

_DIRECTIONS = {"one_way": 1, "both": 2}
_HAVE_DIRECTION = ("host_link_bytes_per_s", "interconnect.bytes_per_s")


def read_figure(
    reader: TableReader,
    key: str,
    figure: str,
    kind: type,
    sources: list[tuple[str, str]],
    notes: list[tuple[str, str]],
    *default: None,
) -> Any:
    """The value under a key, its source and note added under the name `figure`; None if wrong.

    It is needed unless a `default` of None is given.
    """
    table = reader.get(key, dict, *default)
    if table is None:
        return None
    inner = TableReader(table, f"{reader.where}: {key}", reader.mistakes, reader)
    value = inner.get("value", kind)
    if figure in _HAVE_DIRECTION:
        direction = inner.get("direction", str)
        if direction in _DIRECTIONS and value is not None:
            value = value / _DIRECTIONS[direction]
        elif direction is not None:
            inner.wrong(f"direction is {direction!r}; give 'one_way' or 'both' (summed)")
    sources.append((figure, f"{inner.get('source', str)}, {inner.get('date', str)}"))
    if note := inner.get("note", str, ""):
        notes.append((figure, note))
    inner.finish()
    return value
