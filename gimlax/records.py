"""Records to JSON and back, strictly: the types of a record are the schema.

Reading trusts nothing: unknown, missing and repeated keys, wrong types, numbers that are not finite
or out of the range of their type, text that cannot be printed on a line and nesting without end are
all refused in one error, with nothing half-read. A record may gain a field with a default later and
still read what was written before. No code, no pickle: plain data.
"""

import dataclasses
import functools
import json
import math
import types
import typing
from collections.abc import Mapping
from typing import Annotated, Any

from gimlax.checking import Range, hints_of, is_number, shown
from gimlax.errors import GimlaxError

__all__ = ["Amount", "Count", "Share", "from_json", "to_json"]

_MOST_SHOWN = 10


_LARGEST = 2**62  # of whole numbers: no machine counts as far
_WHOLE = Range(-_LARGEST, _LARGEST)
_FINITE = Range(-math.inf, math.inf)

Count = Annotated[int, Range(0, _LARGEST)]
Amount = Annotated[float, Range(0, math.inf)]
Share = Annotated[float, Range(0, 1)]


def to_json(record: Any, version: int) -> str:
    """The record as stable JSON: keys in the order of the fields, the schema version first."""
    return (
        json.dumps({"schema_version": version, **_plain(record)}, indent=1, allow_nan=False) + "\n"
    )


def from_json(
    kind: type[Any], text: str, version: int, what: str, *, error: type[GimlaxError], advice: str
) -> Any:
    """A record of type `kind` from JSON.

    Args:
        kind: a frozen dataclass of strings, numbers, tuples and such dataclasses.
        text: the JSON.
        version: the only schema version that is understood.
        what: how messages call it, such as "plan 'a.json'".
        error: what is raised.
        advice: what its message says to do.

    Raises:
        error: it is no such JSON; says what and where, up to ten mistakes.
    """
    if not isinstance(text, str):
        raise error(f"{what} is a {type(text).__name__}, not a string of JSON; {advice}")
    try:
        data = json.loads(text, object_pairs_hook=_pairs, parse_constant=_no_constant)
    except (ValueError, RecursionError) as problem:
        said = "nested too deeply" if isinstance(problem, RecursionError) else problem
        raise error(f"{what} is not JSON that could be one: {said}; {advice}") from None
    if not isinstance(data, dict):
        raise error(f"{what} holds {_shown(data)} instead of an object; {advice}")
    found = data.pop("schema_version", None)
    if type(found) is not int or found != version:
        raise error(
            f"{what} has schema version {_shown(found)}, and this gimlax reads {version}; "
            f"read it with the gimlax that wrote it, or {advice}"
        )
    mistakes: list[str] = []
    record = _Reader(mistakes, advice).record(kind, data, "")
    if mistakes:
        more = len(mistakes) - _MOST_SHOWN
        told = "; ".join(mistakes[:_MOST_SHOWN]) + (f"; and {more} more" if more > 0 else "")
        raise error(f"{what}: {told}; {advice}")
    return record


@dataclasses.dataclass(frozen=True, slots=True)
class _Reader:
    """Adds what is wrong to `mistakes`, without the `advice` that is said once at their end."""

    mistakes: list[str]
    advice: str

    def record(self, kind: type[Any], data: Any, where: str) -> Any:
        if not isinstance(data, dict):
            return self.wrong(f"{where or 'it'} is {_shown(data)}, not an object")
        fields = _fields(kind)
        inside = f"{where}." if where else ""
        before = len(self.mistakes)
        for key in data:
            if key not in fields:
                said = _clipped(key if key.isprintable() else repr(key))
                self.wrong(f"{inside}{said} is not known")
        for name, (_, needed) in fields.items():
            if needed and name not in data:
                self.wrong(f"{inside}{name} is missing")
        values = {
            name: self.value(hint, data[name], f"{inside}{name}")
            for name, (hint, _) in fields.items()
            if name in data
        }
        if len(self.mistakes) > before:
            return None
        try:
            return kind(**values)
        except GimlaxError as error:
            said = str(error).removesuffix(f"; {self.advice}")
            said = said.removeprefix(f"{kind.__name__.lower()}: ")
            return self.wrong(f"{where}: {said}" if where else said)

    def value(self, hint: Any, data: Any, where: str) -> Any:
        origin, inner = typing.get_origin(hint), typing.get_args(hint)
        if origin is Annotated:
            return self.number(inner[0], data, where, inner[1])
        if origin in (types.UnionType, typing.Union):  # X | None
            return None if data is None else self.value(inner[0], data, where)
        if dataclasses.is_dataclass(hint):
            return self.record(typing.cast(type[Any], hint), data, where)
        if origin is tuple:
            return self.items(inner, data, where)
        if hint in (int, float):
            return self.number(hint, data, where, _WHOLE if hint is int else _FINITE)
        if type(data) is not hint:
            return self.wrong(f"{where} is {_shown(data)}, not {_WORDS[hint]}")
        if hint is str and not data.isprintable():
            return self.wrong(f"{where} is {_shown(data)}, which cannot be printed on a line")
        return data

    def items(self, inner: tuple[Any, ...], data: Any, where: str) -> Any:
        if not isinstance(data, list):
            return self.wrong(f"{where} is {_shown(data)}, not a list")
        if len(inner) == 2 and inner[1] is Ellipsis:
            inner = (inner[0],) * len(data)
        if len(inner) != len(data):
            return self.wrong(f"{where} has {len(data)} items instead of {len(inner)}")
        return tuple(
            self.value(one, item, f"{where}[{k}]")
            for k, (one, item) in enumerate(zip(inner, data, strict=True))
        )

    def number(self, hint: Any, data: Any, where: str, bounds: Range) -> Any:
        if type(data) is not hint and not (hint is float and type(data) is int):
            return self.wrong(f"{where} is {_shown(data)}, not {_WORDS[hint]}")
        if hint is float and not is_number(data):
            return self.wrong(f"{where} is {_shown(data)}, not {_WORDS[hint]}")
        if not bounds.least <= data <= bounds.most:
            return self.wrong(f"{where} is {_shown(data)}; give {bounds}")
        return hint(data)

    def wrong(self, mistake: str) -> None:
        self.mistakes.append(mistake)


_WORDS: Mapping[Any, str] = types.MappingProxyType(
    {
        str: "a string",
        int: "a whole number",
        float: "a finite number",
        bool: "true or false",
    }
)


@functools.cache
def _fields(kind: type[Any]) -> dict[str, tuple[Any, bool]]:
    """By name the type of a field, and whether it has to be given."""
    hints = hints_of(kind)
    return {
        f.name: (hints[f.name], f.default is dataclasses.MISSING) for f in dataclasses.fields(kind)
    }


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise ValueError(f"key {_shown(key)} comes twice")
        result[key] = value
    return result


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a number")


def _shown(data: Any) -> str:
    if isinstance(data, dict | list):
        return f"{'an object' if isinstance(data, dict) else 'a list'} of {len(data)}"
    return shown(data)


def _clipped(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."
