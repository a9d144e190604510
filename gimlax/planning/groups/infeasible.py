"""Why there is no plan for groups of devices: a limit that cannot hold, or too little memory."""

import numpy as np

from gimlax.devices import Cluster
from gimlax.errors import PlanError
from gimlax.planning.groups.pricing import GroupCosts
from gimlax.planning.infeasible import beyond_limits
from gimlax.planning.objective import Objective
from gimlax.planning.solvers.pools import solve
from gimlax.units import show_bytes

__all__ = ["why_not"]

_TIME_LIMIT_S = 2.0  # of one of the searches


def why_not(cluster: Cluster, figures: GroupCosts, objective: Objective) -> PlanError:
    """The error that says why no plan satisfies an objective."""
    problem = figures.problem(cluster)

    def least(asked: Objective) -> tuple[float, bool] | None:
        found = solve(problem, asked, time_limit_s=_TIME_LIMIT_S)
        return None if found is None else (found.value, found.method == "exact")

    if objective.limits and least(Objective(goal="throughput")):
        return beyond_limits(objective, least)
    return _nothing_fits(cluster, figures)


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
