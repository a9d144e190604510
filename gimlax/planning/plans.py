"""A Plan: which mesh runs which segments, what that is predicted to cost, and what it is for.

It holds everything that a reader needs without model, cluster or device: figures of one call of
each phase, memory of each mesh, the objective's value with a bound that no plan can beat, and the
fingerprints of the model and the cluster that it was made for. Units: seconds, bytes, FLOPs,
dollars, joules.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from gimlax.checking import check_arguments
from gimlax.devices import TIERS, Cluster, Evidence, MeshSpec, find_evidence
from gimlax.devices.reading import read_text, write_text
from gimlax.errors import PlanError
from gimlax.planning.carriers import Carrier
from gimlax.planning.contradictions import contradictions
from gimlax.planning.explanation import Comparison
from gimlax.planning.explanation.differing import difference
from gimlax.planning.layout import Layout, Route
from gimlax.planning.objective import Objective
from gimlax.planning.predictions import MeshPrediction, PhasePrediction
from gimlax.planning.shardings import MeshSharding
from gimlax.planning.tables import explained, table
from gimlax.planning.tolerances import EdgeTolerance
from gimlax.records import Amount, from_json, to_json

MOST_BYTES = 2**26  # of a saved plan, in which a mesh takes some kilobytes
SCHEMA_VERSION = 2  # 1 had no dollars, joules, methods and sources, and called the value value_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where a figure of a kind of device is from, with its date."""

    device_kind: str
    figure: str
    source: str

    @classmethod
    def of(cls, cluster: Cluster, names: Iterable[str]) -> tuple[Self, ...]:
        """Those of the kinds of some meshes or groups of a cluster."""
        kinds = {kind.name: kind for kind in map(cluster.kind, names)}
        return tuple(
            cls(device_kind=kind.name, figure=figure, source=source)
            for kind in kinds.values()
            for figure, source in kind.sources
        )


def evidence_of(cluster: Cluster, names: Iterable[str]) -> tuple[Evidence, ...]:
    """Of the kinds of some meshes or groups of a cluster, the lowest tier first."""
    kinds = dict.fromkeys(cluster.kind(name).name for name in names)
    return tuple(sorted(map(find_evidence, kinds), key=lambda found: found.rank))


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A layout for a workload on a cluster, with what it is predicted to cost.

    Attributes:
        value: what the objective says of it, per request, in the unit of the objective.
        bound: no plan for this workload on this cluster can have a lower value, in the terms of the
            same cost model, whatever the cuts and meshes.
        latency_s: of a request that runs alone.
        period_s: how often the full pipeline takes a request at best.
        usd, joules: per request in the full pipeline, None where prices or power are not known.
        method: 'exact': nothing better exists. 'stopped': time ran out before that was known.
            'local': so many orders of meshes or segments that not all of them were tried.
        model: fingerprint of the workload. cluster: fingerprint of the cluster.
        specs: the meshes of the layout, in order of first use.
        segments: names of all segments, in the order that the plan has chosen.
        evidence: the tier of each kind that it uses, the lowest first; empty in plans of before
            there were any.
        order: which segment of the program each one is; empty for the program's order.
        tolerances: how far the values of each hop may be off, one record for each hop between two
            stages; empty in plans of before there were any.
        carriers: what carries the values between each pair of meshes; empty in plans of before
            there were any.
        calibration: what measured figures were taken with and when; empty where none were used.
        sources: of the figures of the kinds that it uses.
        comparison: what it was compared with, None where time ran out before that was known.
        shardings: of the meshes that have several devices; on others everything is whole.
    """

    objective: Objective
    layout: Layout
    phases: tuple[PhasePrediction, ...]
    meshes: tuple[MeshPrediction, ...]
    value: Amount
    bound: Amount
    latency_s: Amount
    period_s: Amount
    usd: Amount | None
    joules: Amount | None
    method: str
    model: str
    cluster: str
    specs: tuple[MeshSpec, ...]
    segments: tuple[str, ...]
    calibration: str = ""
    sources: tuple[Source, ...] = ()
    shardings: tuple[MeshSharding, ...] = ()
    comparison: Comparison | None = None
    order: tuple[int, ...] = ()
    evidence: tuple[Evidence, ...] = ()
    tolerances: tuple[EdgeTolerance, ...] = ()
    carriers: tuple[Carrier, ...] = ()

    def __post_init__(self) -> None:
        wrong = list(contradictions(self))
        if wrong:
            raise PlanError(f"plan: {'; '.join(wrong)}; make a new plan")

    @property
    def gap(self) -> float:
        """By which share the value may at most lie above the best possible one."""
        return self.value / self.bound - 1 if self.bound > 0 else float("inf")

    @property
    def unit(self) -> str:
        """Of `value` and `bound`: 's', 'usd' or 'J', empty for a weighted sum."""
        return self.objective.unit

    @property
    def lowest_tier(self) -> str:
        """The lowest tier of the kinds that it uses, one of `gimlax.devices.TIERS`."""
        return self.evidence[0].tier if self.evidence else TIERS[0]

    @property
    def route(self) -> Route:
        """Cuts and meshes of the only route."""
        return self.layout.route()

    @property
    def cuts(self) -> tuple[int, ...]:
        """Boundaries between the stages of the only route."""
        return self.route.cuts

    @property
    def edges(self) -> tuple[EdgeTolerance, ...]:
        """What the values from each stage of the only route to the next may be off."""
        of = {self.layout.hops[edge.hop].source: edge for edge in self.tolerances}
        stages = self.layout.order()
        return tuple(of[stage] for stage in stages[:-1]) if of else ()

    @property
    def mesh_names(self) -> tuple[str, ...]:
        """The meshes that the layout uses, each once, in order of first use."""
        return tuple(dict.fromkeys(h.mesh for h in self.layout.holdings))

    def spec(self, mesh: str) -> MeshSpec:
        """The description of a mesh of the layout.

        Raises:
            PlanError: the layout does not use such a mesh.
        """
        for spec in self.specs:
            if spec.name == mesh:
                return spec
        raise PlanError(
            f"mesh {mesh!r} is not used by the plan, which has "
            f"{', '.join(repr(spec.name) for spec in self.specs)}; use one of these"
        )

    def __str__(self) -> str:
        return table(self)

    def explain(self) -> str:
        """Per stage what it takes and what binds; then rivals, what would change it, sources."""
        return explained(self)

    def diff(self, other: "Plan") -> str:
        """What `other` has otherwise: segments that moved, value, terms and memory, a line each.

        Raises:
            SpecError: `other` is no plan.
        """
        check_arguments("plan.diff", Plan.diff, {"other": other})
        return difference(self, other)

    def to_json(self) -> str:
        """The plan as JSON that is the same in every run."""
        return to_json(self, SCHEMA_VERSION)

    @classmethod
    def from_json(cls, text: str, *, name: str = "plan") -> Self:
        """The plan that `to_json` wrote.

        Args:
            text: the JSON; it is not trusted.
            name: how messages call it.

        Raises:
            PlanError: it is no plan, of another schema version, or contradicts itself.
        """
        return from_json(cls, text, SCHEMA_VERSION, name, error=PlanError, advice="make a new plan")

    def save(self, path: str | Path) -> None:
        """Writes the plan as JSON.

        Raises:
            PlanError: the file cannot be written.
        """
        write_text(path, self.to_json(), "plan", error=PlanError)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Reads the plan that `save` wrote.

        Raises:
            PlanError: there is no such file, or it holds no plan.
        """
        text = read_text(
            path, "plan", most_bytes=MOST_BYTES, advice="give a saved plan", error=PlanError
        )
        return cls.from_json(text, name=f"plan {str(path)!r}")
