"""From groups of devices to a plan: meshes made of them, replicas, shares, predictions, bound.

The goal is throughput: one request alone would leave all replicas but one idle. The requests of a
boundary are shared out over the meshes that go on from there in proportion to what each does.
"""

from collections.abc import Sequence

import numpy as np

from gimlax.devices import Calibration, Cluster
from gimlax.errors import PlanError
from gimlax.graph import Chain
from gimlax.planning.groups.comparing import compare_groups
from gimlax.planning.groups.pricing import GroupCosts, price_groups
from gimlax.planning.layout import Holding, Layout
from gimlax.planning.objective import Objective
from gimlax.planning.plans import Plan, Source
from gimlax.planning.predicting import predict_phase
from gimlax.planning.predictions import MeshPrediction
from gimlax.planning.solvers.pools import Held, Solution, solve
from gimlax.units import show_bytes

__all__ = ["plan_groups"]

_TIME_LIMIT_S = 20.0


def plan_groups(
    chain: Chain,
    cluster: Cluster,
    objective: Objective,
    *,
    calibration: Calibration | None = None,
    time_limit_s: float | None = None,
) -> Plan:
    """The plan of most requests per second that was found for groups of devices.

    Args:
        chain: what runs.
        cluster: has groups and no meshes.
        objective: throughput, with no limit but one on it.
        calibration: measured figures.
        time_limit_s: for the search, figures left out; 20 s by default. What the plan is compared
            with may take as long again.

    Raises:
        PlanError: another goal or limit, groups that are not joined, or nothing fits.
    """
    _check(objective)
    figures = price_groups(chain, cluster, calibration)
    problem = figures.problem(cluster)
    found = solve(problem, time_limit_s=time_limit_s or _TIME_LIMIT_S)
    if found is None:
        raise _nothing_fits(cluster, figures)
    least = objective.min_requests_per_s
    if least is not None and found.requests_per_s < least:
        raise PlanError(
            f"min_requests_per_s is {least:g}, but the best plan that was found passes "
            f"{found.requests_per_s:.3g} requests/s, and none passes more than "
            f"{found.bound.requests_per_s:.3g}; ask for less, or add devices"
        )
    return _plan(
        chain, cluster, objective, calibration, figures, found, time_limit_s or _TIME_LIMIT_S
    )


def _check(objective: Objective) -> None:
    others = [name for name, _ in objective.limits if name != "min_requests_per_s"]
    if objective.goal != "throughput" or others:
        asked = ", ".join([f"goal {objective.goal!r}", *others])
        raise PlanError(
            f"objective: on groups of devices plans are made for throughput, not for {asked}; give "
            "Objective(goal='throughput'), or carve meshes with cluster.carve(...)"
        )


def _nothing_fits(cluster: Cluster, figures: GroupCosts) -> PlanError:
    everything = [(0, figures.figures.problem.num_segments)]
    whole = figures.figures.resident_bytes(0, everything)
    whole += figures.figures.carried_bytes(0, everything)
    room = {g.name: g.num_devices * cluster.memory_bytes(g.name) for g in cluster.groups}
    largest = max(cluster.groups, key=lambda g: cluster.memory_bytes(g.name))
    per_device = cluster.memory_bytes(largest.name)
    needs = figures.figures.problem.stage_bytes()
    segment = float(np.diagonal(needs, 1, 1, 2).min(axis=0).max())
    if segment > per_device:
        return PlanError(
            f"the model fits nowhere: one of its segments needs {show_bytes(segment)} on a device, "
            f"however it is split, and the largest one, of group {largest.name!r}, has "
            f"{show_bytes(per_device)}; add larger devices, or lower batch, context or precision"
        )
    missing = max(whole - sum(room.values()), 0.0)
    return PlanError(
        f"the model fits nowhere: parameters and state need {show_bytes(whole)}, and all devices "
        f"have {show_bytes(sum(room.values()))} together: {show_bytes(missing)} are missing, "
        f"temporaries not counted; {int(-(-whole // per_device))} devices of group "
        f"{largest.name!r} could do, or lower batch, context or precision"
    )


def _plan(
    chain: Chain,
    cluster: Cluster,
    objective: Objective,
    calibration: Calibration | None,
    figures: GroupCosts,
    found: Solution,
    time_limit_s: float,
) -> Plan:
    held = sorted(found.held, key=lambda h: (h.first, h.stop, h.option))
    each = [h for h in held for _ in range(h.count)]
    names, made = _meshes_of(cluster, figures, each)
    shares = [h.requests_per_s / h.count / found.requests_per_s for h in each]
    holdings = [
        Holding(mesh=name, first_segment=h.first, num_segments=h.stop - h.first)
        for name, h in zip(names, each, strict=True)
    ]
    layout = Layout.shared(holdings, shares)
    options = [h.option for h in each]
    phases = tuple(
        predict_phase(chain, made, calibration, figures.figures, layout, options, index)
        for index in range(len(chain.phases))
    )
    period_s = 1 / found.requests_per_s
    stage_s = [float(figures.figures.problem.stage_s[h.option, h.first, h.stop]) for h in each]
    hops_s = sum(
        layout.hops[t.hop].share * phase.calls * t.seconds
        for phase in phases
        for t in phase.transfers
    )
    latency_s = float(np.dot(shares, stage_s)) + hops_s
    usd, joules = _spent(figures, options, np.array(shares) * stage_s, period_s)
    return Plan(
        objective=objective,
        layout=layout,
        phases=phases,
        meshes=_memory(figures, names, each, np.array(shares) * stage_s),
        value=period_s,
        bound=min(1 / found.bound.requests_per_s, period_s),
        latency_s=latency_s,
        period_s=period_s,
        usd=usd,
        joules=joules,
        method=found.method,
        model=chain.fingerprint(),
        cluster=cluster.fingerprint(),
        specs=tuple(made.mesh(name) for name in names),
        segments=chain.names,
        calibration=calibration.title if calibration else "",
        sources=_sources(cluster, figures, options),
        comparison=compare_groups(cluster, figures, found, hops_s / latency_s, time_limit_s),
    )


def _meshes_of(
    cluster: Cluster, figures: GroupCosts, each: Sequence[Held]
) -> tuple[list[str], Cluster]:
    """A mesh for every replica: their names, and the cluster with them."""
    shapes: dict[str, list[tuple[int, int]]] = {group.name: [] for group in cluster.groups}
    names: list[str] = []
    for h in each:
        group = cluster.groups[figures.option_group[h.option]].name
        names.append(f"{group}/{len(shapes[group])}")
        shapes[group].append((1, figures.shapes[h.option].num_devices))
    return names, cluster.carve(shapes)


def _spent(
    figures: GroupCosts, options: Sequence[int], busy_s: np.ndarray, period_s: float
) -> tuple[float | None, float | None]:
    """Dollars and joules per request in the full plan, None where nobody knows."""
    problem = figures.figures.problem
    which = list(options)
    usd = float(problem.usd_per_s[which].sum()) * period_s
    joules = float(
        problem.busy_watts[which] @ busy_s + problem.idle_watts[which] @ (period_s - busy_s)
    )
    return (None if np.isnan(usd) else usd), (None if np.isnan(joules) else joules)


def _memory(
    figures: GroupCosts, names: Sequence[str], each: Sequence[Held], load_s: np.ndarray
) -> tuple[MeshPrediction, ...]:
    result = []
    known: dict[Held, tuple[int, int]] = {}
    for name, h, load in zip(names, each, load_s, strict=True):
        temp, received = figures.figures.passing_bytes(h.first, h.stop)
        if h not in known:
            run = [(h.first, h.stop)]
            known[h] = (
                figures.figures.resident_bytes(h.option, run),
                figures.figures.carried_bytes(h.option, run),
            )
        resident, carried = known[h]
        result.append(
            MeshPrediction(
                mesh=name,
                resident_bytes=resident,
                carried_bytes=carried,
                temp_bytes=temp,
                received_bytes=received,
                capacity_bytes=int(figures.figures.problem.capacity_bytes[h.option]),
                load_s=float(load),
                basis=figures.figures.rates[h.option].source,
            )
        )
    return tuple(result)


def _sources(cluster: Cluster, figures: GroupCosts, options: Sequence[int]) -> tuple[Source, ...]:
    """Where the figures of the kinds of these meshes are from."""
    used = dict.fromkeys(cluster.groups[figures.option_group[option]].name for option in options)
    kinds = {kind.name: kind for kind in map(cluster.kind, used)}
    return tuple(
        Source(device_kind=kind.name, figure=figure, source=source)
        for kind in kinds.values()
        for figure, source in kind.sources
    )
