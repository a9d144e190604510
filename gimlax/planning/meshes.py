"""Plans for the meshes of a cluster as they are: figures, search, bound, rivals."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

from jax.sharding import PartitionSpec

from gimlax.devices import Calibration, Cluster
from gimlax.errors import PlanError
from gimlax.graph import Chain
from gimlax.planning.bound import lower_bound
from gimlax.planning.carriers import carriers
from gimlax.planning.constraints import constrained_axes
from gimlax.planning.cost import Costs, costs
from gimlax.planning.deadline import IsLate, OutOfTime, check_time
from gimlax.planning.explanation import Comparison, compare
from gimlax.planning.fronts import front
from gimlax.planning.infeasible import why_not
from gimlax.planning.layout import Layout
from gimlax.planning.limits import repeated
from gimlax.planning.objective import Objective, certified
from gimlax.planning.parking import ON_CHIP, on_tiers
from gimlax.planning.plans import Plan, Source, evidence_of
from gimlax.planning.predicting import predict_meshes, predict_phase
from gimlax.planning.problem import Problem
from gimlax.planning.request import Request, checked
from gimlax.planning.search import TOLERANCE, Found, search, search_all
from gimlax.planning.shardings import MeshSharding
from gimlax.planning.splits import Splits, ways
from gimlax.planning.tolerances import edge_tolerances
from gimlax.planning.wires import Wire

__all__ = ["MeshSetting"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MeshSetting:
    """All that plans for one chain on the meshes of one cluster have in common.

    `whole` is the cluster with meshes that take no part; `narrowing` is what float32 goes as
    between processes, empty for as it is, and `wire` what that leaves to be sent.
    """

    chain: Chain
    cluster: Cluster
    whole: Cluster
    calibration: Calibration | None
    request: Request
    splits: Splits
    narrowing: str
    wire: Wire

    @classmethod
    def of(
        cls,
        chain: Chain,
        cluster: Cluster,
        *,
        whole: Cluster,
        cuts: int | Sequence[int] | None,
        meshes: Sequence[str] | None,
        calibration: Calibration | None,
        shardings: Mapping[str, PartitionSpec] | None,
        tiers: Mapping[str, str] | None,
        narrowing: str,
    ) -> Self:
        """The figures of all segments on all meshes, and the caller's wishes."""
        request = checked(chain, cluster, cuts, meshes)
        named = _axes_of(shardings or {}) | constrained_axes(chain)
        wire = Wire.of(chain, cluster, narrowing)

        def priced(way: Cluster) -> Costs:
            on_chip = [mesh for mesh, lowest in (tiers or {}).items() if lowest == ON_CHIP]
            figures = costs(chain, way, calibration, shardings, held_on_chip=on_chip)
            figures = wire.priced(figures, calibration.onto(way) if calibration else way)
            return on_tiers(figures, way, request, tiers or {})

        return cls(
            chain=chain,
            cluster=cluster,
            whole=whole,
            calibration=calibration,
            request=request,
            splits=Splits.of(ways(cluster, named), priced, repeated(request.meshes or ())),
            narrowing=narrowing,
            wire=wire,
        )

    def search(self, objective: Objective, time_limit_s: float | None = None) -> Found | None:
        """The best layout, None if none is possible.

        Raises:
            PlanError: the time was over before any was found.
        """
        ends_s = math.inf if time_limit_s is None else time.monotonic() + time_limit_s
        try:
            found = self._search_all(
                self.splits.problems, objective, self.request, lambda: time.monotonic() > ends_s
            )
        except OutOfTime:
            raise PlanError(
                f"time_limit_s is {time_limit_s}, and no plan was found in it; give more, or name "
                "the meshes to use, in order, with meshes=(...)"
            ) from None
        if found is None or self.splits.complete or found.method != "exact":
            return found
        return replace(found, method="local")

    @staticmethod
    def _search_all(
        problems: Sequence[Problem], objective: Objective, request: Request | None, is_late: IsLate
    ) -> Found | None:
        """The best layout of some problems with what was asked for, None: cuts and meshes free."""
        return search_all(
            problems,
            lambda problem: search(
                problem,
                objective,
                cuts=request.cuts if request else None,
                meshes=request.meshes if request else None,
                is_late=is_late,
            ),
        )

    def front(
        self, goals: tuple[str, str], limits: Mapping[str, float], time_limit_s: float | None
    ) -> list[tuple[Objective, Found]]:
        """Every point of the Pareto front of two terms, each with the question it answers."""
        return front(goals, lambda objective: self.search(objective, time_limit_s), limits)

    def why_not(self, objective: Objective) -> PlanError:
        """Why no layout satisfies an objective."""
        return why_not(self.chain, self.cluster, self.splits.problems[0], self.request, objective)

    def bound(self, objective: Objective) -> float:
        """A value that no layout goes below."""
        return lower_bound(self.splits.best_case(), objective)

    def plan(
        self,
        objective: Objective,
        found: Found,
        time_limit_s: float | None,
        *,
        bound: float | None = None,
    ) -> Plan:
        """The record of a layout that was found.

        Args:
            objective: what is minimised.
            found: the layout.
            time_limit_s: how long the comparison with others may take.
            bound: a value that no layout goes below, if segments may have another order too.
        """
        bound = certified(self.bound(objective) if bound is None else bound, found.value)
        chain, calibration = self.chain, self.calibration
        figures, cluster = self.splits.chosen(found.cuts, found.meshes, found.problem)
        names = [cluster.meshes[mesh].name for mesh in found.meshes]
        layout = Layout.pipeline(found.cuts, names, chain.num_segments)
        carrying = carriers(layout, cluster.meshes, cluster.workers, self.narrowing)
        return Plan(
            objective=objective,
            layout=layout,
            phases=tuple(
                predict_phase(
                    chain, cluster, calibration, figures, layout, found.meshes, index, self.wire
                )
                for index in range(len(chain.phases))
            ),
            meshes=predict_meshes(cluster, figures, found.cuts, found.meshes),
            value=found.value,
            bound=bound,
            latency_s=found.terms.latency_s,
            period_s=found.terms.period_s,
            usd=_known(found.terms.usd),
            joules=_known(found.terms.joules),
            method="exact" if found.value <= bound * (1 + TOLERANCE) else found.method,
            model=chain.fingerprint(),
            cluster=self.whole.fingerprint(),
            specs=tuple(cluster.mesh(name) for name in dict.fromkeys(names)),
            segments=chain.names,
            order=chain.order,
            calibration=calibration.title if calibration else "",
            sources=Source.of(cluster, names),
            evidence=evidence_of(cluster, names),
            comparison=self._comparison(objective, found, time_limit_s),
            shardings=tuple(
                MeshSharding.of(name, figures.sharded[name], chain)
                for name in dict.fromkeys(names)
                if name in figures.sharded
            ),
            tolerances=edge_tolerances(layout, cluster.meshes, chain, carrying),
            carriers=carrying,
        )

    def _comparison(
        self, objective: Objective, found: Found, time_limit_s: float | None
    ) -> Comparison | None:
        """The plan beside its rivals; None if time runs out."""
        request = self.request
        ends_s = math.inf if time_limit_s is None else time.monotonic() + time_limit_s

        def is_late() -> bool:
            return time.monotonic() > ends_s

        def best(problems: Sequence[Problem], request: Request | None) -> Found | None:
            check_time(is_late)
            result = self._search_all(problems, objective, request, is_late)
            if result is not None and result.method == "stopped":
                raise OutOfTime
            return result

        try:
            return compare(
                self.splits.problems,
                objective,
                self.cluster,
                found,
                free=lambda problems: best(problems, None),
                given=lambda problems: best(problems, request),
                is_free=request.cuts is None and request.meshes is None,
            )
        except OutOfTime:
            return None


def _axes_of(shardings: Mapping[str, PartitionSpec]) -> set[str]:
    """The axes that specs name."""
    entries = [entry for spec in shardings.values() for entry in spec]
    return {
        axis
        for entry in entries
        for axis in (entry if isinstance(entry, tuple) else (entry,))
        if isinstance(axis, str)
    }


def _known(figure: float) -> float | None:
    return None if math.isnan(figure) else figure
