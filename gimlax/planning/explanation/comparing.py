"""A plan against its rivals: each figure is the answer of another search, none is an estimate.

The next best layout is found by forbidding the stages of the best one, one after another: another
layout lacks at least one of them, whichever of equal meshes runs it. The link speed at which a gain
becomes zero is where a layout with slower links is no better than the best single mesh, or breaks a
limit; one that needs its links less may still gain there, so the search is asked again at that
speed until nothing gains.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gimlax.devices import Cluster
from gimlax.planning.explanation.comparison import Change, Comparison, Rival
from gimlax.planning.explanation.variants import cheaper, forbidding, with_links
from gimlax.planning.limits import that_fit
from gimlax.planning.objective import Objective
from gimlax.planning.orders import twins
from gimlax.planning.problem import Problem, latency_s, on_meshes, spans, terms_of, used_bytes
from gimlax.planning.search import TOLERANCE, Found, keeps

__all__ = ["compare"]

_MOST_LINKS = 12  # pairs of meshes whose links are varied one by one
_SLOWEST = 1e12
_Search = Callable[[Sequence[Problem]], Found | None]
_Variant = Callable[[Problem], Problem]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Question:
    """What was asked, with searches of all alternatives: cuts and meshes free, or as given."""

    problems: tuple[Problem, ...]
    objective: Objective
    names: tuple[str, ...]
    found: Found
    search_free: _Search
    search_given: _Search

    @property
    def problem(self) -> Problem:
        """The alternative that the layout is one of."""
        return self.problems[self.found.problem]

    def free(self, variant: _Variant) -> Found | None:
        """The best layout with one thing different, cuts and meshes free."""
        return self.search_free([variant(problem) for problem in self.problems])

    def given(self, variant: _Variant) -> Found | None:
        """The same with the cuts and meshes that the caller fixed."""
        return self.search_given([variant(problem) for problem in self.problems])

    def rival(self, found: Found | None, meshes: Sequence[int] | None = None) -> Rival | None:
        """A layout by the names of its meshes; `meshes` numbers them if only some took part."""
        if found is None:
            return None
        numbers = found.meshes if meshes is None else [meshes[mesh] for mesh in found.meshes]
        return Rival(
            cuts=tuple(found.cuts),
            meshes=tuple(self.names[mesh] for mesh in numbers),
            value=found.value,
        )


def compare(
    problems: Sequence[Problem],
    objective: Objective,
    cluster: Cluster,
    found: Found,
    *,
    free: _Search,
    given: _Search,
    is_free: bool,
) -> Comparison:
    """Compares a layout with what else this problem allows.

    Args:
        problems: what was searched: alternatives, of which the best layout counts.
        objective: what for.
        cluster: whose meshes they number.
        found: the layout.
        free: searches variants of the problems with free cuts and meshes.
        given: the same with the cuts and meshes that the caller fixed.
        is_free: whether nothing was fixed.
    """
    names = tuple(mesh.name for mesh in cluster.meshes)
    asked = _Question(
        problems=tuple(problems),
        objective=objective,
        names=names,
        found=found,
        search_free=free,
        search_given=given,
    )
    problem = asked.problem
    single = _best(asked, [[mesh] for mesh in range(problem.num_meshes)])
    vendors = _vendors(cluster)
    of_vendor = {vendor: _best(asked, [meshes]) for vendor, meshes in vendors.items()}
    possible = {vendor: rival for vendor, rival in of_vendor.items() if rival is not None}
    vendor = min(possible, key=lambda name: possible[name].value, default="")
    return Comparison(
        single_mesh=single,
        vendor=vendor,
        single_vendor=possible.get(vendor),
        num_vendors=len(vendors),
        next_best=_next_best(asked) if is_free else None,
        free=None if is_free else asked.rival(free(problems)),
        transfer_share=_transfer_share(problem, found),
        break_even=_break_even(asked, single),
        crowded=_crowded(problem, found),
        changes=tuple(_changes(asked, cluster)),
    )


def _vendors(cluster: Cluster) -> dict[str, list[int]]:
    result: dict[str, list[int]] = {}
    for index, mesh in enumerate(cluster.meshes):
        result.setdefault(cluster.kind(mesh.name).vendor, []).append(index)
    return result


def _best(asked: _Question, choices: list[list[int]]) -> Rival | None:
    """The best free layout that keeps to one of these sets of meshes."""
    rivals = [
        asked.rival(asked.free(lambda problem, own=own: on_meshes(problem, own)), own)
        for own in choices
    ]
    return min((r for r in rivals if r is not None), key=lambda r: r.value, default=None)


def _next_best(asked: _Question) -> Rival | None:
    found = asked.found
    sorts = _sorts(asked.problems[0])
    others = [
        asked.free(
            lambda problem, mesh=mesh, span=span: forbidding(problem, sorts == sorts[mesh], *span)
        )
        for mesh, span in zip(
            found.meshes, spans(found.cuts, asked.problem.num_segments), strict=True
        )
    ]
    return asked.rival(
        min((other for other in others if other), key=lambda other: other.value, default=None)
    )


def _sorts(problem: Problem) -> NDArray[np.int_]:
    """The first mesh of each sort, for every mesh: nothing tells those of a sort apart. [mesh]"""
    sorts = np.arange(problem.num_meshes)
    for mesh, twin in enumerate(twins(that_fit(problem))):
        if twin is not None:
            sorts[mesh] = sorts[twin]
    return sorts


def _transfer_share(problem: Problem, found: Found) -> float:
    hops = zip(found.meshes[:-1], found.meshes[1:], found.cuts, strict=True)
    total_s = latency_s(problem, found.cuts, found.meshes)
    return float(sum(problem.transfer_s[hop] for hop in hops)) / total_s if total_s else 0.0


def _break_even(asked: _Question, single: Rival | None) -> float | None:
    """How many times slower links have to be until nothing beats the best single mesh."""
    found: Found | None = asked.found
    factor = 1.0
    while found and single and found.value < single.value * (1 - TOLERANCE):
        later = _meeting_point(asked, found, single.value, factor)
        if later is None or later <= factor * (1 + TOLERANCE):
            return later
        factor = later
        found = asked.given(lambda problem, slower=factor: with_links(problem, slower))
    return factor if factor > 1 else None


def _meeting_point(asked: _Question, found: Found, value: float, factor: float) -> float | None:
    """How many times slower links bring this layout to `value`, or beyond a limit of the objective.

    None if they never do.
    """

    def gains(slower: float) -> bool:
        terms = terms_of(
            with_links(asked.problems[found.problem], slower), found.cuts, found.meshes
        )
        return asked.objective.value(terms) < value and keeps(asked.objective, terms)

    low, high = factor, 2 * factor
    while gains(high):
        low, high = high, 2 * high
        if high > _SLOWEST:
            return None
    while high > low * (1 + TOLERANCE / 10):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if gains(middle) else (low, middle)
    return high


def _crowded(problem: Problem, found: Found) -> tuple[int, ...]:
    """Stages whose mesh has no room for the segment before or after them."""
    result = []
    stages = spans(found.cuts, problem.num_segments)
    for index, mesh in enumerate(found.meshes):
        taken = []
        if index > 0 and stages[index - 1][1] - stages[index - 1][0] > 1:
            taken.append((index - 1, -1))
        if index < len(found.cuts) and stages[index + 1][1] - stages[index + 1][0] > 1:
            taken.append((index, 1))
        for cut, step in taken:
            cuts = list(found.cuts)
            cuts[cut] += step
            if used_bytes(problem, cuts, found.meshes)[mesh] > problem.capacity_bytes[mesh]:
                result.append(index)
                break
    return tuple(result)


def _changes(asked: _Question, cluster: Cluster) -> list[Change]:
    """Links twice as fast, all and one by one; and kinds of device 20 % cheaper."""
    problem, names = asked.problem, asked.names
    found = asked.found
    used = list(dict.fromkeys(found.meshes))
    joined = np.any(np.isfinite(problem.transfer_s), axis=2, keepdims=True)[:, :, 0]
    pairs = [
        (a, b)
        for a in range(problem.num_meshes)
        for b in range(a + 1, problem.num_meshes)
        if joined[a, b] and joined[b, a]
    ]
    if len(pairs) > _MOST_LINKS:
        pairs = [pair for pair in pairs if set(pair) <= set(used)][:_MOST_LINKS]
    variants = [
        (f"the link between {names[a]!r} and {names[b]!r} twice as fast", (a, b)) for a, b in pairs
    ]
    changed: list[tuple[str, _Variant]] = [
        (what, lambda problem, pair=pair: with_links(problem, 0.5, pair)) for what, pair in variants
    ]
    if len(pairs) > 1:
        changed.append(("all links twice as fast", lambda problem: with_links(problem, 0.5)))
    if asked.objective.needs("usd"):
        for kind in dict.fromkeys(cluster.kind(name).name for name in names):
            own = [k for k, name in enumerate(names) if cluster.kind(name).name == kind]
            changed.append(
                (f"{kind} 20 % cheaper", lambda problem, own=own: cheaper(problem, own, 0.8))
            )
    result = []
    for what, variant in changed:
        best = asked.given(variant)
        if best is not None and (rival := asked.rival(best)) is not None:
            kept = asked.objective.value(terms_of(variant(problem), found.cuts, found.meshes))
            result.append(
                Change(what=what, best=rival, moves=best.value < kept * (1 - 10 * TOLERANCE))
            )
    return result
