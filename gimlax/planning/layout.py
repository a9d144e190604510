"""Which mesh holds which segments, and the way a request takes through them.

A Layout is a graph of holdings: an interval may be held several times and hops say which share of
the requests goes where. With one route it is the ordinary pipeline, and a route fixes the cuts and
the mesh of each stage. Chosen over a list of stages so that replicas need no other record.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

from gimlax.errors import PlanError

OUTSIDE = -1  # where requests come from and go to
_ROUNDING = 1e-11  # shares below it are what sums of shares are off by


@dataclass(frozen=True, slots=True, kw_only=True)
class Holding:
    """Segments `[first_segment, first_segment + num_segments)` held by a mesh."""

    mesh: str
    first_segment: int
    num_segments: int

    @property
    def stop(self) -> int:
        """The first segment after these."""
        return self.first_segment + self.num_segments


@dataclass(frozen=True, slots=True, kw_only=True)
class Hop:
    """`share` of all requests goes from one holding to another; -1 is outside."""

    source: int
    target: int
    share: float = 1.0


class Route(NamedTuple):
    """One way through a Layout: boundaries and a mesh per stage."""

    cuts: tuple[int, ...]
    meshes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Holdings and the hops between them.

    Raises:
        PlanError: holdings or hops that no request could follow from the first segment to the last.
    """

    holdings: tuple[Holding, ...]
    hops: tuple[Hop, ...]

    def __post_init__(self) -> None:
        wrong = _mistakes(self)
        if wrong:
            raise PlanError(f"layout: {'; '.join(wrong)}; make a new plan")

    @classmethod
    def pipeline(cls, cuts: Sequence[int], meshes: Sequence[str], num_segments: int) -> Self:
        """The layout in which every request takes the same stages, one after another."""
        ends = [0, *cuts, num_segments]
        holdings = tuple(
            Holding(mesh=mesh, first_segment=first, num_segments=stop - first)
            for mesh, first, stop in zip(meshes, ends[:-1], ends[1:], strict=True)
        )
        order = [OUTSIDE, *range(len(holdings)), OUTSIDE]
        hops = tuple(Hop(source=a, target=b) for a, b in zip(order[:-1], order[1:], strict=True))
        return cls(holdings=holdings, hops=hops)

    @classmethod
    def shared(
        cls,
        holdings: Sequence[Holding],
        shares: Sequence[float],
        *,
        pools: Sequence[int],
        inward: Sequence[Sequence[float]],
        onward: Sequence[Sequence[float]],
    ) -> Self:
        """The layout in which each holding serves this share of all requests.

        At each boundary those of a pool that end there hand over to those of a pool that begin
        there, in their order, with as few hops as that takes.

        Args:
            holdings: in any order.
            shares: of each.
            pools: of each holding, by number.
            inward, onward: the share that each takes over from each pool and hands over to it; at
                each boundary as much as the other side says. [holding][pool]
        """
        last = max(holding.stop for holding in holdings)
        starts: dict[tuple[int, int], list[int]] = {}
        ends: dict[tuple[int, int], list[int]] = {}
        for k, held in enumerate(holdings):
            starts.setdefault((held.first_segment, pools[k]), []).append(k)
            ends.setdefault((held.stop, pools[k]), []).append(k)
        hops = [
            Hop(source=OUTSIDE, target=k, share=min(shares[k], 1.0))
            for (first, _), those in sorted(starts.items())
            for k in those
            if first == 0
        ]
        for (boundary, source), ending in sorted(ends.items()):
            for target in sorted(set(pools)):
                starting = starts.get((boundary, target), [])
                hops += _matched(
                    [(k, onward[k][target]) for k in ending],
                    [(k, inward[k][source]) for k in starting],
                )
            if boundary == last:
                hops += [Hop(source=k, target=OUTSIDE, share=min(shares[k], 1.0)) for k in ending]
        return cls(holdings=tuple(holdings), hops=tuple(hops))

    @property
    def branches(self) -> bool:
        """Whether requests take several routes."""
        return len({hop.source for hop in self.hops}) != len(self.hops)

    def shares(self) -> tuple[float, ...]:
        """The share of all requests that each holding serves."""
        result = [0.0] * len(self.holdings)
        for hop in self.hops:
            if hop.target != OUTSIDE:
                result[hop.target] += hop.share
        return tuple(result)

    def route(self) -> Route:
        """The cuts and meshes of the only route.

        Raises:
            PlanError: if requests take more than one.
        """
        stages = [self.holdings[index] for index in self.order()]
        return Route(
            cuts=tuple(stage.first_segment for stage in stages[1:]),
            meshes=tuple(stage.mesh for stage in stages),
        )

    def order(self) -> tuple[int, ...]:
        """The holdings of the only route, by number, in the order of its stages.

        Raises:
            PlanError: if requests take more than one.
        """
        after = {hop.source: hop.target for hop in self.hops}
        if self.branches:
            raise PlanError(
                f"layout: {len(self.hops)} hops lead along several routes, and this "
                "needs a layout with one; plan without replicas"
            )
        stages: list[int] = []
        at = after[OUTSIDE]
        while at != OUTSIDE:
            stages.append(at)
            at = after[at]
        return tuple(stages)


def _matched(
    ending: Sequence[tuple[int, float]], starting: Sequence[tuple[int, float]]
) -> list[Hop]:
    """Hops from the first of one side to the first of the other, until both are used up."""
    hops: list[Hop] = []
    left, right = [list(pair) for pair in ending], [list(pair) for pair in starting]
    a = b = 0
    while a < len(left) and b < len(right):
        share = min(left[a][1], right[b][1])
        if share > _ROUNDING:
            hops.append(Hop(source=int(left[a][0]), target=int(right[b][0]), share=min(share, 1.0)))
        left[a][1] -= share
        right[b][1] -= share
        # Of two that end together both are used up, whatever rounding says.
        a, b = a + (left[a][1] <= _ROUNDING), b + (right[b][1] <= _ROUNDING)
    return hops


def _mistakes(layout: Layout) -> list[str]:
    if not layout.holdings:
        return ["it holds nothing"]
    num = len(layout.holdings)
    last = max(h.stop for h in layout.holdings)
    wrong = [
        f"holding {index} on mesh {h.mesh!r} has segments {h.first_segment} to {h.stop}"
        for index, h in enumerate(layout.holdings)
        if h.num_segments < 1 or h.first_segment < 0
    ]
    into, out = [0.0] * (num + 1), [0.0] * (num + 1)  # the last one is outside
    for hop in layout.hops:
        if not (OUTSIDE <= hop.source < num and OUTSIDE <= hop.target < num):
            return [f"hop {hop.source} -> {hop.target} names a holding that is not among the {num}"]
        stops = 0 if hop.source == OUTSIDE else layout.holdings[hop.source].stop
        starts = last if hop.target == OUTSIDE else layout.holdings[hop.target].first_segment
        if stops != starts:
            wrong.append(f"hop {hop.source} -> {hop.target} goes from segment {stops} to {starts}")
        if not 0 < hop.share <= 1:
            wrong.append(f"hop {hop.source} -> {hop.target} has a share of {hop.share}")
        out[hop.source] += hop.share
        into[hop.target] += hop.share
    if abs(into[OUTSIDE] - 1) > 1e-6:
        wrong.append(f"shares of {into[OUTSIDE]:g} instead of 1 arrive at the end")
    wrong += [
        f"shares of {into[k]:g} enter holding {k} and {out[k]:g} leave it"
        for k in range(num)
        if abs(into[k] - out[k]) > 1e-6 or into[k] == 0
    ]
    return wrong
