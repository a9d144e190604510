"""The calling side of one phase: flat leaves from what a caller passes, a tree from what comes out.

A call with handles and a few streamed arrays is the hot path of decoding, so everything that depends
on the trace alone is worked out once, and a leaf that fits is accepted by shape and dtype alone.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from gimlax import _jax
from gimlax.errors import SpecError, TraceError
from gimlax.graph import Role, Traced
from gimlax.runtime.arguments import check_tree, fits
from gimlax.runtime.handles import Carried, Placed
from gimlax.runtime.inventory import Inventory, Tree
from gimlax.runtime.passes import CompiledPhase, Pass


class Signature:
    """Reads the arguments of one phase and writes its results."""

    def __init__(
        self,
        phase: CompiledPhase,
        inventory: Inventory,
        make: Callable[[Tree, Any], Placed | Carried],
    ) -> None:
        """`make` turns an ordinary tree, given for a resident or carried argument, into a handle."""
        traced = phase.program.partition.traced
        self._phase = phase
        self._make = make
        self._inventory = inventory
        self._x64 = dict(traced.config)["jax_enable_x64"]
        args_def, kwargs_def = jax.tree_util.treedef_children(traced.in_tree)
        treedefs = jax.tree_util.treedef_children(args_def)
        trees = {
            Role.RESIDENT: iter(inventory.resident),
            Role.CARRIED: iter(inventory.carried),
        }
        self._slots = tuple(
            (Role.STREAMED, None, _Streamed(traced, position, treedef))
            if role is Role.STREAMED
            else (role, next(trees[role]), None)
            for position, (role, treedef) in enumerate(zip(traced.positions, treedefs, strict=True))
        )
        self._kwargs = _Streamed(traced, -1, kwargs_def)
        keys = dict.fromkeys(key for stage in phase.stages for key in stage.streamed)
        self._feeds = tuple((key, phase.shardings[key[0]]) for key in keys)
        self._returns_tuple, self._elements = _elements(traced, inventory)

    def bind(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], *, may_alias: bool | None = None
    ) -> Pass:
        """A pass over these arguments, its streamed leaves on their meshes, its state not yet taken.

        Raises:
            TraceError: an argument differs from the trace.
            SpecError: a handle belongs elsewhere.
        """
        if jax.config.jax_enable_x64 == self._x64:  # type: ignore[attr-defined]
            return self._bind(args, kwargs, may_alias)
        with _jax.using_config((("jax_enable_x64", self._x64),)):
            return self._bind(args, kwargs, may_alias)

    def assemble(self, work: Pass) -> Any:
        """The tree of the traced function, a `Carried` standing for each carried output."""
        flat = work.result()
        results = [
            work.next_handles[tree]
            if tree is not None
            else (flat[start] if treedef is None else treedef.unflatten(flat[start:stop]))
            for tree, start, stop, treedef in self._elements
        ]
        return tuple(results) if self._returns_tuple else results[0]

    def _bind(self, args: Sequence[Any], kwargs: Mapping[str, Any], may_alias: bool | None) -> Pass:
        if len(args) != len(self._slots):
            name = self._phase.program.phase
            raise TraceError(
                f"{name!r} was called with {len(args)} positional arguments and traced with"
                f" {len(self._slots)}; pass what was traced"
            )
        placed: list[Placed] = []
        handles: list[Carried] = []
        leaves: dict[int, Any] = {}
        for (role, tree, streamed), arg in zip(self._slots, args, strict=True):
            if streamed is not None:
                streamed.read(arg, leaves)
            elif role is Role.RESIDENT:
                placed.append(self._handle(Placed, tree, arg))
            else:
                handles.append(self._handle(Carried, tree, arg))
        if kwargs or self._kwargs.leaves:
            self._kwargs.read(dict(kwargs), leaves)
        fed: dict[tuple[str, int], Any] = {}
        for key, sharding in self._feeds:
            leaf = leaves[key[1]]
            if not isinstance(leaf, jax.Array) or leaf.sharding != sharding:
                leaf = jax.device_put(leaf, sharding, may_alias=may_alias)
            fed[key] = leaf
        return Pass(self._phase, placed, handles, fed)

    def _handle(self, kind: type[Any], tree: Tree | None, arg: Any) -> Any:
        if type(arg) is kind:
            if arg._tree is tree:
                return arg
        elif not isinstance(arg, Placed | Carried):
            assert tree is not None
            return self._make(tree, arg)
        name = tree.name if tree is not None else ""
        raise SpecError(
            f"{name} was given {arg!r}, which stands for another argument or was made by another"
            f" compilation; make it with {'place' if kind is Placed else 'init'}() of this one"
        )


class _Streamed:
    """A positional argument that travels with each call, or all keyword arguments (position -1)."""

    def __init__(self, traced: Traced, position: int, treedef: Any) -> None:
        found = [(i, a) for i, a in enumerate(traced.arguments) if a.position == position]
        which = "keyword arguments" if position < 0 else f"argument {position}"
        self.name = f"streamed {which} of {traced.name!r}"
        self.treedef = treedef
        self.leaves = tuple(i for i, _ in found)
        self.paths = tuple(a.path for _, a in found)
        self.avals = tuple(a.aval for _, a in found)
        self.single = self.avals[0] if _is_leaf(treedef) else None

    def read(self, arg: Any, leaves: dict[int, Any]) -> None:
        """Adds the leaves of `arg` under their numbers among all arguments."""
        if self.single is not None and fits(arg, self.single):
            leaves[self.leaves[0]] = arg
            return
        checked = check_tree(self.name, arg, self.treedef, self.paths, self.avals)
        leaves.update(zip(self.leaves, checked, strict=True))


def _elements(
    traced: Traced, inventory: Inventory
) -> tuple[bool, tuple[tuple[int | None, int, int, Any], ...]]:
    """Whether a tuple is returned, and of each element its carried tree, its leaves, its treedef.

    The treedef is None for an element that is a single array.
    """
    returns_tuple = traced.out_tree.node_data() is not None and (
        traced.out_tree.node_data()[0] is tuple
    )
    children = (
        jax.tree_util.treedef_children(traced.out_tree) if returns_tuple else [traced.out_tree]
    )
    positions = [p for p, role in enumerate(traced.positions) if role is Role.CARRIED]
    carried = {output: positions.index(position) for position, output in traced.carried}
    elements = []
    start = 0
    for index, child in enumerate(children):
        stop = start + child.num_leaves
        treedef = None if _is_leaf(child) else child
        elements.append((carried.get(index), start, stop, treedef))
        start = stop
    return returns_tuple, tuple(elements)


def _is_leaf(treedef: Any) -> bool:
    return treedef.num_nodes == treedef.num_leaves == 1
