"""The down-sets at which a split can be cut if all its loads stay below a limit.

Where accelerators have to be busy most of the time, few of all down-sets can lie between two
devices: with k devices and a limit T, what is before such a cut and what is behind it take a whole
number of devices each, k of them together, and every net that is cut is paid on both sides. Blocks
are decided one after another, in or out, for all candidates at once; a block that is out takes all
that follows it along, so both sides fill up early and most candidates are dropped early. Chosen
over enumerating all down-sets, of which wide graphs have millions. Exact: nothing that a split
below the limit needs is dropped.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from gimlax.planning.solvers.blocks import Blocks
from gimlax.planning.solvers.dag import Array
from gimlax.planning.solvers.ideals import bits, relief, successors

ROUNDING = 1e-9
_CHUNK = 4096  # rows whose bits are spread out at once
Words = np.ndarray


@dataclass(frozen=True, slots=True, kw_only=True)
class Devices:
    """What a split may use: loads below `limit_s`, and the memory of each accelerator."""

    num_accelerators: int
    num_cpus: int
    capacity_bytes: float
    limit_s: float


def cuttable(
    blocks: Blocks, order: list[int], devices: Devices, most: int, late: Callable[[], bool]
) -> np.ndarray | None:
    """Down-sets between two devices of any split below the limit, and perhaps more.

    Args:
        blocks: of the graph.
        order: of the blocks, each after all that lead to it; one that cuts little is fast.
        devices: what there is.
        most: how many sets may be held at once.
        late: whether time is over.

    Returns:
        Whether a block is in the set [set, block]; or None if there are too many, or time is over.
    """
    return _Candidates(blocks, order, devices, most, late).run()


class _Candidates:
    """Sets of which the first blocks of the order are decided: packed bits of what is out."""

    def __init__(
        self,
        blocks: Blocks,
        order: list[int],
        devices: Devices,
        most: int,
        late: Callable[[], bool],
    ) -> None:
        self.order, self.devices, self.most, self.late = order, devices, most, late
        self.n = len(order)
        self.width = self.n // 64 + 1
        place = {block: position for position, block in enumerate(order)}
        self.behind = _closures(blocks, order, place, self.width)
        self.nets = [
            (_packed((place[b] for b in bits(mask)), self.width), seconds)
            for mask, seconds in blocks.nets
        ]
        self.nets_of: list[list[int]] = [[] for _ in order]
        self.end = [0] * len(self.nets)  # position of the last block of a net
        for net, (mask, _) in enumerate(blocks.nets):
            for block in bits(mask):
                self.nets_of[place[block]].append(net)
                self.end[net] = max(self.end[net], place[block])
        blocks_s = np.where(blocks.supported, blocks.accelerator_s, 0.0)
        # What a block adds to its side: seconds, bytes, whether no accelerator runs it, itself.
        self.figures = np.stack(
            [blocks_s, blocks.num_bytes, ~blocks.supported, np.ones(self.n)], axis=1
        )[order]
        self.relief = relief(blocks)
        self.out = np.zeros((1, self.width), np.uint64)
        self.inside, self.outside = np.zeros((1, 4)), np.zeros((1, 4))
        self.cut_s = np.zeros(1)
        self.complete: list[Words] = []
        self.num_complete = 0

    def run(self) -> np.ndarray | None:
        processed = np.zeros(self.width, np.uint64)
        live: set[int] = set()  # nets of which some blocks are decided and some are not
        for position in range(self.n):
            if self.late() or not self._decide(position, processed, live):
                return None
            processed[position // 64] |= np.uint64(1 << position % 64)
            live |= {net for net in self.nets_of[position] if self.end[net] > position}
            live -= {net for net in self.nets_of[position] if self.end[net] == position}
        out = np.concatenate([*self.complete, self.out])
        member = np.empty((len(out), self.n), bool)
        member[:, self.order] = ~_spread(out, self.n)
        return member

    def _decide(self, position: int, processed: Words, live: set[int]) -> bool:
        """Every candidate twice, with the block and without it; False if there are too many."""
        word, bit = position // 64, np.uint64(1 << position % 64)
        free = np.flatnonzero(self.out[:, word] & bit == 0)
        if not len(free):
            return True
        out, behind = self.out[free], self.behind[position]
        # Without it, and so without all that follows.
        without_s = self.cut_s[free]
        for net in live:
            mask, seconds = self.nets[net]
            if (mask & behind).any():
                torn = _differs(out, mask & processed) & ~_touches(out, mask)
                without_s = without_s + np.where(torn, seconds, 0.0)
        outside = self.outside[free] + self._sums(behind & ~out)
        keep = self._possible(self.inside[free], outside, without_s)
        children = out[keep] | behind
        # With it.
        with_s = self.cut_s[free]
        for net in self.nets_of[position]:
            mask, seconds = self.nets[net]
            torn = _touches(out, mask) & ~_differs(out, mask & processed)
            with_s += np.where(torn, seconds, 0.0)
        self.cut_s[free] = with_s
        self.inside[free] += self.figures[position]
        stays = self._possible(self.inside[free], self.outside[free], with_s)
        dropped = free[~stays]
        self.out = np.concatenate([np.delete(self.out, dropped, axis=0), children])
        self.inside = np.concatenate(
            [
                np.delete(self.inside, dropped, axis=0),
                (self.inside[free] - self.figures[position])[keep],
            ]
        )
        self.outside = np.concatenate([np.delete(self.outside, dropped, axis=0), outside[keep]])
        self.cut_s = np.concatenate([np.delete(self.cut_s, dropped), without_s[keep]])
        self._put_aside()
        return len(self.out) + self.num_complete <= self.most

    def _put_aside(self) -> None:
        """Candidates of which all blocks are decided wait for the end."""
        ready = self.inside[:, 3] + self.outside[:, 3] >= self.n - 0.5
        if not ready.any():
            return
        self.complete.append(self.out[ready])
        self.num_complete += int(ready.sum())
        self.out, self.inside = self.out[~ready], self.inside[~ready]
        self.outside, self.cut_s = self.outside[~ready], self.cut_s[~ready]

    def _sums(self, bits: Words) -> Array:
        """Figures of the blocks of each row. [row, 4]"""
        sums = [
            _spread(bits[start : start + _CHUNK], self.n) @ self.figures
            for start in range(0, len(bits), _CHUNK)
        ]
        return np.concatenate(sums)

    def _possible(self, inside: Array, outside: Array, cut_s: Array) -> np.ndarray:
        """Whether some numbers of devices before and behind the cut are enough. [row]"""
        possible = np.zeros(len(cut_s), bool)
        cpus = self.devices.num_cpus
        with np.errstate(over="ignore"):  # no number of devices is enough for a limit of next to 0
            for before in range(cpus + 1):
                needed = self._needed(inside, cut_s, before)
                needed += self._needed(outside, cut_s, cpus - before)
                possible |= needed <= self.devices.num_accelerators
        return possible

    def _needed(self, side: Array, cut_s: Array, cpus: int) -> Array:
        """Accelerators that one side needs at least beside so many CPUs. [row]"""
        limit_s = self.devices.limit_s
        if cpus:
            if self.relief == np.inf:
                return np.zeros(len(side))
            # A CPU takes work over, pays no net, holds any number of bytes.
            seconds = side[:, 0] - cpus * self.relief * limit_s
            return np.ceil(np.maximum(seconds, 0.0) / limit_s - ROUNDING)
        needed = np.ceil((side[:, 0] + cut_s) / limit_s - ROUNDING)
        held, capacity = side[:, 1], self.devices.capacity_bytes
        if capacity > 0:
            needed = np.maximum(needed, np.ceil(held / capacity - ROUNDING))
        else:
            needed[held > 0] = np.inf
        needed[side[:, 2] > 0.5] = np.inf
        return needed


def _differs(out: Words, mask: Words) -> np.ndarray:
    """Whether some block of the mask is not out. [row]"""
    result = np.zeros(len(out), bool)
    for word in np.flatnonzero(mask):
        result |= out[:, word] & mask[word] != mask[word]
    return result


def _touches(out: Words, mask: Words) -> np.ndarray:
    """Whether some block of the mask is out. [row]"""
    result = np.zeros(len(out), bool)
    for word in np.flatnonzero(mask):
        result |= out[:, word] & mask[word] != 0
    return result


def _closures(blocks: Blocks, order: list[int], place: dict[int, int], width: int) -> Words:
    """Each position with all that follow it, as bits. [position, word]"""
    after = successors(blocks)
    behind = np.zeros((len(order), width), np.uint64)
    for position in reversed(range(len(order))):
        behind[position, position // 64] |= np.uint64(1 << position % 64)
        for other in after[order[position]]:
            behind[position] |= behind[place[other]]
    return behind


def _packed(positions: object, width: int) -> Words:
    result = np.zeros(width, np.uint64)
    for position in positions:  # type: ignore[attr-defined]
        result[position // 64] |= np.uint64(1 << position % 64)
    return result


def _spread(rows: Words, n: int) -> np.ndarray:
    """Packed rows as booleans. [row, n]"""
    octets = np.ascontiguousarray(rows).view(np.uint8)
    return np.unpackbits(octets, axis=1, count=n, bitorder="little").view(bool)
