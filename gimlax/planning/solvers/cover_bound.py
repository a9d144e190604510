"""More tokens per second than this pass no layout of machines over layers.

Say T tokens pass. Then at each layer some machines whose rates sum to at least T hold it. A machine
that holds k layers gives a k-th of itself to each of them. So whatever prices machines have, a
layer costs at least as much as the cheapest set of (kind, k) whose rates reach T, each at a k-th of
the price of its kind, and all layers together cannot cost more than all machines are worth:

    layers * cheapest set (T)  <=  sum over kinds of count * price.

Any prices that break this prove that T cannot be reached. Good prices come from a linear programme
over sets, to which the cheapest set at the current prices is added until none is cheaper; a wrong
digit in it costs tightness only. No layout is looked at.
"""

from collections.abc import Mapping

import numpy as np
from scipy import optimize

from gimlax.planning.problem import Array

__all__ = ["most_tokens_per_s"]

_ROUNDS = 60
_MOST_PARTIAL = 4000


def most_tokens_per_s(
    num_layers: int,
    counts: Mapping[str, int],
    rates: Mapping[str, Array],
    *,
    reached: float = 0.0,
    tolerance: float = 1e-3,
) -> float:
    """Tokens/s that no layout exceeds; 0 if no layout passes any.

    Args:
        num_layers: to be covered.
        counts: machines of each kind.
        rates: tokens/s of a machine that holds k layers, at index k - 1.
        reached: tokens/s that are known to be possible: where to look first.
        tolerance: how near to the best bound of this kind, as a share of it.
    """
    bound = _Bound(num_layers, counts, rates)
    low, high = max(reached, 0.0), bound.everything()
    first = low * (1 + 1e-7)
    if first > 0 and bound.forbids(first):
        return first
    if not first:
        low = bound.least()  # below it each machine is enough for a layer
        if not low or bound.forbids(low):
            return 0.0
    while high > low * (1 + tolerance):
        middle = (low + high) / 2
        low, high = (low, middle) if bound.forbids(middle) else (middle, high)
    return high


class _Bound:
    """Which rates are impossible; columns of (kind, k) flat."""

    def __init__(
        self, num_layers: int, counts: Mapping[str, int], rates: Mapping[str, Array]
    ) -> None:
        self._num_layers = num_layers
        self._counts = np.array([counts[kind] for kind in rates], float)
        own = [np.asarray(values, float)[:num_layers] for values in rates.values()]
        self._rate = np.concatenate(own)
        self._kind = np.concatenate([np.full(len(r), k) for k, r in enumerate(own)])
        self._share = 1 / np.concatenate([np.arange(1, len(r) + 1) for r in own])
        useful = (self._rate > 0) & (self._counts[self._kind] > 0)
        self._rate, self._kind = self._rate[useful], self._kind[useful]
        self._share = self._share[useful]

    def everything(self) -> float:
        """All machines on one layer."""
        best = np.zeros(len(self._counts))
        np.maximum.at(best, self._kind, self._rate)
        return float(best @ self._counts)

    def least(self) -> float:
        """The lowest rate of any machine, 0 if there are none."""
        return float(self._rate.min()) if self._rate.size else 0.0

    def forbids(self, tokens_per_s: float) -> bool:
        """Whether prices are found that prove this rate impossible."""
        sets = [self._uses(np.array([c])) for c in range(len(self._rate))]
        clipped = np.minimum(self._rate, tokens_per_s) / tokens_per_s
        # To begin with: as many of one (kind, k) as reach T.
        columns = [use * np.ceil(1 / clipped[c] - 1e-12) for c, use in enumerate(sets)]
        for _ in range(_ROUNDS):
            solved = optimize.linprog(
                -np.ones(len(columns)), A_ub=np.array(columns).T, b_ub=self._counts
            )
            if solved.status != 0 or -solved.fun >= self._num_layers:
                return False  # sets for all layers
            prices = np.maximum(-solved.ineqlin.marginals, 0.0)
            cost, members = self._cheapest(prices, tokens_per_s)
            if cost * self._num_layers > (prices @ self._counts) * (1 + 1e-9):
                return True
            if cost >= 1 - 1e-9:
                return False  # the prices are the best ones, and prove nothing
            columns.append(self._uses(members))
        return False

    def _uses(self, members: np.ndarray) -> Array:
        """How much of each kind a set uses for one layer."""
        use = np.zeros(len(self._counts))
        np.add.at(use, self._kind[members], self._share[members])
        return use

    def _cheapest(self, prices: Array, tokens_per_s: float) -> tuple[float, np.ndarray]:
        """The cheapest set whose rates reach T: partial sets grow by one machine at a time.

        A partial set goes on only if none with as much rate is cheaper, and if it could still be
        the cheapest one when the rest came at the best price per rate.
        """
        price = prices[self._kind] * self._share
        clipped = np.minimum(self._rate, tokens_per_s)
        per_rate = float((price / clipped).min())
        needed = np.ceil(tokens_per_s / clipped - 1e-12)
        alone = int((needed * price).argmin())
        best, members = float(needed[alone] * price[alone]), np.repeat(alone, int(needed[alone]))
        rate, cost = np.zeros(1), np.zeros(1)
        came: list[tuple[np.ndarray, np.ndarray]] = []
        while rate.size:
            all_rate = (rate[:, None] + clipped).ravel()
            all_cost = (cost[:, None] + price).ravel()
            done = all_rate >= tokens_per_s
            if done.any():
                at = int(np.where(done, all_cost, np.inf).argmin())
                if all_cost[at] < best:
                    best = float(all_cost[at])
                    members = self._members(at, came)
            missing = tokens_per_s - all_rate
            open_ = np.flatnonzero(~done & (all_cost + missing * per_rate < best * (1 - 1e-12)))
            order = open_[np.lexsort((all_cost[open_], -all_rate[open_]))]
            least = np.minimum.accumulate(all_cost[order])
            kept = order[np.append(True, all_cost[order][1:] < least[:-1])] if order.size else order
            if kept.size > _MOST_PARTIAL:  # too many: what is left may be as cheap as it could be
                missed = all_cost[kept] + missing[kept] * per_rate
                best = min(best, float(np.partition(missed, _MOST_PARTIAL)[_MOST_PARTIAL:].min()))
                kept = kept[np.argsort(missed)[:_MOST_PARTIAL]]
            came.append((kept // len(price), kept % len(price)))
            rate, cost = all_rate[kept], all_cost[kept]
        return best, members

    def _members(self, at: int, came: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
        """The columns of a set by the way that it grew."""
        parent, member = divmod(at, len(self._rate))
        members = [member]
        for parents, added in reversed(came):
            members.append(int(added[parent]))
            parent = int(parents[parent])
        return np.array(members)
