"""The list of operations: names, what needs them and dtypes are data, in `operations.toml`."""

import functools
import tomllib
from dataclasses import dataclass
from importlib import resources
from typing import Any

import jax.numpy as jnp
import numpy as np

from gimlax.runtime.conformance import contracting, looping, moving, numbers
from gimlax.runtime.conformance.making import FUNCTIONS, Built

__all__ = ["Case", "Operation", "build", "cases", "needed", "operations"]

_MODULES = (contracting, looping, moving, numbers)  # importing them fills FUNCTIONS


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """An operation of the list: its name, what needs it, its dtypes."""

    name: str
    used_by: str
    dtypes: tuple[str, ...]


@dataclass(frozen=True, slots=True, order=True)
class Case:
    """An operation in a dtype."""

    operation: str
    dtype: str


@functools.cache
def _data() -> dict[str, Any]:
    file = resources.files("gimlax.runtime.conformance").joinpath("operations.toml")
    return tomllib.loads(file.read_text("utf-8"))


def operations() -> tuple[Operation, ...]:
    """The list, in its order."""
    data = _data()
    return tuple(
        Operation(
            name=row["name"],
            used_by=row["used_by"],
            dtypes=tuple(d for word in row["dtypes"] for d in data["groups"].get(word, [word])),
        )
        for row in data["operation"]
    )


def needed() -> tuple[str, ...]:
    """The dtypes that no backend may lack."""
    return tuple(_data()["needed"])


def cases() -> tuple[Case, ...]:
    """Every operation in every dtype."""
    return tuple(Case(of.name, dtype) for of in operations() for dtype in of.dtypes)


def build(case: Case) -> Built:
    """The function of a case and its arguments, the same in every run."""
    rng = np.random.default_rng(list(case.operation.encode()))
    return FUNCTIONS[case.operation](jnp.dtype(case.dtype), rng)
