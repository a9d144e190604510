"""The least sum of many small tables over shared variables: elimination, one variable at a time.

To eliminate a variable is to add the tables that name it and to keep, for each way to set their
other variables, the least sum and the setting that gives it (bucket elimination, Dechter 1999). The
result is exact; the work grows with the number of variables that meet in one table, which is small
for models: a layer is a few strands side by side. Chosen over a beam along the order of the
equations, which forgets the plain solution as soon as many strands are live at once, and over an
integer programme, which takes seconds where this takes milliseconds.

Should a table grow beyond `MAX_ENTRIES`, one of its variables is set to what is best by itself.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["MAX_ENTRIES", "Factor", "Reduced", "eliminate"]

MAX_ENTRIES = 4_000_000

Table = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Factor:
    """A table with one dim for each variable of its scope."""

    scope: tuple[int, ...]
    table: Table


@dataclass(frozen=True, slots=True, eq=False)
class Reduced:
    """What is left over the kept variables, in their order, and how to get the others back."""

    keep: tuple[int, ...]
    table: Table
    steps: tuple[tuple[int, tuple[int, ...], NDArray[np.intp]], ...]
    exact: bool = True  # whether no variable was set before its table was known

    def settings(self, kept: Mapping[int, int]) -> dict[int, int]:
        """The settings of all variables that give the least sum, where the kept ones are given."""
        found = dict(kept)
        for variable, scope, best in reversed(self.steps):
            found[variable] = int(best[tuple(found[v] for v in scope)])
        return found


def eliminate(sizes: Sequence[int], factors: Sequence[Factor], keep: Sequence[int]) -> Reduced:
    """Minimises over all variables but those to keep.

    Args:
        sizes: number of settings of each variable.
        factors: tables whose sum is minimised; infinite entries are ways that do not exist.
        keep: variables of the resulting table.
    """
    constant = sum(float(factor.table) for factor in factors if not factor.scope)
    pool = _Pool(sizes, [factor for factor in factors if factor.scope])
    left = set(range(len(sizes))) - set(keep)
    exact = True
    grown = {variable: pool.grown(variable) for variable in left}
    steps: list[tuple[int, tuple[int, ...], NDArray[np.intp]]] = []
    while left:
        variable = min(left, key=lambda v: (grown[v], v))
        left.remove(variable)
        mine = pool.take(variable)
        scope = tuple(sorted({v for factor in mine for v in factor.scope} - {variable}))
        if grown[variable] > MAX_ENTRIES:
            exact = False
            choice = int(np.argmin(_alone(variable, mine, sizes[variable])))
            steps.append((variable, (), np.array(choice)))
            rest = [_fixed(factor, variable, choice) for factor in mine]
            constant += sum(float(factor.table) for factor in rest if not factor.scope)
            for factor in rest:
                if factor.scope:
                    pool.add(factor)
        else:
            table = _sum(mine, (*scope, variable), sizes)
            steps.append((variable, scope, table.argmin(axis=-1)))
            if scope:
                pool.add(Factor(scope, table.min(axis=-1)))
            else:
                constant += float(table.min())
        grown.update((v, pool.grown(v)) for v in scope if v in left)
    keep = tuple(keep)
    return Reduced(keep, _sum(pool.rest(), keep, sizes) + constant, tuple(steps), exact)


class _Pool:
    """The tables that are left, by the variables that they name."""

    def __init__(self, sizes: Sequence[int], factors: Sequence[Factor]) -> None:
        self._sizes = sizes
        self._of: dict[int, dict[int, Factor]] = {v: {} for v in range(len(sizes))}
        for factor in factors:
            self.add(factor)

    def add(self, factor: Factor) -> None:
        for variable in factor.scope:
            self._of[variable][id(factor)] = factor

    def take(self, variable: int) -> list[Factor]:
        """Removes the tables that name a variable."""
        mine = list(self._of[variable].values())
        for factor in mine:
            for other in factor.scope:
                self._of[other].pop(id(factor), None)
        return mine

    def rest(self) -> list[Factor]:
        unique = {key: factor for of in self._of.values() for key, factor in of.items()}
        return list(unique.values())

    def grown(self, variable: int) -> int:
        """Entries of the table that eliminating a variable makes."""
        scope = {v for factor in self._of[variable].values() for v in factor.scope}
        return math.prod(self._sizes[v] for v in scope)


def _sum(factors: Sequence[Factor], scope: tuple[int, ...], sizes: Sequence[int]) -> Table:
    """The sum of tables over a scope that contains theirs."""
    total = np.zeros([sizes[v] for v in scope])
    for factor in factors:
        order = sorted(range(len(factor.scope)), key=lambda i: scope.index(factor.scope[i]))
        shape = [sizes[v] if v in factor.scope else 1 for v in scope]
        total += factor.table.transpose(order).reshape(shape)
    return total


def _alone(variable: int, factors: Sequence[Factor], size: int) -> Table:
    """What each setting costs at least."""
    total = np.zeros(size)
    for factor in factors:
        others = tuple(i for i, v in enumerate(factor.scope) if v != variable)
        total += factor.table.min(axis=others) if others else factor.table
    return total


def _fixed(factor: Factor, variable: int, choice: int) -> Factor:
    place = factor.scope.index(variable)
    scope = tuple(v for v in factor.scope if v != variable)
    return Factor(scope, np.asarray(factor.table.take(choice, axis=place)))
