"""From a workload and a cluster to a plan: figures, search, bound.

Everything comes from shapes: no weights and no device are needed. If one mesh wins, that is the
plan. A cluster has meshes, among which stages are placed (`meshes.py`), or groups of devices, from
which meshes are made as well (`groups/`); both answer the same questions.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from jax.sharding import PartitionSpec

from gimlax.checking import check_arguments
from gimlax.devices import Calibration, Cluster
from gimlax.devices.groups import group_of
from gimlax.errors import PlanError, SpecError
from gimlax.graph import Chain, Traced, Workload
from gimlax.graph import chain as build_chain
from gimlax.planning.constraints import check_constraints
from gimlax.planning.groups import GroupSetting
from gimlax.planning.meshes import MeshSetting
from gimlax.planning.objective import TERM_OF_LIMIT, TERMS, Objective
from gimlax.planning.ordering import OrderedSetting
from gimlax.planning.plans import Plan
from gimlax.planning.sequences import rows
from gimlax.planning.tariffs import check_known, without_unknown
from gimlax.planning.wires import check_wire


class Setting(Protocol):
    """What plans for one workload on one cluster have in common; `found` is what `search` gave."""

    @property
    def chain(self) -> Chain: ...
    def search(self, objective: Objective, time_limit_s: float | None) -> Any | None: ...
    def front(
        self, goals: tuple[str, str], limits: Mapping[str, float], time_limit_s: float | None
    ) -> Sequence[tuple[Objective, Any]]: ...
    def why_not(self, objective: Objective) -> PlanError: ...
    def plan(self, objective: Objective, found: Any, time_limit_s: float | None) -> Plan: ...


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
    wire: str | None = None,
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
            and each mesh holds at most one stage. Others whose price or power is asked for and not
            known take no part in bound and comparison.
        calibration: measured figures, or the file that has them; they go before those of cards and
            of the cluster. The plan says of each mesh and transfer what its seconds rest on.
        shardings: specs to be kept on meshes of several devices, by the path of an argument, such
            as `{"params['up']": PartitionSpec(None, "model")}`; the others are searched for.
        tiers: by mesh, the lowest memory that its stages may use: 'on_chip', 'device' or 'host'.
            What is held on the chip is read as fast as the card says of that. By default what is
            too large for a device is parked in the host memory that the cluster sets aside for it,
            if any, and streamed at each call.
        wire: what float32 goes as between two processes, 'bfloat16' (half the bytes) or 'int8'
            (about a quarter, and one that is not finite makes NaN of the 64 in its block); the plan
            allows the values there the tolerance of bfloat16. By default they go as they are.
        time_limit_s: how long the search may take, 20 s on groups by default; the best plan by then
            has its gap like any, and there is one if a single mesh can do it. What it is compared
            with may take as long again, else there is no comparison.

    Returns:
        The plan. Its bound holds for every choice of cuts and meshes, so the gap of a plan whose
        cuts or meshes were fixed also says what freedom could gain at most.

    Raises:
        PlanError: the request contradicts the model or the cluster, or nothing satisfies it.
        SpecError: a kind of device has no figure for a dtype that the model computes in, an
            argument is of another kind than it should be, `wire` is no narrowing, the calibration
            belongs to another JAX, machine or cluster, or a sharding or a constraint in the model
            does not fit its array or the meshes.
    """
    check_arguments("gimlax.plan", plan, locals())
    _check_time(time_limit_s)
    objective = objective or Objective(goal="throughput" if _of_groups(cluster) else "latency")
    setting = _setting(
        workload,
        cluster,
        calibration,
        (objective,),
        cuts=cuts,
        meshes=meshes,
        shardings=shardings,
        tiers=tiers,
        wire=wire,
    )
    found = setting.search(objective, time_limit_s)
    if found is None:
        raise setting.why_not(objective)
    return setting.plan(objective, found, time_limit_s)


def pareto(
    workload: Traced | Workload | Chain,
    cluster: Cluster,
    *,
    goals: Sequence[str] = ("latency", "usd"),
    limits: Mapping[str, float] | None = None,
    cuts: int | Sequence[int] | None = None,
    meshes: Sequence[str] | None = None,
    calibration: Calibration | str | Path | None = None,
    shardings: Mapping[str, PartitionSpec] | None = None,
    tiers: Mapping[str, str] | None = None,
    wire: str | None = None,
    time_limit_s: float | None = None,
) -> tuple[Plan, ...]:
    """The Pareto front of two goals: plans that none other beats in both.

    On meshes these are all such plans. On groups, where replicas share requests in any proportion,
    the front is a curve; its ends are told and some points between them.

    Args:
        workload: what runs.
        cluster: where it may run.
        goals: two of 'latency', 'throughput', 'usd', 'joules'.
        limits: of an `Objective`, by name, that every plan keeps: `{"max_latency_s": 0.5}`.
        cuts, meshes, calibration, shardings, tiers, wire: as those of `plan`.
        time_limit_s: as that of `plan`, for each search and each comparison. On meshes a point
            takes two searches, and its plan a comparison of some 30 more: most of the time.

    Returns:
        The plans, by the first goal from the best on. The objective of each is the first goal with
        the second limited to what this plan reaches, so its gap is that of this question.

    Raises:
        PlanError, SpecError: as `plan` does, or goals that are not two different terms.
    """
    check_arguments("gimlax.pareto", pareto, locals())
    if len(goals) != 2 or len(set(goals)) != 2 or not set(goals) <= set(TERMS):
        raise SpecError(
            f"pareto: goals are {goals!r}; give two different ones of {', '.join(map(repr, TERMS))}"
        )
    limits = dict(limits or {})
    if unknown := [name for name in limits if name not in TERM_OF_LIMIT]:
        raise SpecError(
            f"pareto: limits name {', '.join(map(repr, unknown))}; give some of "
            f"{', '.join(TERM_OF_LIMIT)}"
        )
    _check_time(time_limit_s)
    asked = [Objective(goal=goal, **limits) for goal in goals]  # type: ignore[arg-type]
    setting = _setting(
        workload,
        cluster,
        calibration,
        asked,
        cuts=cuts,
        meshes=meshes,
        shardings=shardings,
        tiers=tiers,
        wire=wire,
    )
    points = setting.front((goals[0], goals[1]), limits, time_limit_s)
    if not points:
        raise setting.why_not(asked[0])
    return tuple(setting.plan(objective, found, time_limit_s) for objective, found in points)


def _of_groups(cluster: Cluster) -> bool:
    return bool(cluster.groups) and not cluster.meshes


def _check_groups(cluster: Cluster) -> None:
    """Refuses groups beside meshes that would be left out of the plan."""
    carved = {group_of(mesh.name) for mesh in cluster.meshes}
    if left_out := [group.name for group in cluster.groups if group.name not in carved]:
        raise PlanError(
            f"the cluster has meshes, and group {', '.join(map(repr, left_out))} besides, of which "
            "no mesh is made; plans are for meshes or for groups: make meshes of it with "
            "cluster.carve(...), describe the meshes as groups, or leave one of them out"
        )


def _setting(
    workload: Traced | Workload | Chain,
    cluster: Cluster,
    calibration: Calibration | str | Path | None,
    objectives: Sequence[Objective],
    *,
    cuts: int | Sequence[int] | None,
    meshes: Sequence[str] | None,
    shardings: Mapping[str, PartitionSpec] | None,
    tiers: Mapping[str, str] | None,
    wire: str | None,
) -> Setting:
    """The workload on the meshes of the cluster, or on those that its groups can give."""
    check_wire(wire)
    for objective in objectives:
        check_known(cluster, objective, meshes)
    known = without_unknown(cluster, objectives, meshes)
    chain = workload if isinstance(workload, Chain) else build_chain(workload)
    check_constraints(chain)
    if isinstance(calibration, str | Path):
        calibration = Calibration.load(calibration)
    if not _of_groups(cluster):
        _check_groups(cluster)

        def priced(chain: Chain) -> MeshSetting:
            return MeshSetting.of(
                chain,
                known,
                whole=cluster,
                cuts=cuts,
                meshes=meshes,
                calibration=calibration,
                shardings=shardings,
                tiers=tiers,
                narrowing=wire or "",
            )

        setting = priced(chain)
        if isinstance(setting.request.cuts, tuple):  # places in the order of the program
            return setting
        others = rows(chain, setting.splits.figures[0], known)
        return OrderedSetting(setting, others, priced) if others.others else setting
    fixed = {"cuts": cuts, "meshes": meshes, "tiers": tiers, "wire": wire}
    if given := [name for name, value in fixed.items() if value is not None]:
        raise PlanError(
            f"{', '.join(given)} cannot be given for groups of devices, from which the planner"
            " makes the meshes; leave them out, or carve meshes with cluster.carve(...)"
        )
    return GroupSetting.of(
        chain,
        cluster,
        calibration=calibration,
        shardings=shardings,
        split_batch=any(objective.needs("latency") for objective in objectives),
    )


def _check_time(time_limit_s: float | None) -> None:
    if time_limit_s is not None and not time_limit_s > 0:
        raise SpecError(f"time_limit_s is {time_limit_s}; give a positive number, or leave it out")
