"""A plan made from groups beside its rivals: one mesh, one group, one vendor, and other links.

Each figure is the answer of another search of the same kind, with fewer devices or other links, so
it is as good as a search of that time finds, and no estimate. Seconds per request.
"""

import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from gimlax.devices import Cluster
from gimlax.planning.explanation import Change, Comparison, Rival
from gimlax.planning.groups.pricing import GroupCosts
from gimlax.planning.solvers.pools import Held, Solution, solve
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
    found: Solution,
    transfer_share: float,
    time_limit_s: float,
) -> Comparison | None:
    """Compares a plan for throughput with what else the groups allow.

    Args:
        cluster: has the groups.
        figures: of their meshes.
        found: the plan.
        transfer_share: of the seconds of a request that runs alone, the part of transfers.
        time_limit_s: about how long all searches may take together.

    Returns:
        None if the time is over before the rivals are known.
    """
    if time_limit_s < _SHORTEST_S:
        return None
    asked = _Asked(cluster, figures, found, time_limit_s)
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
            next_best=None,
            free=None,
            transfer_share=transfer_share,
            crowded=(),
            changes=asked.changes() if transfer_share else (),
            break_even=asked.break_even(single),
        )
    except TimeoutError:
        return None


class _Asked:
    """The plan and its problem, with a search of any variant until the time is over."""

    def __init__(
        self, cluster: Cluster, figures: GroupCosts, found: Solution, time_limit_s: float
    ) -> None:
        self.cluster = cluster
        self.figures = figures
        self.found = found
        self.problem = figures.problem(cluster)
        self.each_s = min(time_limit_s / 8, _LONGEST_S)
        self.ends_s = time.monotonic() + time_limit_s

    def search(self, problem: PoolsProblem) -> Solution | None:
        if time.monotonic() > self.ends_s:
            raise TimeoutError
        return solve(problem, time_limit_s=self.each_s)

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
            value=1 / solution.requests_per_s,
        )

    def best(self, groups: Sequence[int]) -> Rival | None:
        """With the devices of these groups alone."""
        own = np.isin(np.arange(self.problem.num_groups), list(groups))
        if set(self._used()) <= set(groups):
            return self.rival(self.found)
        devices = np.where(own, self.problem.num_devices, 0)
        return self.rival(self.search(replace(self.problem, num_devices=devices)))

    def single_mesh(self) -> Rival | None:
        """The fastest mesh that has all of the model."""
        whole_s = np.where(self.problem.possible()[:, 0, -1], self.problem.busy_s[:, 0, -1], np.inf)
        option = int(whole_s.argmin())
        if math.isinf(whole_s[option]):
            return None
        group = self.cluster.groups[self.figures.option_group[option]].name
        size = self.figures.shapes[option].num_devices
        return Rival(cuts=(), meshes=(f"{size} of {group}",), value=float(whole_s[option]))

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
        """What faster links would do."""
        best = self.search(self._slowed(0.5))
        rival = self.rival(best)
        if best is None or rival is None:
            return ()
        kept_s = self._period_s(self.found.held, 0.5)
        if kept_s <= rival.value * (1 + _CLOSE):
            kept = self.rival(self.found)
            assert kept is not None
            same = replace(kept, value=kept_s)
            return (Change(what="all links twice as fast", best=same, moves=False),)
        return (Change(what="all links twice as fast", best=rival, moves=True),)

    def _slowed(self, slower: float) -> PoolsProblem:
        return self.figures.problem(self.cluster, slower=slower)

    def _gains(self, solution: Solution | None, single: Rival) -> bool:
        return solution is not None and solution.requests_per_s * single.value > 1 + _GONE

    def _used(self) -> list[int]:
        return [int(self.figures.option_group[held.option]) for held in self.found.held]

    def _period_s(self, held: Sequence[Held], slower: float) -> float:
        """Seconds per request of the same meshes with the same shares of the requests."""
        busy_s = self._slowed(slower).busy_s
        rate = sum(h.requests_per_s for h in held if h.first == 0)
        return max(
            h.requests_per_s / rate / h.count * float(busy_s[h.option, h.first, h.stop])
            for h in held
        )
