"""How a mesh whose axes are left to the planner splits its devices between `data` and `model`.

A mesh holds one stage, so each stage may have the split that is fastest for it among those with
which it fits: the least over the splits is one more table of stages, and a search of it chooses
cuts, meshes and splits at once. A mesh that comes back, shares its memory or shares its host has
one split for all stages: each is a problem of its own, as long as there are few, else the split is
the fastest for the whole model that leaves room for it.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

from gimlax.devices import Cluster
from gimlax.devices.mesh import AXIS_NAMES
from gimlax.errors import SpecError
from gimlax.planning.cost import Costs
from gimlax.planning.problem import Array, Problem, spans

__all__ = ["Splits", "ways"]

MOST_PROBLEMS = 16  # each is a search


def ways(cluster: Cluster, named: Iterable[str] = ()) -> tuple[Cluster, ...]:
    """The cluster with axes for every mesh: its first split, its second one, and so on.

    Args:
        cluster: with meshes whose axes may be left open.
        named: axes that the caller's specs or constraints in the model name; splits that leave one
            of them without devices are left out where there are others. Where none is named, axes
            are alike, and no more devices are on `data` than on `model`.
    """
    named = frozenset(named)
    splits = [
        [mesh.axes] if mesh.axes else _splits(mesh.num_devices, named) for mesh in cluster.meshes
    ]
    return tuple(
        replace(
            cluster,
            meshes=tuple(
                replace(mesh, axes=of[min(way, len(of) - 1)])
                for mesh, of in zip(cluster.meshes, splits, strict=True)
            ),
        )
        for way in range(max(map(len, splits), default=1))
    )


def _splits(num_devices: int, named: frozenset[str]) -> list[tuple[tuple[str, int], ...]]:
    """All of them, from everything on `model` to everything on `data`."""
    sizes = [size for size in range(1, num_devices + 1) if num_devices % size == 0]
    every: list[tuple[tuple[str, int], ...]] = [
        tuple(zip(AXIS_NAMES, (data, num_devices // data), strict=True)) for data in sizes
    ]
    if not named:
        return [of for of in every if of[0][1] <= of[1][1]]
    return [of for of in every if all(size > 1 for axis, size in of if axis in named)] or every


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Splits:
    """The figures of each way to split, and the best of them.

    Attributes:
        clusters, figures: by [way].
        which: the way of each stage in each problem. [problem][mesh, first, stop]
        problems: what a search sees: every stage at its best, but for meshes that have one way.
        complete: whether these are all ways that those meshes have.
    """

    clusters: tuple[Cluster, ...]
    figures: tuple[Costs, ...]
    which: tuple[NDArray[np.intp], ...]
    problems: tuple[Problem, ...]
    complete: bool

    @classmethod
    def of(
        cls, tried: Iterable[Cluster], priced: Callable[[Cluster], Costs], back: Sequence[int] = ()
    ) -> Self:
        """Prices all ways.

        Args:
            tried: the cluster in each way.
            priced: the figures of a cluster with all axes.
            back: meshes that come back.

        Raises:
            SpecError: what `priced` says, if it takes no way.
        """
        found: list[tuple[Cluster, Costs]] = []
        refused: list[SpecError] = []
        for way in tried:
            try:
                found.append((way, priced(way)))
            except SpecError as error:  # a spec that the caller wants kept fits other axes
                refused.append(error)
        if not found:
            raise refused[0]
        clusters, figures = zip(*found, strict=True)
        problems = [of.problem for of in figures]
        which, complete = _which(problems, _all_different(clusters), back)
        return cls(
            clusters=clusters,
            figures=figures,
            which=which,
            problems=tuple(_at_best(problems, of) for of in which),
            complete=complete,
        )

    def best_case(self) -> Costs:
        """Figures that no way goes below, segment by segment: what a bound may rest on."""

        def least(figure: str) -> Array:
            return np.min([getattr(of, figure) for of in self.figures], axis=0)

        names = ("seconds", "shared_segment_s", "piece_bytes")
        return replace(self.figures[0], **{name: least(name) for name in names})

    def chosen(
        self, cuts: Sequence[int], meshes: Sequence[int], problem: int
    ) -> tuple[Costs, Cluster]:
        """The figures of each mesh at the split that a layout gives it, and the cluster so.

        Args:
            cuts, meshes: the layout.
            problem: the index of what was searched.
        """
        searched, which = self.problems[problem], self.which[problem]
        way = np.zeros(searched.num_meshes, int)
        for mesh, (first, stop) in zip(meshes, spans(cuts, searched.num_segments), strict=True):
            way[mesh] = which[mesh, first, stop]

        def rows(figure: str, axis: int) -> Array:
            of_ways = [np.moveaxis(getattr(of, figure), axis, 0) for of in self.figures]
            return np.moveaxis(np.stack([of_ways[w][m] for m, w in enumerate(way)]), 0, axis)

        by_mesh = ("dispatch_s", "host_bytes", "host_s_per_byte", "piece_bytes")
        by_phase = ("seconds", "memory_bound_s", "compute_s", "memory_s")
        shared = ("shared_segment_s", "shared_dispatch_s")
        specs = tuple(self.clusters[w].meshes[m] for m, w in enumerate(way))
        sharded = {
            spec.name: self.figures[w].sharded[spec.name]
            for spec, w in zip(specs, way, strict=True)
            if spec.name in self.figures[w].sharded
        }
        return replace(
            self.figures[0],
            rates=tuple(self.figures[w].rates[m] for m, w in enumerate(way)),
            sharded=sharded,
            problem=searched,
            **{name: rows(name, 0) for name in by_mesh},
            **{name: rows(name, 1) for name in (*by_phase, *shared)},
        ), replace(self.clusters[0], meshes=specs)


def _all_different(clusters: Sequence[Cluster]) -> list[list[int]]:
    """The ways of each mesh that differ, by their index."""
    return [
        [way for way, axes in enumerate(each) if axes not in each[:way]]
        for each in zip(*([mesh.axes for mesh in of.meshes] for of in clusters), strict=True)
    ]


def _which(
    problems: Sequence[Problem], ways_of: Sequence[Sequence[int]], back: Sequence[int]
) -> tuple[tuple[NDArray[np.intp], ...], bool]:
    """The way of each stage [mesh, first, stop], for each problem to search; and if these are all.

    The first has the fastest way for the whole model where a mesh has one.
    """
    stage_s = np.stack([of.stage_s for of in problems])
    held = np.stack([of.stage_bytes() - of.parked_bytes for of in problems])
    fits = held <= problems[0].capacity_bytes[:, None, None]
    # Where nothing fits, what comes nearest.
    nearest = np.where(fits.any(axis=0), np.where(fits, stage_s, np.inf), held)
    which = nearest.argmin(axis=0)
    pool, shared = problems[0].pool, problems[0].shared_s
    fixed = [
        mesh
        for mesh in range(problems[0].num_meshes)
        if mesh in back or (pool == pool[mesh]).sum() > 1 or shared[:, mesh].any()
    ]
    for mesh in fixed:
        which[mesh] = which[mesh, 0, -1]
    if math.prod(len(ways_of[mesh]) for mesh in fixed) > MOST_PROBLEMS:
        return (which,), False
    first = tuple(int(which[mesh, 0, -1]) for mesh in fixed)
    found = []
    for choice in itertools.product(*(ways_of[mesh] for mesh in fixed)):
        found.append(which.copy())
        for mesh, way in zip(fixed, choice, strict=True):
            found[-1][mesh] = way
        if choice == first:
            found.insert(0, found.pop())
    return tuple(found), True


def _at_best(problems: Sequence[Problem], which: NDArray[np.intp]) -> Problem:
    def taken(figure: str) -> Array:
        of_ways = np.stack([getattr(of, figure) for of in problems])
        index = which.reshape((1,) * (of_ways.ndim - which.ndim) + which.shape)
        return np.take_along_axis(of_ways, index, axis=0)[0]

    names = ("stage_s", "shared_s", "added_bytes", "largest_bytes", "parked_bytes")
    if len(problems) == 1:
        return problems[0]
    return replace(problems[0], **{name: taken(name) for name in names})
