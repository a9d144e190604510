"""The calling side of one phase: flat leaves from what a caller passes, a tree from what comes out.

A call with handles and a few streamed arrays is the hot path of decoding, so everything that
depends on the trace alone is worked out once, and a leaf that fits is accepted by shape and dtype
alone.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from gimlax import _jax
from gimlax.errors import SpecError, TraceError
from gimlax.graph import Role, Traced
from gimlax.program import Program
from gimlax.runtime.arguments import check_tree, fits
from gimlax.runtime.arrangement import Arrangement
from gimlax.runtime.handles import Carried, Placed, to_host
from gimlax.runtime.inventory import Inventory, Tree
from gimlax.runtime.passes import CompiledPhase, Key, Pass


class Signature:
    """Reads the arguments of one phase and writes its results."""

    def __init__(
        self,
        program: Program,
        phase: CompiledPhase,
        inventory: Inventory,
        make: Callable[[Tree, Any], Placed | Carried],
    ) -> None:
        """`make` turns an ordinary tree given for a resident or carried argument into a handle."""
        traced = program.partition.traced
        self._phase = phase
        feeds = self._feeds = _feeds(phase, inventory.arrangement)
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
            (None, None, _Streamed(traced, feeds, position, treedef))
            if role is Role.STREAMED
            else (Placed if role is Role.RESIDENT else Carried, next(trees[role]), None)
            for position, (role, treedef) in enumerate(zip(traced.positions, treedefs, strict=True))
        )
        self._kwargs = _Streamed(traced, feeds, -1, kwargs_def)
        self._returns_tuple, self._elements = _elements(traced, inventory)

    def bind(self, args: Sequence[Any], kwargs: Mapping[str, Any], *, copy: bool = False) -> Pass:
        """A pass over these arguments, its carried state not yet taken.

        Args:
            args: positional arguments, handles among them.
            kwargs: streamed arguments by keyword.
            copy: whether host arrays must be copied, since they may change before they are read.

        Raises:
            TraceError: an argument differs from the trace.
            SpecError: a handle belongs elsewhere.
        """
        if jax.config.jax_enable_x64 == self._x64:  # type: ignore[attr-defined]
            return self._bind(args, kwargs, copy)
        with _jax.using_config((("jax_enable_x64", self._x64),)):
            work = self._bind(args, kwargs, copy)
            # A host array left to the call would be narrowed there, outside of this context.
            work.streamed = {key: self._feeds[key].put(leaf) for key, leaf in work.streamed.items()}
            return work

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

    def _bind(self, args: Sequence[Any], kwargs: Mapping[str, Any], copy: bool) -> Pass:
        if len(args) != len(self._slots):
            name = self._phase.name
            raise TraceError(
                f"{name!r} was called with {len(args)} positional arguments and traced with"
                f" {len(self._slots)}; pass what was traced"
            )
        placed: list[Placed] = []
        handles: list[Carried] = []
        fed: dict[Key, Any] = {}
        for (kind, tree, streamed), arg in zip(self._slots, args, strict=True):
            if streamed is not None:
                streamed.read(arg, fed, copy)
                continue
            handle = arg if type(arg) is kind and arg._tree is tree else self._handle(tree, arg)
            (placed if kind is Placed else handles).append(handle)
        if kwargs or self._kwargs.leaves:
            self._kwargs.read(dict(kwargs), fed, copy)
        return Pass(self._phase, placed, handles, fed)

    def _handle(self, tree: Tree | None, arg: Any) -> Any:
        assert tree is not None
        if not isinstance(arg, Placed | Carried):
            return self._make(tree, arg)
        verb = "place" if tree.role is Role.RESIDENT else "init"
        raise SpecError(
            f"{tree.name} was given {arg!r}, which stands for another argument or was made by"
            f" another compilation; make it with {verb}() of this one"
        )


class _Streamed:
    """A positional argument that travels with each call, or all keyword arguments (position -1)."""

    def __init__(
        self, traced: Traced, feeds: Mapping[Key, "_Feed"], position: int, treedef: Any
    ) -> None:
        found = [(i, a) for i, a in enumerate(traced.arguments) if a.position == position]
        which = "keyword arguments" if position < 0 else f"argument {position}"
        self.name = f"streamed {which} of {traced.name!r}"
        self.treedef = treedef
        self.paths = tuple(a.path for _, a in found)
        self.avals = tuple(a.aval for _, a in found)
        self.single = self.avals[0] if _is_leaf(treedef) else None
        # For each leaf its dtype and the meshes that read it.
        self.leaves = tuple(
            (a.aval.dtype, tuple(feed for (_, leaf), feed in feeds.items() if leaf == i))
            for i, a in found
        )

    def read(self, arg: Any, fed: dict[Key, Any], copy: bool) -> None:
        """Adds the leaves of `arg`, each as it is to be passed to the stages of a mesh."""
        if self.single is not None and fits(arg, self.single):
            self._feed(arg, self.leaves[0], fed, copy)
            return
        checked = check_tree(self.name, arg, self.treedef, self.paths, self.avals)
        for leaf, feeds in zip(checked, self.leaves, strict=True):
            self._feed(leaf, feeds, fed, copy)

    def _feed(
        self, leaf: Any, how: tuple[Any, tuple["_Feed", ...]], fed: dict[Key, Any], copy: bool
    ) -> None:
        dtype, feeds = how
        if not isinstance(leaf, jax.Array):
            # Dispatch takes numpy arrays several times faster than `device_put` does.
            leaf = np.array(leaf, dtype) if copy else np.asarray(leaf, dtype)
            for feed in feeds:
                fed[feed.key] = leaf
            return
        for feed in feeds:
            if feed.remote:
                fed[feed.key] = to_host(leaf)
                continue
            # Like `jit`, a call takes what lies on its device and what is bound to none.
            there = leaf.sharding == feed.sharding or leaf.devices() == feed.alone
            if not there and (copy or getattr(leaf, "committed", True)):
                fed[feed.key] = jax.device_put(leaf, feed.sharding)
            else:
                fed[feed.key] = leaf


class _Feed:
    """A mesh that reads a streamed leaf; `alone` is its device if it has just one.

    A mesh of another process is `remote`: what it reads stays on the host until it is sent.
    """

    __slots__ = ("alone", "key", "remote", "sharding")

    def __init__(self, key: Key, sharding: jax.sharding.NamedSharding) -> None:
        self.key = key
        self.sharding = sharding
        self.remote = isinstance(sharding.mesh, jax.sharding.AbstractMesh)
        devices = () if self.remote else sharding.device_set
        self.alone = devices if len(devices) == 1 else None

    def put(self, leaf: Any) -> Any:
        """The leaf where it is read."""
        return leaf if self.remote else jax.device_put(leaf, self.sharding)


def _feeds(phase: CompiledPhase, arrangement: Arrangement) -> dict[Key, _Feed]:
    """Of each streamed leaf that a mesh reads, how it lies there."""
    keys = dict.fromkeys(key for stage in phase.stages for key in stage.streamed)
    return {key: _Feed(key, arrangement.whole(key[0])) for key in keys}


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
