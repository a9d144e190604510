"""What a family of models says about itself, so that folders of Hugging Face can be read."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn

from gimlax.errors import SpecError
from gimlax.models.leaves import KeyPath

__all__ = ["KINDS", "Family", "Reader", "tensor_named"]


KINDS: Mapping[str, str] = MappingProxyType({"weight": "weight", "scale": "weight", "bias": "bias"})


def tensor_named(names: Mapping[tuple[str, ...], str], path: KeyPath) -> str:
    """The tensor of a parameter, which `names` has itself, or with what it is part of."""
    own = tuple(str(key) for key in path)
    return names[own] if own in names else f"{names[own[:-1]]}.{KINDS[own[-1]]}"


@dataclass(frozen=True, slots=True)
class Reader:
    """A config.json whose values are checked as they are asked for."""

    path: Path
    values: Mapping[str, Any]

    def fail(self, fault: str) -> NoReturn:
        """Raises the fault as one of the file."""
        raise SpecError(f"'{self.path}': {fault}")

    def get(self, key: str, kind: type, default: Any = None) -> Any:
        """The value of `key`, of type `kind` (an int passes as a float); null counts as absent.

        Raises `SpecError` if it has another type, or is absent and there is no `default`.
        """
        value = self.values.get(key)
        value = default if value is None else value
        if value is None:
            self.fail(f"it has no {key!r}, which is needed")
        if kind is float and type(value) is int:
            return float(value)
        if not isinstance(value, kind) or (kind is int and type(value) is bool):
            self.fail(f"{key!r} is {repr(value)[:80]}, needed is a {kind.__name__}")
        return value

    def only(self, **can: Any) -> None:
        """Refuses each key that has another value than the only one that is computed."""
        had = {key: self.values.get(key) for key in can}
        faults = [
            f"{key!r} is {repr(value)[:80]}, only {can[key]!r} is"
            for key, value in had.items()
            if value is not None and value != can[key]
        ]
        if faults:
            self.fail(f"the model needs what is not supported: {'; '.join(faults)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """How models of one `model_type` are called.

    Attributes:
        config: sizes from config.json, in float32.
        num_tensors: how many tensors that config needs at least; checked before shapes are made.
        params: shapes of the parameters, as nested dicts.
        names: of the tensors that hold a parameter: one, or one for each row of its first dim.
        may_have: whether a tensor that is no parameter may be there.
    """

    config: Callable[[Reader], Any]
    num_tensors: Callable[[Any], int]
    params: Callable[[Any], Any]
    names: Callable[[Any, KeyPath], tuple[str, ...]]
    may_have: Callable[[Any, str], bool]
