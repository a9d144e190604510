"""Plans for meshes where segments that stand side by side may come in another order.

The order of the program is searched first. Unless that is as good as any can be, other orders are
(`sequences.py`), and the best plan of all is the answer; it records its order.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from gimlax.errors import PlanError
from gimlax.graph import Chain, reordered
from gimlax.planning.bound import lower_bound
from gimlax.planning.fronts import front
from gimlax.planning.meshes import MeshSetting
from gimlax.planning.objective import Objective
from gimlax.planning.plans import Plan
from gimlax.planning.search import TOLERANCE, Found
from gimlax.planning.sequences import Rows

__all__ = ["OrderedSetting"]


class OrderedSetting:
    """All that plans for one chain in several orders have in common; `Found.order` counts them."""

    def __init__(
        self, first: MeshSetting, rows: Rows, priced: Callable[[Chain], MeshSetting]
    ) -> None:
        """Args:
        first: in the order of the program.
        rows: the other orders.
        priced: the setting of a chain.
        """
        self._rows = rows
        self._priced = priced
        self._settings = [first]

    @property
    def chain(self) -> Chain:
        return self._settings[0].chain

    def _setting(self, order: int) -> MeshSetting:
        """Of an order by its number, 0 for that of the program; priced when it is asked for."""
        while len(self._settings) <= order:
            row = self._rows.others[len(self._settings) - 1]
            self._settings.append(self._priced(reordered(self.chain, row)))
        return self._settings[order]

    def search(self, objective: Objective, time_limit_s: float | None) -> Found | None:
        """The best layout in any of the orders, None if none is possible.

        Raises:
            PlanError: the time was over before any was found.
        """
        start_s = time.monotonic()
        best = self._settings[0].search(objective, time_limit_s)
        if best and best.value <= self._unordered(objective) * (1 + TOLERANCE):
            return best
        methods = {best.method} if best else set()
        if not self._rows.are_all:
            methods.add("local")
        for order in range(1, len(self._rows.others) + 1):
            left_s = None if time_limit_s is None else time_limit_s - time.monotonic() + start_s
            if left_s is not None and left_s <= 0:
                methods.add("stopped")
                break
            try:
                found = self._setting(order).search(objective, left_s)
            except PlanError:  # nothing was found in the time that was left
                methods.add("stopped")
                break
            if found is not None:
                methods.add(found.method)
                if best is None or found.value < best.value * (1 - TOLERANCE):
                    best = replace(found, order=order)
        if best is None:
            return None
        method = next(name for name in ("stopped", "local", "exact") if name in methods)
        return replace(best, method=method)

    def front(
        self, goals: tuple[str, str], limits: Mapping[str, float], time_limit_s: float | None
    ) -> Sequence[tuple[Objective, Found]]:
        """Every point of the Pareto front of two terms, each with the question it answers."""
        return front(goals, lambda objective: self.search(objective, time_limit_s), limits)

    def why_not(self, objective: Objective) -> PlanError:
        """Why no layout satisfies an objective."""
        return self._settings[0].why_not(objective)

    def plan(self, objective: Objective, found: Found, time_limit_s: float | None) -> Plan:
        """The record of a layout that was found."""
        bound = self._unordered(objective)
        if self._rows.are_all:
            every = (self._setting(k) for k in range(len(self._rows.others) + 1))
            bound = max(bound, min(setting.bound(objective) for setting in every))
        return self._setting(found.order).plan(objective, found, time_limit_s, bound=bound)

    def _unordered(self, objective: Objective) -> float:
        """A value that no layout of any order goes below."""
        best_case = self._settings[0].splits.best_case()
        return lower_bound(best_case, objective, in_any_order=True)
