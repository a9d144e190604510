"""What of a layout adds up over stages and therefore needs a label: loads, memory, terms.

A load of a mesh that runs one stage, or of a link that is crossed once, is limited by forbidding
stages and hand-overs. Everything else that a limit can bind (a shared host, a mesh that comes back,
their memory, dollars) is a `Dimension` here.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from gimlax.planning.labels import Dimension
from gimlax.planning.paths import Cost
from gimlax.planning.problem import Array, Problem, spans


def only_these_stages(problem: Problem, cuts: Sequence[int]) -> Problem:
    """Without all stages but those that these cuts leave."""
    stage_s = np.full_like(problem.stage_s, np.inf)
    for first, stop in spans(cuts, problem.num_segments):
        stage_s[:, first, stop] = problem.stage_s[:, first, stop]
    return replace(problem, stage_s=stage_s)


def that_fit(problem: Problem) -> Problem:
    """Without the stages that alone exceed the memory of their mesh."""
    held = problem.stage_bytes() - problem.parked_bytes  # [mesh, first, stop]
    fits = held <= problem.capacity_bytes[:, None, None]
    return replace(problem, stage_s=np.where(fits, problem.stage_s, np.inf))


def below(problem: Problem, limit_s: float) -> Problem:
    """Without the stages and hand-overs that alone exceed the limit."""
    return replace(
        problem,
        stage_s=np.where(problem.stage_s <= limit_s, problem.stage_s, np.inf),
        transfer_s=np.where(problem.transfer_s <= limit_s, problem.transfer_s, np.inf),
    )


def repeated(meshes: Sequence[int]) -> list[int]:
    """Meshes that come back in a sequence."""
    return sorted({m for m in meshes if list(meshes).count(m) > 1})


def cost_at(
    problem: Problem, weights: Sequence[float], period_s: float, meshes: Sequence[int] | None
) -> Cost:
    """The least that stages and hand-overs add to a weighted sum of terms at such a period or more.

    A mesh is paid, and waits, for at least `period_s` and at least as long as its stage takes. A
    mesh that comes back pays its part of the period at each visit.

    Args:
        problem: what everything costs; stages and hand-overs of inf stay so.
        weights: of the terms; that of the period itself adds nothing here.
        period_s: no layout looked at has a shorter one.
        meshes: the sequence of meshes, if it is given.
    """
    latency, _, usd, joules = weights
    runs, reaches = np.isfinite(problem.stage_s), np.isfinite(problem.transfer_s)
    seconds = np.where(runs, problem.stage_s, 0.0)
    held = np.zeros(problem.num_meshes)  # per second for which a mesh is used
    worked = np.full(problem.num_meshes, latency)  # per second for which it is busy
    if usd:
        held = held + usd * problem.usd_per_s
    if joules:
        held = held + joules * problem.idle_watts
        worked = worked + joules * (problem.busy_watts - problem.idle_watts)
    held_s = np.maximum(seconds, period_s)
    for mesh in repeated(meshes or ()):
        held_s[mesh] = period_s / list(meshes or ()).count(mesh)
    stage = worked[:, None, None] * seconds + held[:, None, None] * held_s
    return Cost(
        stage=np.where(runs, stage, np.inf),
        hop=np.where(reaches, latency * np.where(reaches, problem.transfer_s, 0.0), np.inf),
    )


def as_dimension(cost: Cost, counts_to: str, limit: float) -> Dimension:
    """A cost whose sum must stay within a limit."""
    # Rounded far below what tells two layouts apart, so that equal sums in another order merge.
    return Dimension(
        stage=np.where(np.isfinite(cost.stage), cost.stage, 0.0),
        hop=np.where(np.isfinite(cost.hop), cost.hop, 0.0),
        counts_to=counts_to,
        limit=limit * (1 + 1e-12),
        quantum=limit * 1e-13,
    )


def memory_dimensions(problem: Problem, meshes: Sequence[int] | None) -> list[Dimension]:
    """What memory depends on where several stages draw on one and it could bind."""
    usable = range(problem.num_meshes) if meshes is None else meshes
    back = repeated(meshes or ())
    most_largest = float(problem.largest_bytes.max(axis=(1, 2, 3), initial=0.0).sum())
    no_hop = np.zeros_like(problem.transfer_s)
    dimensions: list[Dimension] = []
    for pool in np.unique(problem.pool):
        members = [m for m in np.flatnonzero(problem.pool == pool) if m in usable]
        limit = problem.capacity_bytes[problem.pool == pool].max()
        # What all stages add, wherever they are: once for each way that these meshes split them.
        ways = np.unique(problem.added_bytes[members, 0], axis=0)
        most_bytes = ways[:, -1].sum() + len(members) * most_largest
        single = len(members) <= 1 and not set(members) & set(back)
        if single or most_bytes <= limit:
            continue
        stages = [np.zeros_like(problem.stage_s)]
        for mesh in members:
            stages[0][mesh] = problem.added_bytes[mesh]
            if mesh not in back:
                stages[0][mesh] += problem.largest_bytes[:, mesh].sum(axis=0)
                continue
            for term in problem.largest_bytes:
                stages.append(np.zeros_like(problem.stage_s))
                stages[-1][mesh] = term[mesh]
        for index, stage in enumerate(stages):
            dimensions.append(
                Dimension(
                    stage=stage,
                    hop=no_hop,
                    counts_to=f"memory pool {pool}",
                    limit=float(limit),
                    largest=index > 0,
                )
            )
    return dimensions


def load_costs(problem: Problem, meshes: Sequence[int] | None) -> list[Cost]:
    """The loads that add up over several stages; all others are limited stage by stage."""
    no_hop = np.zeros_like(problem.transfer_s)
    loads: list[tuple[Array, Array]] = [
        (np.where(np.isfinite(problem.stage_s), shared, 0.0), no_hop) for shared in problem.shared_s
    ]
    for mesh in repeated(meshes or ()):
        stage = np.zeros_like(problem.stage_s)
        stage[mesh] = np.where(np.isfinite(problem.stage_s[mesh]), problem.stage_s[mesh], 0.0)
        loads.append((stage, no_hop))
    links = list(zip(meshes[:-1], meshes[1:], strict=True)) if meshes else []
    for link in sorted({link for link in links if links.count(link) > 1}):
        hop = np.zeros_like(no_hop)
        hop[link] = np.where(np.isfinite(problem.transfer_s[link]), problem.transfer_s[link], 0.0)
        if hop.any():
            loads.append((np.zeros_like(problem.stage_s), hop))
    return [
        Cost(stage=stage, hop=hop)
        for index, (stage, hop) in enumerate(loads)
        if not any(
            (stage <= other).all()
            and (hop <= other_hop).all()
            # Of two equal loads the first is kept.
            and (k < index or not ((stage == other).all() and (hop == other_hop).all()))
            for k, (other, other_hop) in enumerate(loads)
            if k != index
        )
    ]
