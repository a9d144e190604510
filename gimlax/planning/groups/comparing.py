"""A plan made from groups beside its rivals: one mesh, one group, one vendor, and other links.

Each figure is the answer of another search of the same kind, with fewer devices or other links, so
it is as good as a search of that time finds, and no estimate. Values are in the unit of the
objective.
"""

import contextlib
import math
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from gimlax.devices import Cluster
from gimlax.planning.explanation import Change, Comparison, Rival
from gimlax.planning.groups.pricing import GroupCosts
from gimlax.planning.objective import Objective
from gimlax.planning.solvers.pools import Solution, solve
from gimlax.planning.solvers.pools_counts import flow_of
from gimlax.planning.solvers.pools_flows import Held, terms_of
from gimlax.planning.solvers.pools_problem import PoolsProblem

__all__ = ["compare_groups"]

_CLOSE = 1e-6
_GONE = 1e-3  # a gain over one mesh that is none
_PRECISION = 0.02  # of the speed at which it is gone
_SLOWEST = 1e12
_LONGEST_S = 1.0  # of one of the searches
_SHORTEST_S = 0.5  # in which nothing would come of them


def compare_groups(
    cluster: Cluster,
    figures: GroupCosts,
    objective: Objective,
    found: Solution,
    transfer_share: float,
    time_limit_s: float,
) -> Comparison | None:
    """Compares a plan with what else the groups allow.

    Args:
        cluster: has the groups.
        figures: of their meshes.
        objective: what the plan is for.
        found: the plan.
        transfer_share: of the seconds of a request that runs alone, the part of transfers.
        time_limit_s: about how long all searches may take together.

    Returns:
        None if the time is over before the rivals are known.
    """
    if time_limit_s < _SHORTEST_S:
        return None
    asked = _Asked(cluster, figures, objective, found, time_limit_s)
    try:
        groups = [asked.best([index]) for index in range(len(cluster.groups))]
        vendors: dict[str, list[int]] = {}
        for index, group in enumerate(cluster.groups):
            vendors.setdefault(cluster.kind(group.name).vendor, []).append(index)
        of_vendor = {
            vendor: groups[own[0]] if len(own) == 1 else asked.best(own)
            for vendor, own in vendors.items()
        }
        possible = {vendor: rival for vendor, rival in of_vendor.items() if rival}
        vendor = min(possible, key=lambda name: possible[name].value, default="")
        single = asked.single_mesh()
        return Comparison(
            single_mesh=single,
            single_group=min(filter(None, groups), key=lambda rival: rival.value, default=None),
            vendor=vendor,
            single_vendor=possible.get(vendor),
            num_vendors=len(vendors),
            free=None,
            transfer_share=transfer_share,
            crowded=(),
            break_even=asked.break_even(single),
            changes=asked.changes(),
            next_best=asked.next_best(),
        )
    except TimeoutError:
        return None


class _Asked:
    """The plan and its problem, with a search of any variant until the time is over."""

    def __init__(
        self,
        cluster: Cluster,
        figures: GroupCosts,
        objective: Objective,
        found: Solution,
        time_limit_s: float,
    ) -> None:
        self.objective = objective
        self.cluster = cluster
        self.figures = figures
        self.found = found
        self.problem = figures.problem(cluster)
        self.each_s = min(time_limit_s / 8, _LONGEST_S)
        self.ends_s = time.monotonic() + time_limit_s

    def search(self, problem: PoolsProblem) -> Solution | None:
        if time.monotonic() > self.ends_s:
            raise TimeoutError
        return solve(problem, self.objective, time_limit_s=self.each_s)

    def rival(self, solution: Solution | None) -> Rival | None:
        if solution is None:
            return None
        devices: Counter[str] = Counter()
        for held in solution.held:
            group = self.cluster.groups[self.figures.option_group[held.option]].name
            devices[group] += held.count * self.figures.shapes[held.option].num_devices
        return Rival(
            cuts=(),
            meshes=tuple(f"{number} of {group}" for group, number in devices.items()),
            value=solution.value,
        )

    def best(self, groups: Sequence[int]) -> Rival | None:
        """With the devices of these groups alone."""
        own = np.isin(np.arange(self.problem.num_groups), list(groups))
        if set(self._used()) <= set(groups):
            return self.rival(self.found)
        devices = np.where(own, self.problem.num_devices, 0)
        return self.rival(self.search(replace(self.problem, num_devices=devices)))

    def single_mesh(self) -> Rival | None:
        """The best mesh that has all of the model."""
        problem = self.problem
        best: Rival | None = None
        for option in np.flatnonzero(problem.possible()[:, 0, -1]):
            nothing = (0.0,) * problem.num_groups
            whole = Held(int(option), 0, problem.num_segments, 1, 1.0, nothing, nothing)
            flow = flow_of(problem, self.objective, (whole,))
            if flow is not None and (best is None or flow.value < best.value):
                group = self.cluster.groups[self.figures.option_group[option]].name
                size = self.figures.shapes[option].num_devices
                best = Rival(cuts=(), meshes=(f"{size} of {group}",), value=flow.value)
        return best

    def next_best(self) -> Rival | None:
        """The best plan that lacks one of the runs of segments on a kind of mesh that this has."""
        others: list[Solution] = []
        try:
            for h in self.found.held:
                stage_s = self.problem.stage_s.copy()
                stage_s[h.option, h.first, h.stop] = np.inf
                if (other := self.search(replace(self.problem, stage_s=stage_s))) is not None:
                    others.append(other)
        except TimeoutError:
            return None
        return self.rival(min(others, key=lambda other: other.value, default=None))

    def break_even(self, single: Rival | None) -> float | None:
        """How many times slower links have to be until the gain over one mesh is gone.

        A trickle over the slowest link is a gain too, so what is below `_GONE` counts as none.

        Returns:
            None if that is so at no speed, 0 if the time is over before it is known.
        """
        if single is None or not self._gains(self.found, single):
            return None
        low = high = 1.0
        try:
            while self._gains(self.search(self._slowed(high)), single):
                low, high = high, 4 * high
                if high > _SLOWEST:
                    return None
            while high > low * (1 + _PRECISION):
                middle = math.sqrt(low * high)
                if self._gains(self.search(self._slowed(middle)), single):
                    low = middle
                else:
                    high = middle
        except TimeoutError:
            return 0.0
        return high if high > 1 else None

    def changes(self) -> tuple[Change, ...]:
        """What faster links would do, and cheaper devices where dollars are looked at."""
        found: list[Change] = []
        with contextlib.suppress(TimeoutError):
            found.extend(self._changes())
        return tuple(found)

    def _changes(self) -> Iterator[Change]:
        crossed = any(h.stop < self.problem.num_segments for h in self.found.held)
        variants = [("all links twice as fast", self._slowed(0.5))] if crossed else []
        if self.objective.needs("usd"):
            kinds = [self.cluster.kind(group.name).name for group in self.cluster.groups]
            of_option = np.array(kinds)[self.figures.option_group]
            for kind in dict.fromkeys(kinds):
                usd_per_s = self.problem.usd_per_s * np.where(of_option == kind, 0.8, 1.0)
                cheaper = replace(self.problem, usd_per_s=usd_per_s)
                variants.append((f"{kind} 20 % cheaper", cheaper))
        for what, problem in variants:
            best, kept = self.rival(self.search(problem)), self.rival(self.found)
            if best is None or kept is None:
                continue
            value = self._value(problem)
            moves = best.value < value * (1 - _CLOSE)
            yield Change(what=what, best=best if moves else replace(kept, value=value), moves=moves)

    def _slowed(self, slower: float) -> PoolsProblem:
        return self.figures.problem(self.cluster, slower=slower)

    def _gains(self, solution: Solution | None, single: Rival) -> bool:
        return solution is not None and solution.value * (1 + _GONE) < single.value

    def _used(self) -> list[int]:
        return [int(self.figures.option_group[held.option]) for held in self.found.held]

    def _value(self, problem: PoolsProblem) -> float:
        """What the same meshes with the same shares of the requests are worth in a variant."""
        return self.objective.value(terms_of(problem, self.found.held))
