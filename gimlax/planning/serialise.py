"""Records to JSON and back, strictly: the types of a record are the schema.

Reading trusts nothing: unknown, missing and repeated keys, wrong types, numbers that are not finite
and nesting without end are all refused in one error, with nothing half-read. A record may gain a
field with a default later and still read what was written before. No code, no pickle: plain data.
"""

import dataclasses
import json
import math
import types
import typing
from typing import Any

from gimlax.errors import GimlaxError, PlanError

_MOST_SHOWN = 10


def to_json(record: Any, version: int) -> str:
    """The record as stable JSON: keys in the order of the fields, the schema version first."""
    return (
        json.dumps({"schema_version": version, **_plain(record)}, indent=1, allow_nan=False) + "\n"
    )


def from_json(kind: type[Any], text: str, version: int, what: str) -> Any:
    """A record of type `kind` from JSON.

    Args:
        kind: a frozen dataclass of strings, numbers, tuples and such dataclasses.
        text: the JSON.
        version: the only schema version that is understood.
        what: how messages call it, such as "plan 'a.json'".

    Raises:
        PlanError: it is no such JSON; says what and where, up to ten mistakes.
    """
    try:
        data = json.loads(text, object_pairs_hook=_pairs, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        said = "nested too deeply" if isinstance(error, RecursionError) else error
        raise PlanError(f"{what} is not JSON that a plan could be: {said}; save it again") from None
    if not isinstance(data, dict):
        raise PlanError(f"{what} holds {_shown(data)} instead of an object; save it again")
    found = data.pop("schema_version", None)
    if type(found) is not int or found != version:
        raise PlanError(
            f"{what} has schema version {_shown(found)}, and this gimlax reads {version}; "
            "read it with the gimlax that wrote it, or make a new plan"
        )
    mistakes: list[str] = []
    record = _record(kind, data, "", mistakes)
    if mistakes:
        more = len(mistakes) - _MOST_SHOWN
        shown = "; ".join(mistakes[:_MOST_SHOWN]) + (f"; and {more} more" if more > 0 else "")
        raise PlanError(f"{what}: {shown}; make a new plan")
    return record


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        keys = [key for key, _ in pairs]
        repeated = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"key {_shown(repeated)} comes twice")
    return result


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a number")


def _record(kind: type[Any], data: Any, where: str, mistakes: list[str]) -> Any:
    if not isinstance(data, dict):
        mistakes.append(f"{where or 'it'} is {_shown(data)}, not an object")
        return None
    hints = typing.get_type_hints(kind)
    fields = {f.name: f for f in dataclasses.fields(kind)}
    inside = f"{where}." if where else ""
    before = len(mistakes)
    mistakes += [f"{inside}{_clipped(key)} is not known" for key in data if key not in fields]
    mistakes += [
        f"{inside}{name} is missing"
        for name, f in fields.items()
        if name not in data and f.default is dataclasses.MISSING
    ]
    values = {
        name: _value(hints[name], data[name], f"{inside}{name}", mistakes)
        for name in fields
        if name in data
    }
    if len(mistakes) > before:
        return None
    try:
        return kind(**values)
    except GimlaxError as error:
        mistakes.append(str(error))
        return None


def _value(hint: Any, data: Any, where: str, mistakes: list[str]) -> Any:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):  # X | None
        return None if data is None else _value(inner[0], data, where, mistakes)
    if dataclasses.is_dataclass(hint):
        return _record(typing.cast(type[Any], hint), data, where, mistakes)
    if origin is tuple:
        if not isinstance(data, list):
            mistakes.append(f"{where} is {_shown(data)}, not a list")
            return None
        if len(inner) == 2 and inner[1] is Ellipsis:
            inner = (inner[0],) * len(data)
        if len(inner) != len(data):
            mistakes.append(f"{where} has {len(data)} items instead of {len(inner)}")
            return None
        return tuple(
            _value(one, item, f"{where}[{k}]", mistakes)
            for k, (one, item) in enumerate(zip(inner, data, strict=True))
        )
    if hint is float and type(data) in (int, float) and _finite(data):
        return float(data)
    if type(data) is hint and (hint is not float):
        return data
    names = {
        str: "a string",
        int: "a whole number",
        float: "a finite number",
        bool: "true or false",
    }
    mistakes.append(f"{where} is {_shown(data)}, not {names[hint]}")
    return None


def _finite(number: int | float) -> bool:
    try:
        return math.isfinite(float(number))
    except OverflowError:
        return False


def _shown(data: Any) -> str:
    if isinstance(data, dict | list):
        return f"{'an object' if isinstance(data, dict) else 'a list'} of {len(data)}"
    return (
        _clipped(repr(data)) if not isinstance(data, int) or abs(data) < 1e15 else "a huge number"
    )


def _clipped(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."
