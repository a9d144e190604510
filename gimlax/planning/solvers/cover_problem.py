"""Layers to cover and machines to hold them: the records that solver and heuristics share."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from gimlax.errors import SpecError
from gimlax.planning.problem import Array

__all__ = ["CoverProblem", "Interval"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CoverProblem:
    """Layers, and machines by kind.

    Attributes:
        num_layers: to be covered.
        counts: machines of each kind.
        rates: tokens/s of a machine of a kind that holds k layers, at index k - 1; any shape.
        link_tokens_per_s: of each pair of machines, inf where links do not bind.

    Raises:
        SpecError: figures that are not positive, or a kind without rates.
    """

    num_layers: int
    counts: Mapping[str, int]
    rates: Mapping[str, Array]
    link_tokens_per_s: float = math.inf

    def __post_init__(self) -> None:
        wrong = []
        if self.num_layers < 1:
            wrong.append(f"num_layers is {self.num_layers}; give at least 1")
        if not self.link_tokens_per_s > 0:
            wrong.append(f"link_tokens_per_s is {self.link_tokens_per_s}; give a positive rate")
        if set(self.counts) != set(self.rates) or not self.counts:
            wrong.append(f"counts are of {list(self.counts)}, rates of {list(self.rates)}")
        for kind, count in self.counts.items():
            if count < 0:
                wrong.append(f"there are {count} machines of kind {kind!r}; give 0 or more")
            rates = np.asarray(self.rates.get(kind, ()), float)
            if not rates.size or not (np.isfinite(rates) & (rates >= 0)).all():
                wrong.append(f"rates of kind {kind!r} are {rates.tolist()}; give finite rates >= 0")
        if wrong:
            raise SpecError(f"cover problem: {'; '.join(wrong)}")


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Interval:
    """Layers `[first_layer, first_layer + num_layers)` held by one machine of a kind."""

    first_layer: int
    num_layers: int
    machine: str
