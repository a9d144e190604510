"""Equations in groups that are split as one, and the ways to split each along a mesh axis.

Elementwise equations, reshapes and reductions join the group of what they read; contractions,
look-ups and whatever is unknown stand alone. Within a group dims that go together share a *label*;
to split a group is to choose one label, or none. Arrays change how they lie only between groups.
A label can be split over n devices if n divides it after every reshape that it passes anywhere in
the run: nine heads, not the 576 columns that they are flattened to.

Chosen over a decision per equation, which multiplies the search by ten and finds nothing more: it
never pays to move an array in the middle of an elementwise chain.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from gimlax import _jax
from gimlax.partition.flattening import Flat
from gimlax.partition.rules import Dims, Rule, is_chain, rule
from gimlax.partition.specs import normal

__all__ = ["Group", "Split", "find_groups"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """One way to split a group: along `label`, or not at all (None).

    `sums` are values that every device then has a part of the sum of; they are summed at once.
    `scatter` is None where each device gets all of the sum, else the label along which the sum,
    the only result, is scattered.
    """

    label: int | None
    sums: tuple[int, ...] = ()
    scatter: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Group:
    """Steps that are split as one.

    Attributes:
        steps: places in the run.
        reads, writes: values from outside, and those that are used outside.
        labels: of each dim of each value of the group.
        sizes: of each label: what the number of devices has to divide.
        sums: (label, value) where a value is a sum over a label.
        small: whether everything in it follows from scalars, so that each device may make all.
        pinned: for a sharding constraint of the model: axes of each dim of its value, None where
            it leaves a dim free.
    """

    steps: tuple[int, ...]
    reads: tuple[int, ...]
    writes: tuple[int, ...]
    labels: dict[int, Dims]
    sizes: tuple[int, ...]
    sums: tuple[tuple[int, int], ...]
    small: bool
    pinned: tuple[tuple[str, ...] | None, ...] | None = None

    def splits(self, num_devices: int, taken: int | None = None, shards: int = 1) -> list[Split]:
        """The ways to split it over `num_devices`.

        Args:
            num_devices: along the axis in question.
            taken: label that is split along another axis already, over `shards` devices.
            shards: see `taken`.
        """

        def divides(label: int) -> bool:
            return self.sizes[label] % (num_devices * (shards if label == taken else 1)) == 0

        found = [Split(label=None)]
        if self.small:
            return found
        usable = [label for label in range(len(self.sizes)) if divides(label)]
        for label in usable:
            if any(dims.count(label) > 1 for dims in self.labels.values()):
                continue
            sums = tuple(value for of, value in self.sums if of == label)
            found.append(Split(label=label, sums=sums))
            if len(sums) == 1 and sums == self.writes and len(self.steps) == 1:
                of = self.labels[sums[0]]
                found += [
                    Split(label=label, sums=sums, scatter=other) for other in usable if other in of
                ]
        return found

    def before(self, split: Split, value: int) -> int | None:
        """The dim along which a value has to be split for the group to read it, None if whole."""
        return self.dim(value, split.label)

    def after(self, split: Split, value: int) -> int | None:
        """The dim along which the group leaves a value split, None if whole."""
        if value not in split.sums:
            return self.dim(value, split.label)
        return None if split.scatter is None else self.dim(value, split.scatter)

    def dim(self, value: int, label: int | None) -> int | None:
        """The dim of a value that is split with a label, None if it stays whole."""
        if label is None or label not in self.labels[value]:
            return None
        return self.labels[value].index(label)


@dataclass(slots=True)
class _Classes:
    """Dims joined into classes, with the greatest common divisor of what they were joined by."""

    parent: dict[tuple[int, int], tuple[int, int]] = field(default_factory=dict)
    size: dict[tuple[int, int], int] = field(default_factory=dict)

    def find(self, dim: tuple[int, int]) -> tuple[int, int]:
        self.parent.setdefault(dim, dim)
        while self.parent[dim] != dim:
            self.parent[dim] = self.parent[self.parent[dim]]
            dim = self.parent[dim]
        return dim

    def join(self, dims: list[tuple[int, int]], size: int) -> None:
        roots = {self.find(dim) for dim in dims}
        first, *rest = sorted(roots)
        for root in rest:
            self.parent[root] = first
        self.size[first] = math.gcd(size, *(self.size.get(root, 0) for root in roots))


def find_groups(flat: Flat, escaping: Iterable[int]) -> list[Group]:
    """Groups in an order in which they can run.

    Args:
        flat: the run.
        escaping: values that something after the run reads.
    """
    rules = [rule(step.eqn) for step in flat.steps]
    everywhere = _Classes()
    for index, found in enumerate(rules):
        _join(everywhere, flat, index, found)
    members = _members(flat)
    group_of = {s: g for g, steps in enumerate(members) for s in steps}
    producer = {v: s for s, step in enumerate(flat.steps) for v in step.outputs}
    used_outside = set(escaping)
    for index, step in enumerate(flat.steps):
        for value in step.inputs:
            if value in producer and group_of[producer[value]] != group_of[index]:
                used_outside.add(value)
    groups: list[Group] = []
    small: set[int] = set()
    for steps in members:
        group = _group(flat, steps, rules, everywhere, used_outside, small)
        if group.small:
            small.update(group.writes)
        groups.append(group)
    return groups


def _members(flat: Flat) -> list[list[int]]:
    """Steps of each group: a chain step joins the last group that it reads, if that is a chain."""
    members: list[list[int]] = []
    chain: list[bool] = []
    home: dict[int, int] = {}
    for index, step in enumerate(flat.steps):
        joins = is_chain(step.eqn)
        last = max((home.get(v, -1) for v in step.inputs if v is not None), default=-1)
        if not (joins and last >= 0 and chain[last]):
            members.append([])
            chain.append(joins)
            last = len(members) - 1
        members[last].append(index)
        home.update(dict.fromkeys(step.outputs, last))
    return members


def _join(classes: _Classes, flat: Flat, index: int, found: Rule) -> None:
    step = flat.steps[index]
    dims: list[list[tuple[int, int]]] = [[] for _ in found.sizes]
    for values, factors in ((step.inputs, found.inputs), (step.outputs, found.outputs)):
        for value, of in zip(values, factors, strict=True):
            for dim, factor in enumerate(of):
                if factor is not None and value is not None:
                    dims[factor].append((value, dim))
    for joined, size in zip(dims, found.sizes, strict=True):
        if joined:
            classes.join(joined, size)


def _group(
    flat: Flat,
    steps: list[int],
    rules: list[Rule],
    everywhere: _Classes,
    used_outside: set[int],
    small: set[int],
) -> Group:
    own = _Classes()
    blocked: set[tuple[int, int]] = set()
    for index in steps:
        _join(own, flat, index, rules[index])
        for values, factors in (
            (flat.steps[index].inputs, rules[index].inputs),
            (flat.steps[index].outputs, rules[index].outputs),
        ):
            for value, dims_of in zip(values, factors, strict=True):
                if value is not None:
                    blocked.update((value, d) for d, f in enumerate(dims_of) if f is None)
    made = [v for index in steps for v in flat.steps[index].outputs]
    read = [v for index in steps for v in flat.steps[index].inputs if v is not None]
    reads = tuple(dict.fromkeys(v for v in read if v not in made))
    dims = {v: len(flat.avals[v].shape) for v in (*reads, *made)}
    whole = {own.find(dim) for dim in blocked}
    roots: dict[tuple[int, int], int] = {}
    sizes: list[int] = []
    labels: dict[int, Dims] = {}
    for value, rank in dims.items():
        of: list[int | None] = []
        for d in range(rank):
            root = own.find((value, d))
            if root in whole or root not in own.size:
                of.append(None)
                continue
            if root not in roots:
                roots[root] = len(sizes)
                sizes.append(0)
            label = roots[root]
            limit = everywhere.size.get(everywhere.find((value, d)), 0)
            sizes[label] = math.gcd(sizes[label], own.size[root], limit)
            of.append(label)
        labels[value] = tuple(of)
    sums: list[tuple[int, int]] = []
    for index in steps:
        step, found = flat.steps[index], rules[index]
        for factor in sorted(found.summed):
            for value, dims_of in zip(step.inputs, found.inputs, strict=True):
                if value is not None and factor in dims_of:
                    label = labels[value][dims_of.index(factor)]
                    if label is not None:
                        sums += [(label, result) for result in step.outputs]
                    break
    scalars = all(v in small or not flat.avals[v].shape for v in reads)
    eqn = flat.steps[steps[0]].eqn
    return Group(
        steps=tuple(steps),
        reads=reads,
        writes=tuple(v for v in made if v in used_outside),
        labels=labels,
        sizes=tuple(sizes),
        sums=tuple(sums),
        small=scalars and is_chain(eqn),
        pinned=_pinned(eqn) if eqn.primitive.name == "sharding_constraint" else None,
    )


def _pinned(eqn: _jax.JaxprEqn) -> tuple[tuple[str, ...] | None, ...]:
    rank = len(_jax.aval_of(eqn.outvars[0]).shape)
    given = normal(eqn.params["sharding"].spec, rank)
    free = eqn.params["unconstrained_dims"]
    return tuple(None if d in free else given[d] for d in range(rank))
