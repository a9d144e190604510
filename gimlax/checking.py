"""Values against the types written beside them: fields of records, arguments of functions.

A caller who mixes two things up should read which, what it was and what belongs there, not where
deep inside that led. The annotations are the schema, so there is no second list to keep; all that
is wrong is found at once.
"""

import collections.abc
import dataclasses
import functools
import math
import pathlib
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any

from jax.sharding import PartitionSpec

from gimlax.errors import SpecError

__all__ = [
    "Range",
    "check_arguments",
    "check_seconds",
    "hints_of",
    "is_number",
    "mistakes_of_fields",
    "shown",
]

_MOST_SHOWN = 60
_MOST_SECONDS = 10**6  # the system counts milliseconds in 31 bits where sockets wait
_WORDS: Mapping[Any, tuple[str, str]] = types.MappingProxyType(
    {
        str: ("a string", "strings"),
        int: ("a whole number", "whole numbers"),
        float: ("a number", "numbers"),
        bool: ("True or False", "True or False"),
        pathlib.Path: ("a path", "paths"),
        PartitionSpec: ("a PartitionSpec", "PartitionSpecs"),  # JAX calls the class P
    }
)


@dataclasses.dataclass(frozen=True, slots=True)
class Range:
    """The numbers that an annotated field may have, both ends included."""

    least: float
    most: float

    def __str__(self) -> str:
        return f"{self.least} to {self.most}" if self.most < math.inf else f"{self.least} or more"


def check_arguments(what: str, function: Callable[..., Any], given: Mapping[str, Any]) -> None:
    """Refuses arguments of other kinds than a function says that it takes.

    Args:
        what: how messages call the function, such as 'gimlax.plan'.
        function: with annotations.
        given: arguments by name.

    Raises:
        SpecError: names each, with its value and what to give.
    """
    wrong = [
        mistake
        for name, hint in hints_of(function).items()
        if name in given
        for mistake in _mistakes(hint, given[name], name)
    ]
    if wrong:
        raise SpecError(f"{what}: {'; '.join(wrong)}")


def check_seconds(name: str, value: Any) -> None:
    """Refuses what is no time to wait.

    Raises:
        SpecError: it is no number, not positive, or longer than the system can wait.
    """
    if not is_number(value) or value <= 0:
        raise SpecError(f"{name} is {shown(value)}; give a positive number of seconds")
    if value > _MOST_SECONDS:
        raise SpecError(f"{name} is {shown(value)}; give at most {_MOST_SECONDS} seconds")


def mistakes_of_fields(record: Any) -> list[str]:
    """Fields of a dataclass that are of another kind than it says, a sentence each."""
    hints = hints_of(type(record))
    return [
        mistake
        for field in dataclasses.fields(record)
        if field.init
        for mistake in _mistakes(hints[field.name], getattr(record, field.name), field.name)
    ]


@functools.cache
def hints_of(annotated: Any) -> dict[str, Any]:
    """The annotations of a class or function, ranges included."""
    return typing.get_type_hints(annotated, include_extras=True)


def is_number(value: Any) -> bool:
    """Whether this is a finite number that a float can hold; True and False are none."""
    return _is_float(value) and math.isfinite(value)


def shown(value: Any) -> str:
    """A value as a message shows it, however long it is."""
    if isinstance(value, int) and abs(value) >= 10**15:
        return "a huge number"
    try:
        text = repr(value)
    except ValueError:  # a whole number in it has more digits than Python writes out
        return f"a {type(value).__name__} with a huge number"
    return text if len(text) <= _MOST_SHOWN else f"{text[: _MOST_SHOWN - 3]}..."


def _is_float(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        float(value)
    except OverflowError:
        return False
    return True


def _mistakes(hint: Any, value: Any, where: str) -> Iterator[str]:
    """What is wrong with a value, or with what it holds."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        wrong = list(_mistakes(inner[0], value, where))
        if not wrong and not inner[1].least <= value <= inner[1].most:
            wrong = [f"{where} is {shown(value)}; give {inner[1]}"]
        yield from wrong
    elif origin in (types.UnionType, typing.Union):
        fitting = [option for option in inner if _is_outside(option, value)]
        if fitting:
            yield from _mistakes(fitting[0], value, where)
        else:
            yield f"{where} is {shown(value)}; give {_words(hint)}"
    elif not _is_outside(hint, value):
        yield f"{where} is {shown(value)}; give {_words(hint)}"
    elif origin is tuple and inner[-1] is ... and _all_are(inner[0], value):
        return
    elif origin is tuple or _is_sequence(origin):
        kinds = inner if origin is tuple and inner[-1] is not ... else (inner[0],) * len(value)
        if len(kinds) != len(value):
            yield f"{where} has {len(value)} items; give {len(kinds)}"
            return
        for index, (kind, item) in enumerate(zip(kinds, value, strict=True)):
            yield from _mistakes(kind, item, f"{where}[{index}]")
    elif isinstance(origin, type) and issubclass(origin, collections.abc.Mapping):
        for key, item in value.items():
            yield from _mistakes(inner[0], key, f"a key of {where}")
            yield from _mistakes(inner[1], item, f"{where}[{shown(key)}]")


def _all_are(kind: Any, values: tuple[Any, ...]) -> bool:
    """Whether these are all records of a kind, which have checked what they hold themselves."""
    return dataclasses.is_dataclass(kind) and all(type(value) is kind for value in values)


def _is_outside(hint: Any, value: Any) -> bool:
    """Whether a value is of the kind of a hint, whatever it holds."""
    kind = typing.get_origin(hint) or hint
    if kind is Annotated:
        return _is_outside(typing.get_args(hint)[0], value)
    if kind is Any:
        return True
    if kind is float:
        return _is_float(value)
    if kind is int:
        return type(value) is int
    if kind is collections.abc.Callable:
        return callable(value)
    if _is_sequence(kind) and isinstance(value, str | bytes):
        return False
    return isinstance(value, kind)


def _is_sequence(kind: Any) -> bool:
    return kind is collections.abc.Sequence


def _words(hint: Any, many: bool = False) -> str:
    """What to give, in words."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint in _WORDS:
        return _WORDS[hint][many]
    if origin is Annotated:
        return _words(inner[0], many)
    if origin in (types.UnionType, typing.Union):
        options = [_words(option, many) for option in inner if option is not type(None)]
        last = f" or {options[-1]}"
        return ", ".join(options[:-1]) + last if len(options) > 1 else options[-1]
    if origin is tuple:
        one, plural = "a tuple", "tuples"
        inside = (
            f" of {_words(inner[0], True)}"
            if inner[-1] is ...
            else f" of {' and '.join(map(_words, inner))}"
        )
    elif _is_sequence(origin):
        one, plural = "a sequence", "sequences"
        inside = f" of {_words(inner[0], True)}"
    elif isinstance(origin, type) and issubclass(origin, collections.abc.Mapping):
        one, plural = "a dict", "dicts"
        inside = f" from {_words(inner[0], True)} to {_words(inner[1], True)}"
    elif origin is collections.abc.Callable:
        return "functions" if many else "a function"
    else:
        name = hint.__name__
        return f"{name}s" if many else f"{'an' if name[0] in 'AEIOU' else 'a'} {name}"
    return (plural if many else one) + inside
