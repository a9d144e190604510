"""Prices of machines that say how many tokens per second are too many.

Say T tokens pass. Then at each layer some machines whose rates sum to at least T hold it, no more
of a kind than there are. A machine that holds k layers gives a k-th of itself to each of them. So
whatever prices machines have, a layer costs at least as much as the cheapest set of (kind, k) whose
rates reach T, each at a k-th of the price of its kind, and all layers together cannot cost more
than all machines are worth:

    layers * cheapest set (T)  <=  sum over kinds of count * price.

Any prices that break this prove that T cannot be reached, nor anything above the most that a layer
gets for its part of the worth. Good prices come from a linear programme over sets, to which the
cheapest set at the current prices is added until none is cheaper; a wrong digit in it costs
tightness only. The cheapest set is a knapsack over a grid of N steps: a rate r makes
floor(N r / T) + 1 of them, so that rates which sum to T make more than N, whatever they are, while
m rates below T / m do not if m divides N. A coarse grid says where to look, a fine one how much is
possible.

Caps, such as "at most 3 of these machines hold 8 layers or more", have prices like kinds: a machine
under a cap costs that much more, and the cap is worth its number times its price.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from scipy import optimize

from gimlax.planning.problem import Array

__all__ = ["Cap", "CoverSets", "Holders"]

_ROUNDS = 60
Holders = tuple[tuple[int, int], ...]  # (kind, layers that it holds) of each holder of a layer


@dataclass(frozen=True, slots=True)
class Cap:
    """At most `most` machines of a kind hold `low` to `high` layers."""

    kind: int
    low: int
    high: float
    most: int

    def holds(self, kind: int, k: int) -> bool:
        return kind == self.kind and self.low <= k <= self.high


class CoverSets:
    """Sets of holders of a layer, the prices that they lead to, and what these prove."""

    def __init__(
        self,
        num_layers: int,
        counts: Mapping[str, int],
        rates: Mapping[str, Array],
        known: Iterable[Holders] = (),
    ) -> None:
        self._num_layers = num_layers
        self._rates = [np.asarray(own, float)[:num_layers] for own in rates.values()]
        self._counts = np.array([counts[kind] for kind in rates], float)
        self._pool: dict[Holders, float] = {}
        self.prices = np.zeros(len(self._counts))
        self.tight: dict[Holders, float] = {}
        for holders in known:
            self._pool[holders] = self._rate(holders)

    def everything(self) -> float:
        """All machines on one layer."""
        best = np.array([own.max() for own in self._rates])
        return float(best @ self._counts)

    def least(self) -> float:
        """The lowest positive rate of any machine, 0 if there are none."""
        own = [r[r > 0] for r, n in zip(self._rates, self._counts, strict=True) if n]
        return min((float(r.min()) for r in own if r.size), default=0.0)

    def most_below(self, tokens_per_s: float, grid: int, caps: tuple[Cap, ...] = ()) -> float:
        """What is proven to be impossible to exceed, or the given rate if nothing less is."""
        columns = [self._columns(k, tokens_per_s, grid, caps) for k in range(len(self._counts))]
        # Sets of a coarse grid reach a little less; they belong to this grid and rate only.
        here = {h: self._use(h, caps) for h, rate in self._pool.items() if rate >= tokens_per_s}
        limits = np.append(self._counts, [cap.most for cap in caps])
        prices = np.append(
            [max((k for k, _ in own), default=0.0) for own in columns], 0.0 * limits[len(columns) :]
        )
        for _ in range(_ROUNDS):
            if here:
                solved = optimize.linprog(
                    -np.ones(len(here)), A_ub=np.array(list(here.values())).T, b_ub=limits
                )
                if solved.status != 0:
                    break
                prices = np.maximum(-solved.ineqlin.marginals, 0.0)
                if -solved.fun >= self._num_layers:  # sets for all layers
                    self.prices = prices[: len(columns)]
                    self.tight = {h: x for h, x in zip(here, solved.x, strict=True) if x > 1e-9}
                    break
            cost, holders = self._cheapest(prices, columns, grid, caps)
            afforded = np.flatnonzero(cost <= prices @ limits / self._num_layers * (1 + 1e-9))[-1]
            if afforded <= grid:
                below = tokens_per_s * float(afforded) / grid * (1 + 1e-12)
                return min(below, float(np.nextafter(tokens_per_s, 0.0)))
            if holders in here:
                break  # the prices are the best ones, and prove nothing
            here[holders] = self._use(holders, caps)
            self._pool[holders] = self._rate(holders)
        return tokens_per_s

    def fractions(self) -> dict[tuple[int, int], float]:
        """Machines by kind and layers that the last sets for all layers use."""
        used: dict[tuple[int, int], float] = {}
        for holders, number in self.tight.items():
            for held in holders:
                used[held] = used.get(held, 0.0) + number / held[1]
        return used

    def _use(self, holders: Holders, caps: tuple[Cap, ...]) -> Array:
        """How much of each kind, and of each cap, a set uses for one layer."""
        use = np.zeros(len(self._counts) + len(caps))
        for kind, k in holders:
            use[kind] += 1 / k
            for at, cap in enumerate(caps, len(self._counts)):
                if cap.holds(kind, k):
                    use[at] += 1 / k
        return use

    def _price(self, kind: int, k: int, prices: Array, caps: tuple[Cap, ...]) -> float:
        """Of a machine that holds k layers: that of its kind and of the caps that it is under."""
        extra = (
            price
            for price, cap in zip(prices[len(self._counts) :], caps, strict=True)
            if cap.holds(kind, k)
        )
        return float(prices[kind] + sum(extra))

    def _rate(self, holders: Holders) -> float:
        return sum(float(self._rates[kind][k - 1]) for kind, k in holders)

    def _columns(
        self, kind: int, tokens_per_s: float, grid: int, caps: tuple[Cap, ...]
    ) -> list[tuple[int, int]]:
        """(k, steps of the grid) of a kind, where no larger k under the same caps has as many."""
        own = self._rates[kind]
        steps = np.floor(np.minimum(own / tokens_per_s, 1.0) * grid * (1 + 1e-12)).astype(int) + 1
        steps = np.where(own > 0, steps, 0).tolist()
        columns: list[tuple[int, int]] = []
        reached: dict[tuple[bool, ...], int] = {}
        for k in range(len(own), 0, -1):
            under = tuple(cap.holds(kind, k) for cap in caps)
            if steps[k - 1] > reached.get(under, 0):
                columns.append((k, steps[k - 1]))
                reached[under] = steps[k - 1]
        return columns

    def _cheapest(
        self,
        prices: Array,
        columns: list[list[tuple[int, int]]],
        grid: int,
        caps: tuple[Cap, ...],
    ) -> tuple[Array, Holders]:
        """Cost of the cheapest set by the steps that it makes, and the one that makes them all."""
        cost = np.full(grid + 2, np.inf)
        cost[0] = 0.0
        passes: list[tuple[int, Array]] = []
        priced = [
            [(k, steps, self._price(kind, k, prices, caps) / k) for k, steps in own]
            for kind, own in enumerate(columns)
        ]
        for kind, own in enumerate(priced):
            for _ in range(int(self._counts[kind])):
                better = cost.copy()
                for _, steps, price in own:
                    better[steps:] = np.minimum(better[steps:], cost[: grid + 2 - steps] + price)
                    better[1:steps] = np.minimum(better[1:steps], price)
                if not (better < cost).any():
                    break
                passes.append((kind, cost))
                cost = better
        holders: list[tuple[int, int]] = []
        at, now = grid + 1, cost
        for kind, before in reversed(passes):
            if before[at] != now[at]:
                for k, steps, price in priced[kind]:
                    to = max(at - steps, 0)
                    if before[to] + price == now[at]:
                        holders.append((kind, k))
                        at = to
                        break
            now = before
        return cost, tuple(sorted(holders))
