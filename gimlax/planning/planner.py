"""From a workload and a cluster to a plan: figures, search, bound.

Everything comes from shapes: no weights and no device are needed. If one mesh wins, that is the
plan.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from jax.sharding import PartitionSpec

from gimlax.devices import Calibration, Cluster
from gimlax.errors import PlanError, SpecError
from gimlax.graph import Chain, Traced, Workload
from gimlax.graph import chain as build_chain
from gimlax.planning.bound import lower_bound
from gimlax.planning.cost import Costs, costs
from gimlax.planning.explanation import Comparison, compare
from gimlax.planning.fronts import front
from gimlax.planning.groups import plan_groups
from gimlax.planning.infeasible import why_not
from gimlax.planning.labels import OutOfTime
from gimlax.planning.layout import Layout
from gimlax.planning.limits import repeated
from gimlax.planning.objective import TERMS, Objective
from gimlax.planning.parking import on_tiers
from gimlax.planning.plans import Plan, Source
from gimlax.planning.predicting import predict_meshes, predict_phase
from gimlax.planning.problem import Problem
from gimlax.planning.request import Request, checked
from gimlax.planning.search import Found, search
from gimlax.planning.shardings import MeshSharding
from gimlax.planning.splits import Splits, ways
from gimlax.planning.tariffs import check_known


def plan(
    workload: Traced | Workload | Chain,
    cluster: Cluster,
    *,
    objective: Objective | None = None,
    cuts: int | Sequence[int] | None = None,
    meshes: Sequence[str] | None = None,
    calibration: Calibration | str | Path | None = None,
    shardings: Mapping[str, PartitionSpec] | None = None,
    tiers: Mapping[str, str] | None = None,
    time_limit_s: float | None = None,
) -> Plan:
    """Chooses cuts and meshes together: the layout of least value among all that are possible.

    Args:
        workload: what runs; one cut and one placement serve all its phases.
        cluster: where it may run. A mesh that leaves its axes open gets the split between `data`
            and `model` that is best for its stage. Has it groups and no meshes, then meshes are
            made from them, and stages may have replicas.
        objective: what is minimised, the latency of a request by default; on groups throughput.
        cuts: boundaries (cut b lies before segment b) or a number of stages; free by default.
        meshes: a mesh name per stage, where a mesh may come back. By default the planner chooses,
            and each mesh holds at most one stage.
        calibration: measured figures, or the file that has them; they go before those of cards and
            of the cluster. The plan says of each mesh and transfer what its seconds rest on.
        shardings: specs to be kept on meshes of several devices, by the path of an argument, such
            as `{"params['up']": PartitionSpec(None, "model")}`; the others are searched for.
        tiers: by mesh, the lowest memory that its stages may use: 'on_chip', 'device' or 'host'. By
            default what is too large for a device is parked in the host memory that the cluster
            sets aside for it, if any, and streamed at each call.
        time_limit_s: how long the search may take; the best plan by then has its gap like any. What
            it is compared with may take as long again, else there is no comparison.

    Returns:
        The plan. Its bound holds for every choice of cuts and meshes, so the gap of a plan whose
        cuts or meshes were fixed also says what freedom could gain at most.

    Raises:
        PlanError: the request contradicts the model or the cluster, or nothing satisfies it.
        SpecError: a kind of device has no figure for a dtype that the model computes in, an
            argument is of another kind than it should be, or the calibration belongs to another
            JAX, machine or cluster, or a sharding does not fit its argument or the meshes.
    """
    if time_limit_s is not None and not time_limit_s > 0:
        raise SpecError(f"time_limit_s is {time_limit_s}; give a positive number, or leave it out")
    if isinstance(cluster, Cluster) and cluster.groups and not cluster.meshes:
        fixed = {"cuts": cuts, "meshes": meshes, "shardings": shardings, "tiers": tiers}
        return _on_groups(workload, cluster, objective, fixed, calibration, time_limit_s)
    ends_s = math.inf if time_limit_s is None else time.monotonic() + time_limit_s
    setting = Setting.of(workload, cluster, cuts, meshes, calibration, shardings, tiers)
    objective = objective or Objective()
    _check_kind(objective, Objective)
    check_known(cluster, objective)
    try:
        found = setting.search(objective, lambda: time.monotonic() > ends_s)
    except OutOfTime:
        raise PlanError(
            f"time_limit_s is {time_limit_s}, and no plan was found in it; give more, or name the "
            "meshes to use, in order, with meshes=(...)"
        ) from None
    if found is None:
        raise why_not(setting.chain, cluster, setting.splits.problem, setting.request, objective)
    return setting.plan(objective, found, time_limit_s)


def _on_groups(
    workload: Traced | Workload | Chain,
    cluster: Cluster,
    objective: Objective | None,
    fixed: Mapping[str, object],
    calibration: Calibration | str | Path | None,
    time_limit_s: float | None,
) -> Plan:
    """A plan that makes its meshes from groups of devices."""
    given = [name for name, value in fixed.items() if value is not None]
    if given:
        raise PlanError(
            f"{', '.join(given)} cannot be given for groups of devices, from which the planner"
            " makes the meshes; leave them out, or carve meshes with cluster.carve(...)"
        )
    objective = objective or Objective(goal="throughput")
    _check_kind(objective, Objective)
    chain = workload if isinstance(workload, Chain) else build_chain(workload)
    if isinstance(calibration, str | Path):
        calibration = Calibration.load(calibration)
    return plan_groups(
        chain, cluster, objective, calibration=calibration, time_limit_s=time_limit_s
    )


def pareto(
    workload: Traced | Workload | Chain,
    cluster: Cluster,
    *,
    goals: tuple[str, str] = ("latency", "usd"),
    cuts: int | Sequence[int] | None = None,
    meshes: Sequence[str] | None = None,
    calibration: Calibration | str | Path | None = None,
) -> tuple[Plan, ...]:
    """The Pareto front of two goals: every plan that none other beats in both.

    Args:
        workload: what runs.
        cluster: where it may run.
        goals: two of 'latency', 'throughput', 'usd', 'joules'.
        cuts, meshes, calibration: as those of `plan`.

    Returns:
        The plans, by the first goal from the best on. The objective of each is the first goal with
        the second limited to what this plan reaches, so its gap is that of this question.

    Raises:
        PlanError, SpecError: as `plan` does, or goals that are not two different terms.
    """
    if len(goals) != 2 or len(set(goals)) != 2 or not set(goals) <= set(TERMS):
        raise SpecError(
            f"pareto: goals are {goals!r}; give two different ones of {', '.join(map(repr, TERMS))}"
        )
    if isinstance(cluster, Cluster) and cluster.groups and not cluster.meshes:
        raise PlanError(
            "pareto: the cluster has groups of devices and no mesh, and plans for groups have one"
            " goal; carve meshes with cluster.carve(...)"
        )
    setting = Setting.of(workload, cluster, cuts, meshes, calibration)
    for goal in goals:
        check_known(cluster, Objective(goal=goal))
    points = front(goals, setting.search)
    if not points:
        problem, objective = setting.splits.problem, Objective(goal=goals[0])
        raise why_not(setting.chain, cluster, problem, setting.request, objective)
    return tuple(setting.plan(objective, found) for objective, found in points)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Setting:
    """Everything that the plans for one workload on one cluster have in common."""

    chain: Chain
    cluster: Cluster
    calibration: Calibration | None
    request: Request
    splits: Splits

    @classmethod
    def of(
        cls,
        workload: Traced | Workload | Chain,
        cluster: Cluster,
        cuts: int | Sequence[int] | None,
        meshes: Sequence[str] | None,
        calibration: Calibration | str | Path | None,
        shardings: Mapping[str, PartitionSpec] | None = None,
        tiers: Mapping[str, str] | None = None,
    ) -> Self:
        """The figures of all segments on all meshes, and the caller's wishes."""
        _check_kind(cluster, Cluster)
        chain = workload if isinstance(workload, Chain) else build_chain(workload)
        request = checked(chain, cluster, cuts, meshes)
        if isinstance(calibration, str | Path):
            calibration = Calibration.load(calibration)

        def priced(way: Cluster) -> Costs:
            figures = costs(chain, way, calibration, shardings)
            return on_tiers(figures, way, request, tiers or {})

        return cls(
            chain=chain,
            cluster=cluster,
            calibration=calibration,
            request=request,
            splits=Splits.of(
                ways(cluster, _axes_of(shardings or {})), priced, repeated(request.meshes or ())
            ),
        )

    def search(
        self, objective: Objective, is_late: Callable[[], bool] | None = None
    ) -> Found | None:
        """The best layout, or None if none is possible."""
        request = self.request
        return search(
            self.splits.problem,
            objective,
            cuts=request.cuts,
            meshes=request.meshes,
            is_late=is_late,
        )

    def plan(self, objective: Objective, found: Found, time_limit_s: float | None = None) -> Plan:
        """The record of a layout that was found."""
        chain, calibration = self.chain, self.calibration
        figures, cluster = self.splits.chosen(found.cuts, found.meshes)
        names = [cluster.meshes[mesh].name for mesh in found.meshes]
        layout = Layout.pipeline(found.cuts, names, chain.num_segments)
        return Plan(
            objective=objective,
            layout=layout,
            phases=tuple(
                predict_phase(chain, cluster, calibration, figures, layout, found.meshes, index)
                for index in range(len(chain.phases))
            ),
            meshes=predict_meshes(cluster, figures, found.cuts, found.meshes),
            value=found.value,
            bound=min(lower_bound(self.splits.best_case(), objective), found.value),
            latency_s=found.terms.latency_s,
            period_s=found.terms.period_s,
            usd=_known(found.terms.usd),
            joules=_known(found.terms.joules),
            method=found.method,
            model=chain.fingerprint(),
            cluster=self.cluster.fingerprint(),
            specs=tuple(cluster.mesh(name) for name in dict.fromkeys(names)),
            segments=chain.names,
            calibration=calibration.title if calibration else "",
            sources=_sources(cluster, names),
            comparison=self._comparison(objective, found, time_limit_s),
            shardings=tuple(
                MeshSharding.of(name, figures.sharded[name], chain)
                for name in dict.fromkeys(names)
                if name in figures.sharded
            ),
        )

    def _comparison(
        self, objective: Objective, found: Found, time_limit_s: float | None
    ) -> Comparison | None:
        """The plan beside its rivals; None if time runs out."""
        request = self.request
        ends_s = math.inf if time_limit_s is None else time.monotonic() + time_limit_s

        def best(problem: Problem, request: Request | None) -> Found | None:
            result = search(
                problem,
                objective,
                cuts=request.cuts if request else None,
                meshes=request.meshes if request else None,
                is_late=lambda: time.monotonic() > ends_s,
            )
            if result is not None and result.method == "stopped":
                raise OutOfTime
            return result

        try:
            return compare(
                self.splits.problem,
                objective,
                self.cluster,
                found,
                free=lambda problem: best(problem, None),
                given=lambda problem: best(problem, request),
                is_free=request.cuts is None and request.meshes is None,
            )
        except OutOfTime:
            return None


def _check_kind(value: object, kind: type) -> None:
    if not isinstance(value, kind):
        raise SpecError(
            f"gimlax.plan was given a {type(value).__name__} where a {kind.__name__} belongs; give "
            f"a gimlax.{kind.__name__}"
        )


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


def _sources(cluster: Cluster, names: Sequence[str]) -> tuple[Source, ...]:
    """Where the figures of the kinds of these meshes are from."""
    kinds = {kind.name: kind for kind in map(cluster.kind, names)}
    return tuple(
        Source(device_kind=kind.name, figure=figure, source=source)
        for kind in kinds.values()
        for figure, source in kind.sources
    )


def check_plan(plan: Plan, chain: Chain, cluster: Cluster | None = None) -> None:
    """Refuses a plan that was made for another model or another cluster.

    Raises:
        PlanError: says what differs.
    """
    differs: list[str] = []
    if plan.model != chain.fingerprint():
        differs.append(f"it is for another model: {_other_model(plan, chain)}")
    if cluster is not None and plan.cluster != cluster.fingerprint():
        differs.append(f"it is for another cluster: {_other_cluster(plan, cluster)}")
    if differs:
        raise PlanError(f"plan: {'; '.join(differs)}; make a new plan")


def _other_model(plan: Plan, chain: Chain) -> str:
    planned, here = [p.name for p in plan.phases], [p.name for p in chain.phases]
    if planned != here:
        return f"it has phases {planned}, this one {here}"
    if len(plan.segments) != chain.num_segments:
        return f"it has {len(plan.segments)} segments, this one {chain.num_segments}"
    for index, (a, b) in enumerate(zip(plan.segments, chain.names, strict=True)):
        if a != b:
            return f"its segment {index} is {a!r}, this one's {b!r}"
    return "its segments have the same names, but shapes or dtypes of its arguments differ"


def _other_cluster(plan: Plan, cluster: Cluster) -> str:
    here = {mesh.name: mesh for mesh in cluster.meshes}
    for spec in plan.specs:
        if spec.name not in here:
            return f"mesh {spec.name!r} is not in this one, which has {list(here)}"
        given = here[spec.name]
        if spec != (given if given.axes else replace(given, axes=spec.axes)):
            return f"mesh {spec.name!r} is {spec} there and {here[spec.name]} here"
    return "the meshes that it uses are the same, but others, links or device figures differ"
