"""Reading TOML strictly: every mistake is collected, and none stops the reading of the rest.

Chosen over checking record by record because a file with five mistakes should be mended once.
"""

from collections.abc import Mapping
from typing import Any

__all__ = ["TableReader"]

_NEEDED: Any = object()
_WORDS = {
    str: "a string",
    int: "a whole number",
    float: "a number",
    list: "a list",
    dict: "a table",
}
_HUGE = 1e300  # whole numbers of a file have no largest one, those of a machine do
_MOST_SHOWN = 80
_MOST_KEYS = 5


class TableReader:
    """One table of a file; what is wrong with it is added to `mistakes` under the name `where`."""

    def __init__(
        self,
        table: Mapping[str, Any],
        where: str,
        mistakes: list[str],
        outer: "TableReader | None" = None,
    ) -> None:
        self.table = table
        self.where = where
        self.mistakes = mistakes
        self.clean = True
        self._outer = outer
        self._known: list[str] = []

    def wrong(self, what: str) -> None:
        """Adds a mistake; neither this table nor those around it are clean from then on."""
        self._add(f"{self.where}: {what}")

    def refused(self, error: Exception) -> None:
        """Adds what a record found wrong, whose message names the table in its own way."""
        self._add(f"{self._outer.where if self._outer else self.where}: {error}")

    def _add(self, mistake: str) -> None:
        self.mistakes.append(mistake)
        reader: TableReader | None = self
        while reader is not None:
            reader.clean, reader = False, reader._outer

    def get(self, key: str, kind: type, default: Any = _NEEDED, *, words: str = "") -> Any:
        """The value of a key as a `kind`, `default` where absent; None after a mistake.

        A whole number may be written as a float (`80e9`), a float as a whole number. `words` say
        what to give where the kind alone does not.
        """
        words = words or _WORDS[kind]
        self._known.append(key)
        if key not in self.table:
            if default is _NEEDED:
                self.wrong(f"{key} is missing; give {words}")
                return None
            return default
        value = self.table[key]
        if isinstance(value, int | float) and not isinstance(value, bool):
            if kind is float and (isinstance(value, float) or abs(value) < _HUGE):
                return float(value)
            if kind is int and abs(value) < _HUGE and value == int(value):
                return int(value)
        elif isinstance(value, kind) and kind not in (int, float):
            return value
        self.wrong(f"{key} is {_shown(value)}; give {words}")
        return None

    def strings(self, key: str) -> tuple[str, ...]:
        """A list of strings, empty where absent."""
        values = self.get(key, list, []) or []
        if not all(isinstance(value, str) for value in values):
            self.wrong(f"{key} is {_shown(values)}; give a list of strings")
            return ()
        return tuple(values)

    def inner(self, key: str, default: Any = _NEEDED) -> "TableReader":
        """The table under a key, `default` where absent, an empty one after a mistake."""
        table = self.get(key, dict, default) or {}
        return TableReader(table, f"{self.where}: {key}", self.mistakes, self)

    def inner_list(self, key: str) -> "list[TableReader]":
        """The tables of `[[key]]`, each named by its own `name` or its number."""
        readers = []
        for number, table in enumerate(self.get(key, list, []) or [], 1):
            if isinstance(table, dict):
                label = _shown(table["name"]) if "name" in table else f"number {number}"
                readers.append(
                    TableReader(table, f"{self.where}: {key} {label}", self.mistakes, self)
                )
            else:
                self.wrong(f"{key} number {number} is {_shown(table)}; give a table ([[{key}]])")
        return readers

    def finish(self) -> None:
        """Adds a mistake if there are keys that nobody asked for."""
        unknown = [key for key in self.table if key not in self._known]
        if unknown:
            shown = ", ".join(_shown(key) for key in unknown[:_MOST_KEYS])
            more = f" and {len(unknown) - _MOST_KEYS} more" if len(unknown) > _MOST_KEYS else ""
            known = ", ".join(sorted(set(self._known)))
            self.wrong(f"unknown key{'s' * (len(unknown) > 1)} {shown}{more}; known are {known}")


def _shown(value: Any) -> str:
    """A value as a message shows it, however long it is."""
    try:
        text = repr(value)
    except ValueError:  # a whole number in it has more digits than Python writes out
        return "far too long a number"
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}..."
