"""Why there is no plan: the limit that cannot hold, and by how much.

A limit is lifted at a time: without memory limits, is there a plan? If not, links or the order of
meshes are to blame. If so, the plan that lacks the fewest bytes on its worst mesh is found by the
very search for throughput, with missing bytes in place of seconds, and told, with the number of
such devices that would do. If only a limit of the objective is to blame, the best possible value of
its term is. Cuts and meshes that the caller fixed are limits too: where a layout would do without
them, it is told.
"""

import itertools
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from gimlax.devices import Cluster
from gimlax.errors import InternalError, PlanError
from gimlax.graph import Chain
from gimlax.planning.objective import TERM_OF_LIMIT, Objective
from gimlax.planning.problem import Problem, spans, used_bytes
from gimlax.planning.request import Request
from gimlax.planning.search import search
from gimlax.units import show_bytes


def why_not(
    chain: Chain, cluster: Cluster, problem: Problem, request: Request, objective: Objective
) -> PlanError:
    """The error that says why no layout satisfies a request."""
    wishes = {"cuts": request.cuts, "meshes": request.meshes}
    if objective.limits and search(problem, Objective(), **wishes):  # type: ignore[arg-type]

        def best(asked: Objective) -> tuple[float, bool] | None:
            found = search(problem, asked, **wishes)  # type: ignore[arg-type]
            return None if found is None else (found.value, True)

        error = beyond_limits(objective, best)
        lifted = _without_wishes(chain, cluster, problem, request, objective)
        return PlanError(f"of the layouts asked for: {error}; {lifted}") if lifted else error
    endless = replace(problem, capacity_bytes=np.full_like(problem.capacity_bytes, np.inf))
    if search(endless, Objective(), **wishes) is None:  # type: ignore[arg-type]
        return _not_joined(chain, cluster, problem, request)
    held = problem.stage_bytes() - problem.parked_bytes  # [mesh, first, stop]
    lacking = np.maximum(held - problem.capacity_bytes[:, None, None], 0.0)
    least = search(
        replace(
            endless,
            stage_s=np.where(np.isfinite(problem.stage_s), lacking, np.inf),
            transfer_s=np.where(np.isfinite(problem.transfer_s), 0.0, np.inf),
            shared_s=problem.shared_s[:0],
        ),
        Objective(goal="throughput"),
        **wishes,  # type: ignore[arg-type]
    )
    assert least is not None
    runs = spans(least.cuts, problem.num_segments)
    needs = problem.stage_bytes()
    missing, stage = max(
        (needs[mesh, first, stop] - problem.capacity_bytes[mesh], k)
        for k, ((first, stop), mesh) in enumerate(zip(runs, least.meshes, strict=True))
    )
    names = [mesh.name for mesh in cluster.meshes]
    lifted = _without_wishes(chain, cluster, problem, request, Objective())
    if missing <= 0:
        return _too_much_together(problem, names, least.cuts, least.meshes, lifted)
    first, stop = runs[stage]
    mesh = least.meshes[stage]
    what = (
        f"stage {stage} (segments {chain.names[first]!r} .. {chain.names[stop - 1]!r}) needs "
        f"{show_bytes(needs[mesh, first, stop])} on mesh {names[mesh]!r}, which has "
        f"{show_bytes(problem.capacity_bytes[mesh])}: {show_bytes(missing)} are missing"
    )
    if lifted:
        return PlanError(f"{what}; {lifted}")
    if request.meshes is not None and isinstance(request.cuts, tuple):
        return PlanError(f"{what}; move the cuts, or give it a larger mesh")
    largest = int(problem.capacity_bytes.argmax())
    num_devices = cluster.meshes[largest].num_devices
    where = f"on each of {num_devices} devices" if num_devices > 1 else "in all"
    return PlanError(
        f"the model fits nowhere: it needs {show_bytes(needs[largest, 0, -1])} {where}, the "
        f"largest mesh {names[largest]!r} has {show_bytes(problem.capacity_bytes[largest])}; in "
        f"the layout that comes nearest, {what}; {_smallest(chain, cluster, problem)}, or lower "
        "batch, context or precision"
    )


def _without_wishes(
    chain: Chain, cluster: Cluster, problem: Problem, request: Request, objective: Objective
) -> str:
    """Which of the caller's wishes to lift and what is possible then, empty where nothing is."""
    given = [name for name in ("cuts", "meshes") if getattr(request, name) is not None]
    for number in range(1, len(given) + 1):
        for lifted in itertools.combinations(given, number):
            kept = {name: getattr(request, name) for name in given if name not in lifted}
            if found := search(problem, objective, **kept):
                ends = [*found.cuts, chain.num_segments]
                layout = ", ".join(
                    f"{cluster.meshes[mesh].name!r} to {chain.names[stop - 1]}"
                    for mesh, stop in zip(found.meshes, ends, strict=True)
                )
                what = " and ".join(lifted)
                return f"with {what} free there is a layout ({layout}); leave {what} out"
    return ""


def fewest_meshes(problem: Problem, mesh: int) -> int | None:
    """How many meshes like this one hold the model, each with a memory of its own, in a row.

    Returns:
        None if no number of them does, because a run of segments that is never cut is too large.
    """
    runs = np.isfinite(problem.stage_s[mesh])
    held = problem.stage_bytes()[mesh] - problem.parked_bytes[mesh]
    runs &= held <= problem.capacity_bytes[mesh]
    fewest = np.full(problem.num_segments + 1, np.inf)
    fewest[0] = 0
    for stop in range(1, problem.num_segments + 1):
        fewest[stop] = fewest[runs[:, stop]].min(initial=np.inf) + 1
    return int(fewest[-1]) if np.isfinite(fewest[-1]) else None


def _smallest(chain: Chain, cluster: Cluster, problem: Problem) -> str:
    """The smallest cluster of these devices that would do; largest memories need the fewest."""
    kinds: dict[tuple[object, ...], int] = {}
    for index, mesh in enumerate(cluster.meshes):
        key = (mesh.device_kind, mesh.axes, problem.capacity_bytes[index])
        kinds.setdefault(key, index)
    counts = {index: fewest_meshes(problem, index) for index in kinds.values()}
    enough = sorted((count, index) for index, count in counts.items() if count is not None)
    if not enough:
        return "no number of these devices would do, because segments are never split: add larger"
    said = [
        f"{count} of {cluster.meshes[i].device_kind!r} like {cluster.meshes[i].name!r}"
        for count, i in enough
    ]
    return f"the smallest cluster of these devices that would do is {', or '.join(said)}, linked"


def beyond_limits(
    objective: Objective, least: Callable[[Objective], tuple[float, bool] | None]
) -> PlanError:
    """The error that names a limit that nothing meets, or that nothing meets beside the others.

    Args:
        objective: has the limits.
        least: the least value of an objective, and whether it is proved; None if nothing keeps
            the limits of that one.
    """
    limits = dict(objective.limits)
    for number in range(len(limits)):
        for beside in itertools.combinations(limits, number):
            for name in limits:
                if name in beside:
                    continue
                kept = {other: limits[other] for other in beside}
                goal = TERM_OF_LIMIT[name]
                found = least(Objective(goal=goal, **kept))  # type: ignore[arg-type]
                most = Objective(**{name: limits[name]}).most(goal)  # type: ignore[arg-type]
                if found is None or found[0] <= most:
                    continue
                value, proved = found
                best = 1 / value if goal == "throughput" else value
                with_ = "".join(f" with {other} at {limits[other]:g}" for other in beside)
                worse = "more than" if goal == "throughput" else "less than"
                has = f"no layout has {worse}" if proved else f"no layout was found with {worse}"
                missing = abs(best - limits[name])
                return PlanError(
                    f"{name} is {limits[name]:g}, but {has} {best:.6g}{with_}: "
                    f"it is {missing:.4g} ({missing / limits[name]:.1%}) out of reach; relax it"
                    f"{' or ' + ' or '.join(beside) if beside else ''}, or change the cluster"
                )
    raise InternalError(
        f"no layout keeps {', '.join(limits)}, though each can be kept; please report this"
    )


def _too_much_together(
    problem: Problem,
    names: list[str],
    cuts: tuple[int, ...],
    meshes: tuple[int, ...],
    lifted: str,
) -> PlanError:
    used = used_bytes(problem, cuts, meshes)
    over = []
    for pool in np.unique(problem.pool[list(meshes)]):
        members = [m for m in dict.fromkeys(meshes) if problem.pool[m] == pool]
        capacity = problem.capacity_bytes[problem.pool == pool].max()
        needed = used[members].sum()
        if needed > capacity:
            who = " and ".join(repr(names[m]) for m in members)
            over.append(
                f"the stages on {who} need {show_bytes(needed)} together, and their memory has "
                f"{show_bytes(capacity)}: {show_bytes(needed - capacity)} are missing"
            )
    said = f"each stage fits alone, but {'; '.join(over) or 'not all at once'}"
    if lifted:
        return PlanError(f"{said}; {lifted}")
    return PlanError(
        f"the model fits nowhere: {said}; use more or larger meshes, or lower batch, context or "
        "precision"
    )


def _not_joined(chain: Chain, cluster: Cluster, problem: Problem, request: Request) -> PlanError:
    names = [mesh.name for mesh in cluster.meshes]
    legal = sum(not chain.splits(b) for b in range(1, chain.num_segments))
    num_stages = request.num_stages or 1
    if legal + 1 < num_stages:
        return PlanError(
            f"{num_stages} stages are asked for, but only {legal} of the model's "
            f"{chain.num_segments - 1} boundaries may be cut, because a cut must not split carried "
            f"state; ask for at most {legal + 1}"
        )
    wanted = [
        (a, b)
        for a, b in zip((request.meshes or ())[:-1], (request.meshes or ())[1:], strict=True)
        if not np.isfinite(problem.transfer_s[a, b]).any()
    ]
    if wanted:
        a, b = wanted[0]
        return PlanError(
            f"mesh {names[b]!r} cannot be reached from {names[a]!r}: the cluster has no link "
            f"{names[a]!r} -> {names[b]!r}; add it, or order the meshes differently"
        )
    return PlanError(
        f"no {num_stages} of the {len(names)} meshes are joined by links in a row; add links to "
        "the cluster, or ask for fewer stages"
    )
