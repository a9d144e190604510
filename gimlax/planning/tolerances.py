"""How far apart the same number may be on two backends: bounds by dtype, and those of each edge.

The figures are data (`tolerances.toml`), each with its reason. A float is bounded by the narrowest
float dtype that its stage computes in, which is what rounds it: logits in float32 out of a stage
that computes in bfloat16 are good to bfloat16. Whole numbers, booleans and keys are equal or wrong.
"""

import functools
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import jax.numpy as jnp
import numpy as np

from gimlax import _jax
from gimlax.devices import MeshSpec
from gimlax.errors import InternalError
from gimlax.graph import Chain
from gimlax.planning.carriers import Carrier
from gimlax.planning.layout import OUTSIDE, Layout
from gimlax.records import Amount, Count

__all__ = [
    "BETWEEN_CLIENTS",
    "RELATIONS",
    "SAME_CLIENT",
    "EdgeTolerance",
    "Tolerance",
    "edge_tolerances",
    "narrowest",
    "reasons",
    "tolerance",
]

SAME_CLIENT = "same client"
BETWEEN_CLIENTS = "between clients"
RELATIONS = (SAME_CLIENT, BETWEEN_CLIENTS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tolerance:
    """How far an array may be off.

    An element is within it if one of three holds: it is off by at most `absolute`, by at most
    `relative` times the largest finite magnitude of the reference's array, or by at most `ulp`
    steps of the array's dtype. All three are 0 where values must be equal.

    Attributes:
        dtype: of the array.
        computed_in: the narrowest float dtype on the way to it, empty where values must be equal.
        absolute, relative, ulp: the bounds.
    """

    dtype: str
    computed_in: str
    absolute: Amount
    relative: Amount
    ulp: Amount

    def bound(self, largest: float) -> float:
        """The most that an element may be off, where the reference's largest magnitude is this."""
        return max(self.absolute, self.relative * largest)

    def looser(self, other: "Tolerance") -> "Tolerance":
        """What is within either of two."""
        return Tolerance(
            dtype=self.dtype,
            computed_in=self.computed_in,
            absolute=max(self.absolute, other.absolute),
            relative=max(self.relative, other.relative),
            ulp=max(self.ulp, other.ulp),
        )

    def __str__(self) -> str:
        if not self.computed_in:
            return f"{self.dtype} equal"
        via = f" computed in {self.computed_in}" if self.computed_in != self.dtype else ""
        return f"{self.dtype}{via} {self.relative:g} x max or {self.ulp:g} ULP"


@dataclass(frozen=True, slots=True, kw_only=True)
class EdgeTolerance:
    """What holds for the values that cross on a hop of a layout.

    Attributes:
        hop: its number in the layout.
        source, target: the meshes at its ends.
        relation: 'same client' or 'between clients'.
        tolerances: one for each dtype that crosses in any phase.
        narrowing: what float32 goes as on the wire, empty for as it is. It is then allowed what is
            computed in bfloat16, which is more than either narrowing may make of it.
    """

    hop: Count
    source: str
    target: str
    relation: str
    tolerances: tuple[Tolerance, ...]
    narrowing: str = ""

    def of(self, dtype: str) -> Tolerance | None:
        """The tolerance of values of a dtype, None if none cross."""
        return next((t for t in self.tolerances if t.dtype == dtype), None)


@functools.cache
def _table() -> dict[str, dict[str, Any]]:
    text = resources.files("gimlax.planning").joinpath("tolerances.toml").read_text("utf-8")
    return {row["name"]: row for row in tomllib.loads(text)["dtype"]}


def reasons() -> dict[str, str]:
    """Where the figures of each dtype are from."""
    return {name: row["reason"] for name, row in _table().items()}


def tolerance(dtype: Any, relation: str, computed_in: str = "") -> Tolerance:
    """The bounds of an array.

    Args:
        dtype: of the array.
        relation: `SAME_CLIENT` or `BETWEEN_CLIENTS`.
        computed_in: the narrowest float dtype that its stage computes in, empty if none.
    """
    name = _name(dtype)
    if not _is_float(dtype):
        return Tolerance(dtype=name, computed_in="", absolute=0.0, relative=0.0, ulp=0.0)
    own = "float32" if name == "complex64" else "float64" if name == "complex128" else name
    decisive = max((own, computed_in or own), key=_narrowness)
    row = _table()[decisive]
    relative = row["relative"]
    if relation == SAME_CLIENT:
        relative = row.get("same_client_relative", relative)
    return Tolerance(
        dtype=name,
        computed_in=decisive,
        absolute=float(row["absolute"]),
        relative=float(relative),
        ulp=float(row["ulp"]),
    )


def narrowest(jaxprs: Iterable[_jax.ClosedJaxpr]) -> str:
    """The narrowest float dtype that equations of these jaxprs round to, empty if none does.

    What is only read does not count: to widen a number is exact.
    """
    eqns = (eqn for closed in jaxprs for eqn in closed.jaxpr.eqns)
    return max(_rounded_to(eqns), key=_narrowness, default="")


def edge_tolerances(
    layout: Layout,
    specs: Sequence[MeshSpec],
    chain: Chain,
    carriers: Sequence[Carrier] = (),
) -> tuple[EdgeTolerance, ...]:
    """The tolerances of all hops between two holdings of a layout.

    Args:
        layout: of a plan.
        specs: of its meshes. Two that name the same live backend of one process are one client; of
            meshes that are only described nothing is known, so they are two.
        chain: what was planned.
        carriers: say between which meshes float32 goes narrowed.
    """
    narrowings = {(of.source, of.target): of.narrowing for of in carriers}
    clients = {spec.name: (spec.worker, spec.backend) for spec in specs}
    words: dict[tuple[int, int], str] = {}
    found = []
    for index, hop in enumerate(layout.hops):
        if OUTSIDE in (hop.source, hop.target):
            continue
        held = layout.holdings[hop.source]
        source, target = held.mesh, layout.holdings[hop.target].mesh
        same = source == target or (clients[source][1] and clients[source] == clients[target])
        relation = SAME_CLIENT if same else BETWEEN_CLIENTS
        run = (held.first_segment, held.stop)
        if run not in words:
            words[run] = _narrowest_of(chain, *run)
        crossing = {
            _name(aval.dtype): aval.dtype
            for phase in chain.phases
            for aval in phase.segments[held.stop - 1].boundary
        }
        narrowing = narrowings.get((source, target), "")
        word = words[run]
        on_the_wire = max(word or "float32", "bfloat16", key=_narrowness) if narrowing else word
        found.append(
            EdgeTolerance(
                hop=index,
                source=source,
                target=target,
                relation=relation,
                tolerances=tuple(
                    tolerance(dtype, relation, on_the_wire if name == "float32" else word)
                    for name, dtype in sorted(crossing.items())
                ),
                narrowing=narrowing,
            )
        )
    return tuple(found)


def _narrowest_of(chain: Chain, first: int, stop: int) -> str:
    """The narrowest float dtype that segments `first:stop` round to in any phase."""

    def eqns() -> Iterator[_jax.JaxprEqn]:
        for phase in chain.phases:
            nodes = phase.graph.nodes
            run = range(phase.segments[first].start, phase.segments[stop - 1].stop)
            for equation in {nodes[n].equation for n in run}:
                yield phase.traced.jaxpr.jaxpr.eqns[equation]

    return max(_rounded_to(eqns()), key=_narrowness, default="")


def _rounded_to(eqns: Iterable[_jax.JaxprEqn]) -> set[str]:
    found: set[str] = set()
    for eqn in eqns:
        found |= {_name(v.aval.dtype) for v in eqn.outvars if _is_float(v.aval.dtype)}  # type: ignore[attr-defined]
        for body in _jax.inner_jaxprs(eqn):
            found |= _rounded_to(body.jaxpr.eqns)
    return found


def _narrowness(name: str) -> int:
    """Where a dtype stands in the table: the narrower, the further down."""
    name = {"complex64": "float32", "complex128": "float64"}.get(name, name)
    try:
        return list(_table()).index(name)
    except ValueError:
        raise InternalError(
            f"dtype {name!r} has no tolerance; please report it, and add it to"
            " gimlax/planning/tolerances.toml"
        ) from None


def _is_float(dtype: Any) -> bool:
    return jnp.issubdtype(dtype, np.inexact)


def _name(dtype: Any) -> str:
    return getattr(dtype, "name", str(dtype))
