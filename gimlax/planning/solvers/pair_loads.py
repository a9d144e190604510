"""What a device is busy with if it holds the difference of two down-sets, for many pairs at once.

For I inside J, an accelerator pays a net that J \\ I touches but does not hold. Sums over J minus
sums over I leave only the nets that I already cuts to be looked at: such a net is paid where J
touches more of it than I does, though J's own cut no longer (or not only) says so. The difference
is a product of two thin matrices, one row a net and how far I touches it. Whether I is inside J is
another: no last block of I may be missing in J. So a tile of pairs is two matrix products.
"""

from dataclasses import dataclass, field

import numpy as np

from gimlax.planning.solvers.dag import Array
from gimlax.planning.solvers.ideals import Ideals

SMALL = 384  # down-sets of which all pairs are kept at once


@dataclass(frozen=True, slots=True, eq=False)
class PairLoads:
    """Loads of `J \\ I`, by rows of `ideals`; `inf` where I is not inside J or it does not fit."""

    ideals: Ideals
    capacity_bytes: float
    whole: list[tuple[Array, Array]] = field(default_factory=list)

    def __post_init__(self) -> None:
        if len(self.ideals) <= SMALL:
            everything = np.arange(len(self.ideals)), slice(0, len(self.ideals))
            outside = self._outside(*everything)
            self.whole.append(
                (self._accelerator(*everything, outside), self._cpu(*everything, outside))
            )

    def accelerator(self, inner: np.ndarray, outer: slice) -> Array:
        """Seconds per sample on an accelerator. [len(inner), outer]"""
        if self.whole:
            return self.whole[0][0][inner, outer]
        return self._accelerator(inner, outer, self._outside(inner, outer))

    def cpu(self, inner: np.ndarray, outer: slice) -> Array:
        """Seconds per sample on a CPU. [len(inner), outer]"""
        if self.whole:
            return self.whole[0][1][inner, outer]
        return self._cpu(inner, outer, self._outside(inner, outer))

    def _outside(self, inner: np.ndarray, outer: slice) -> np.ndarray:
        """How many last blocks of I are not in J. [len(inner), outer]"""
        last = self.ideals.last[inner]
        blocks = np.flatnonzero(last.any(axis=0))
        missing = ~self.ideals.member[outer, blocks]
        return last[:, blocks].astype(np.float32) @ missing.T.astype(np.float32)

    def _accelerator(self, inner: np.ndarray, outer: slice, outside: np.ndarray) -> Array:
        ideals = self.ideals
        loads = (ideals.accelerator_s + ideals.cut_s)[None, outer] - (
            ideals.accelerator_s[inner, None]
        )
        touched = ideals.touched[inner]
        rows, nets = np.nonzero((touched > 0) & (touched < ideals.net_size))
        if rows.size:
            states = nets * 65536 + touched[rows, nets]
            kinds, column = np.unique(states, return_inverse=True)
            net, count = kinds // 65536, kinds % 65536
            paid = np.zeros((len(inner), len(kinds)))
            paid[rows, column] = ideals.net_s[nets]
            then = ideals.touched[outer, net]
            more = (then != count).astype(float) - (then < ideals.net_size[net])
            loads += paid @ more.T
        loads[outside > 0] = np.inf
        if ideals.num_bytes[-1] > self.capacity_bytes:
            held = ideals.num_bytes[None, outer] - ideals.num_bytes[inner, None]
            loads[held > self.capacity_bytes * (1 + 1e-12)] = np.inf
        if ideals.num_unsupported[-1]:
            loads[ideals.num_unsupported[None, outer] > ideals.num_unsupported[inner, None]] = (
                np.inf
            )
        return loads

    def _cpu(self, inner: np.ndarray, outer: slice, outside: np.ndarray) -> Array:
        ideals = self.ideals
        loads = ideals.cpu_s[None, outer] - ideals.cpu_s[inner, None]
        loads[outside > 0] = np.inf
        if ideals.num_not_on_cpu[-1]:
            loads[ideals.num_not_on_cpu[None, outer] > ideals.num_not_on_cpu[inner, None]] = np.inf
        return loads
