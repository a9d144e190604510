"""The planning problem as plain arrays: what a stage costs, what a hand-over costs, what is shared.

Everything that a search needs is a number per (mesh, first segment, stop segment) or per (source,
target, boundary), so the searches never see a model or a device, and a slow twin of them fits on a
page. Seconds are per request (all phases, times their calls); memory is in bytes. Chosen over
passing cost functions: arrays can be masked, compared and reduced as a whole.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Problem:
    """A chain of `n` segments to be cut in stages and put on `m` meshes.

    A stage is the run of segments `[first, stop)`; boundaries are numbered 0..n, so that boundary b
    lies before segment b. `inf` means: not possible.

    Attributes:
        stage_s: seconds of a stage, overhead included. [mesh, first, stop], inf where stop <= first
            or where the cut is not legal.
        transfer_s: seconds of the hand-over at a boundary. [source, target, boundary], 0 where
            source == target, inf where no link leads.
        shared_s: for each thing that several meshes share, the seconds for which a stage occupies
            it; they add up over all stages. [shared, mesh, first, stop], 0 for meshes that have no
            part in it.
        added_bytes: memory of a stage that adds up over the stages on one mesh.
            [mesh, first, stop]
        largest_bytes: memory terms of which only the largest of the stages on one mesh counts:
            temporaries, and parts that several segments use. [term, mesh, first, stop]
        parked_bytes: how much of a stage lies in host memory instead, which only a mesh does that
            runs one stage and shares its memory with none; its price is in `stage_s`.
            [mesh, first, stop]
        capacity_bytes: memory of each mesh; all bytes are those of one of its devices. [mesh]
        pool: which memory each mesh draws on. Meshes of one pool share it: together they must stay
            within the largest capacity among them. [mesh]
        usd_per_s: price of each mesh, as long as it is held. [mesh], NaN where nobody knows
        busy_watts, idle_watts: power of each mesh while it runs a stage and while it waits. [mesh],
            NaN where nobody knows
    """

    stage_s: Array
    transfer_s: Array
    shared_s: Array
    added_bytes: Array
    largest_bytes: Array
    parked_bytes: Array
    capacity_bytes: Array
    pool: NDArray[np.int64]
    usd_per_s: Array
    busy_watts: Array
    idle_watts: Array

    @property
    def num_meshes(self) -> int:
        return self.stage_s.shape[0]

    @property
    def num_segments(self) -> int:
        return self.stage_s.shape[1] - 1

    def stage_bytes(self) -> Array:
        """Memory of a stage that is alone on its mesh, parked or not. [mesh, first, stop]"""
        return self.added_bytes + self.largest_bytes.sum(axis=0)


_PER_MESH = (
    "stage_s",
    "added_bytes",
    "parked_bytes",
    "capacity_bytes",
    "pool",
    "usd_per_s",
    "busy_watts",
    "idle_watts",
)


def on_meshes(problem: Problem, meshes: Sequence[int]) -> Problem:
    """Only these meshes, which are numbered anew in this order."""
    kept = list(meshes)
    return replace(
        problem,
        transfer_s=problem.transfer_s[np.ix_(kept, kept)],
        shared_s=problem.shared_s[:, kept],
        largest_bytes=problem.largest_bytes[:, kept],
        **{name: getattr(problem, name)[kept] for name in _PER_MESH},
    )


class Terms(NamedTuple):
    """What an objective may look at, per request; in the order of `objective.TERMS`.

    `period_s` is how often the full pipeline takes a request: the load of its busiest part.
    """

    latency_s: float
    period_s: float
    usd: float
    joules: float


def spans(cuts: Sequence[int], num_segments: int) -> list[tuple[int, int]]:
    """The stages `(first, stop)` that these cuts leave."""
    ends = [0, *cuts, num_segments]
    return list(zip(ends[:-1], ends[1:], strict=True))


def latency_s(problem: Problem, cuts: Sequence[int], meshes: Sequence[int]) -> float:
    """Seconds of one request that runs alone: all stages and all hand-overs, one after another."""
    stages = sum(
        problem.stage_s[m, first, stop]
        for m, (first, stop) in zip(meshes, spans(cuts, problem.num_segments), strict=True)
    )
    hops = zip(meshes[:-1], meshes[1:], cuts, strict=True)
    return float(stages + sum(problem.transfer_s[hop] for hop in hops))


def loads_s(problem: Problem, cuts: Sequence[int], meshes: Sequence[int]) -> Array:
    """Seconds per request for which each mesh, each link and each shared thing is busy, flat."""
    mesh_s = np.zeros(problem.num_meshes)
    link_s = np.zeros((problem.num_meshes, problem.num_meshes))
    shared_s = np.zeros(problem.shared_s.shape[0])
    for m, (first, stop) in zip(meshes, spans(cuts, problem.num_segments), strict=True):
        mesh_s[m] += problem.stage_s[m, first, stop]
        shared_s += problem.shared_s[:, m, first, stop]
    for source, target, boundary in zip(meshes[:-1], meshes[1:], cuts, strict=True):
        link_s[source, target] += problem.transfer_s[source, target, boundary]
    return np.concatenate([mesh_s, link_s.ravel(), shared_s])


def terms_of(problem: Problem, cuts: Sequence[int], meshes: Sequence[int]) -> Terms:
    """All terms of a layout: infinite if it cannot run, NaN what rests on figures nobody knows.

    A mesh that is used is paid for whole periods, whatever its load; it draws full power while it
    is busy and idle power for the rest of the period.
    """
    loads = loads_s(problem, cuts, meshes)
    used = list(dict.fromkeys(meshes))
    busy_s, period_s = loads[used], float(loads.max())
    return Terms(
        latency_s=latency_s(problem, cuts, meshes),
        period_s=period_s,
        usd=float(problem.usd_per_s[used].sum()) * period_s,
        joules=float(
            problem.busy_watts[used] @ busy_s + problem.idle_watts[used] @ (period_s - busy_s)
        ),
    )


def used_bytes(problem: Problem, cuts: Sequence[int], meshes: Sequence[int]) -> Array:
    """Memory that a layout needs on each mesh, without what is parked. [mesh]"""
    added = np.zeros(problem.num_meshes)
    largest = np.zeros((problem.num_meshes, len(problem.largest_bytes)))
    for m, (first, stop) in zip(meshes, spans(cuts, problem.num_segments), strict=True):
        added[m] += problem.added_bytes[m, first, stop] - problem.parked_bytes[m, first, stop]
        largest[m] = np.maximum(largest[m], problem.largest_bytes[:, m, first, stop])
    return added + largest.sum(axis=1)
