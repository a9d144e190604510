"""`gx.jit`: the whole road in one call, with the behaviour of `jax.jit`.

Each new set of shapes is traced, planned for the cluster and compiled once; later calls go
straight to the Executable. Not transformable: `grad`, `vmap` and an outer `jit` have no meaning
for a function that runs on several clients.
"""

import functools
import threading
import weakref
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import jax
from jax.sharding import PartitionSpec

from gimlax import _jax
from gimlax.checking import check_arguments
from gimlax.devices import Cluster, discover
from gimlax.errors import SpecError, TraceError
from gimlax.graph import Chain, StaticArguments, Traced, chain, trace
from gimlax.planning import Objective, Plan, plan
from gimlax.runtime import Carried, Executable, Placed, Workers, compile, start_workers


def jit(
    fn: Callable[..., Any],
    *,
    cluster: Cluster | None = None,
    workers: Workers | None = None,
    objective: Objective | None = None,
    resident: int | Sequence[int] | None = None,
    carried: Mapping[int, int] | None = None,
    static_argnums: int | Sequence[int] = (),
    static_argnames: str | Sequence[str] = (),
    cuts: int | Sequence[int] | None = None,
    meshes: Sequence[str] | None = None,
    shardings: Mapping[str, PartitionSpec] | None = None,
) -> "Jitted":
    """Compiles `fn` for all the accelerators of a cluster.

    Args:
        fn: a function of arrays, such as the `apply` of a Flax module.
        cluster: where it may run; by default that of the workers, else what `discover()` finds, at
            the first call. Workers that it describes are then started as children of this process.
        workers: of the cluster, started otherwise; who started them closes them.
        objective: what to minimise, by default the latency of a call.
        resident: positional arguments that stay the same between calls (parameters); by default
            the first, if there is one.
        carried: positional argument → position in the returned tuple of its updated value.
        static_argnums: positional arguments that are bound at compile time; hashable values.
        static_argnames: keyword arguments that are bound at compile time; hashable values.
        cuts: fixed boundaries, or a number of stages; by default the planner decides.
        meshes: fixed mesh names, one per stage; by default the planner decides.
        shardings: specs to be kept on meshes of several devices, by the path of an argument; by
            default the planner decides.

    Returns:
        A callable like `fn`. Streamed outputs are `jax.Array`s, carried ones `Carried` handles.
        Parameters are sent to their meshes at each call, with one warning; to send them once, use
        `compiled = jitted.lower(...).compile()` and `compiled.place(params)`. Workers that it
        started end with `jitted.close()`, or with this process.
    """
    check_arguments("gimlax.jit", jit, locals())
    return Jitted(
        fn,
        cluster=workers.cluster if cluster is None and workers is not None else cluster,
        workers=workers,
        objective=objective or Objective(),
        resident=(resident,) if isinstance(resident, int) else resident,
        carried=dict(carried or {}),
        static=StaticArguments.of(fn, static_argnums, static_argnames),
        cuts=cuts,
        meshes=meshes,
        shardings=shardings,
    )


class Jitted:
    """What `jit` returns: call it, or `lower` it to look at the plan before compiling."""

    def __init__(
        self,
        fn: Callable[..., Any],
        *,
        cluster: Cluster | None,
        workers: Workers | None,
        objective: Objective,
        resident: Sequence[int] | None,
        carried: dict[int, int],
        static: StaticArguments,
        cuts: int | Sequence[int] | None,
        meshes: Sequence[str] | None,
        shardings: Mapping[str, PartitionSpec] | None,
    ) -> None:
        functools.update_wrapper(self, fn)
        self.__name__ = getattr(fn, "__name__", type(fn).__name__)
        self._fn = fn
        self._cluster = cluster
        self._workers = workers
        self._end: Callable[[], Any] = lambda: None  # of workers that were started here
        self._closed = False
        self._objective = objective
        self._resident = resident
        self._carried = carried
        self._static = static
        self._cuts = cuts
        self._meshes = meshes
        self._shardings = shardings
        self._compiled: dict[_Key, Executable] = {}
        self._lock = threading.Lock()
        self._starting = threading.Lock()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Runs `fn`, compiled for these shapes; raises `SpecError` after `close`."""
        self._check_open()
        key = self._key(args, kwargs)
        executable = self._compiled.get(key)
        if executable is None:
            with self._lock:
                executable = self._compiled.get(key)
                if executable is None:
                    self._check_open()
                    executable = self._compiled[key] = self._find(args, kwargs)
        dynamic, keywords = self._static.dynamic(args, kwargs)
        return executable(*dynamic, **keywords)

    def lower(self, *args: Any, **kwargs: Any) -> "Lowered":
        """Traces and plans for arguments of these shapes; `jax.ShapeDtypeStruct`s will do."""
        if self._cluster is None:
            self._cluster = discover()
        dynamic, keywords = self._static.dynamic(args, kwargs)
        kept = [i for i in range(len(args)) if i not in self._static.positions]
        position = {p: i for i, p in enumerate(kept)}
        resident = tuple(kept[:1]) if self._resident is None else tuple(self._resident)
        static = sorted({*resident, *self._carried} & self._static.positions)
        if static:
            raise TraceError(
                f"argument {static[0]} of {self.__name__!r} is static, so it cannot be resident or"
                " carried; give it one role"
            )
        traced = trace(
            self._static.bind(self._fn, args, kwargs),
            *dynamic,
            resident=[position.get(i, i) for i in resident],
            carried={position.get(i, i): o for i, o in self._carried.items()},
            name=self.__name__,
            **keywords,
        )
        found = chain(traced)
        chosen = plan(
            found,
            self._cluster,
            objective=self._objective,
            cuts=self._cuts,
            meshes=self._meshes,
            shardings=self._shardings,
        )
        return Lowered(traced, found, chosen, self._start)

    def close(self) -> None:
        """Ends the threads of what calls have compiled, and the workers that were started here.

        What `lower(...).compile()` gave is closed by itself, but ends with workers that end here.
        """
        with self._lock, self._starting:
            self._closed = True
            compiled, self._compiled = self._compiled, {}
            for executable in compiled.values():
                executable.close()
            self._end()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check_open(self) -> None:
        if self._closed:
            raise SpecError(
                f"what gimlax.jit made of {self.__name__!r} is closed; call gimlax.jit again"
            )

    def _start(self) -> Workers | None:
        """The workers of the cluster, started when the first function is compiled for them."""
        with self._starting:
            self._check_open()
            if self._workers is None and self._cluster is not None and self._cluster.workers:
                self._workers = start_workers(self._cluster)
                self._end = weakref.finalize(self, self._workers.close)
            return self._workers

    def _find(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Executable:
        """The executable that the handles among the arguments belong to, or a new one."""
        key = self._key(args, kwargs)
        owners = {part.owner for part in key.parts if isinstance(part, _Held)}
        if not owners:
            return self.lower(*args, **kwargs).compile()
        for known, executable in self._compiled.items():
            if owners == {executable.owner} and known.fits(key):
                return executable
        handle = next(a for a in args if isinstance(a, Placed | Carried))
        raise SpecError(
            f"{handle!r} was not made by {self.__name__!r} for arguments of these shapes; give the"
            " ordinary tree, or trace all shapes as phases of one gimlax.Workload"
        )

    def _key(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> "_Key":
        dynamic, keywords = self._static.dynamic(args, kwargs)
        parts = (*map(_part, dynamic), _part(keywords))
        return _Key(parts, self._static.key(args, kwargs), _jax.read_config())


@dataclass(frozen=True, slots=True)
class _Held:
    """Stands for a handle in a key: whatever its shapes, it belongs to one compilation."""

    owner: Hashable


@dataclass(frozen=True, slots=True)
class _Key:
    """What two calls must have in common to share an executable, by argument."""

    parts: tuple[Any, ...]
    static: Hashable
    config: tuple[tuple[str, Any], ...]

    def fits(self, other: "_Key") -> bool:
        """Whether `other` is the same call, with handles in place of ordinary trees."""
        return (self.static, self.config, len(self.parts)) == (
            other.static,
            other.config,
            len(other.parts),
        ) and all(
            isinstance(theirs, _Held) or mine == theirs
            for mine, theirs in zip(self.parts, other.parts, strict=True)
        )


def _part(tree: Any) -> Any:
    """What one argument must have in common with that of an earlier call."""
    if isinstance(tree, Placed | Carried):
        return _Held(tree.owner)
    leaves, treedef = jax.tree.flatten(tree)
    if any(map(_jax.inside_trace, leaves)):
        raise TraceError(
            "an argument is a tracer: a function of gimlax.jit cannot be transformed by jit,"
            " grad or"
            " vmap; call it with arrays, or use jax.jit on one backend"
        )
    return treedef, tuple(
        (leaf.shape, leaf.dtype, bool(getattr(leaf, "weak_type", False)))
        if hasattr(leaf, "dtype")
        else type(leaf)
        for leaf in leaves
    )


class Lowered:
    """A function that is traced and planned, not yet compiled."""

    def __init__(
        self, traced: Traced, found: Chain, chosen: Plan, start: Callable[[], Workers | None]
    ) -> None:
        """`start` gives the workers to compile on, None where this process is all."""
        self.traced = traced
        self.plan = chosen
        self._chain = found
        self._start = start

    def compile(self) -> Executable:
        """Compiles every stage for its mesh."""
        return compile(self.plan, self.traced, workers=self._start())

    def cost_analysis(self) -> dict[str, float]:
        """FLOPs and bytes of memory traffic of one call, counted from shapes."""
        segments = self._chain.phases[0].segments
        return {
            "flops": sum(flops for s in segments for _, flops in s.flops),
            "bytes accessed": sum(s.bytes_accessed for s in segments),
        }

    def __str__(self) -> str:
        return str(self.plan)
