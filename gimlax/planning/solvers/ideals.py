"""Down-sets of blocks: where a pipeline of devices can be cut.

A set of blocks that contains all that leads to its members is a down-set; a pipeline is a growing
row of them, and a device holds the difference of two neighbours. A chain of n blocks has n + 1
down-sets, a graph of wide branches has too many, so they are enumerated up to a number and else
sampled: along a few orders of the blocks, and around given ones. Sets are bits of Python integers
while they grow and rows of arrays afterwards.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from gimlax.planning.solvers.blocks import Blocks
from gimlax.planning.solvers.dag import Array

_CHUNK = 4096  # rows that are multiplied at once, in four bytes an entry


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Ideals:
    """Down-sets in an order in which each comes after all its subsets; first none, last all blocks.

    Attributes:
        member: whether a block is in the set. [ideal, block]
        last: whether nothing in the set follows this block of it. [ideal, block]
        touched: how many blocks of each net are in the set. [ideal, net]
        net_size: blocks of each net. [net]
        net_s: what a net costs. [net]
        accelerator_s, cpu_s, num_bytes: sums over the set; blocks that no accelerator runs have no
            accelerator time, those that no CPU runs no CPU time. [ideal]
        num_unsupported, num_not_on_cpu: how many blocks no accelerator and no CPU runs. [ideal]
        cut_s: nets that the set cuts. [ideal]
        relief: most accelerator seconds that a second of a CPU can take over.
    """

    member: np.ndarray
    last: np.ndarray
    touched: np.ndarray
    net_size: np.ndarray
    net_s: Array
    accelerator_s: Array
    cpu_s: Array
    num_bytes: Array
    num_unsupported: np.ndarray
    num_not_on_cpu: np.ndarray
    cut_s: Array
    relief: float

    def __len__(self) -> int:
        return len(self.member)

    def mask(self, index: int) -> int:
        """A set as bits of an integer."""
        packed = np.packbits(self.member[index], bitorder="little")
        return int.from_bytes(packed.tobytes(), "little")


def successors(blocks: Blocks) -> list[list[int]]:
    """Blocks that come directly after each."""
    after: list[list[int]] = [[] for _ in blocks.before]
    for block, mask in enumerate(blocks.before):
        for first in bits(mask):
            after[first].append(block)
    return after


def grow(
    blocks: Blocks, starts: Iterable[int], most: int, late: Callable[[], bool], steps: int = -1
) -> set[int] | None:
    """Down-sets that contain one of `starts`, at most `steps` blocks more; breadth first."""
    before, after = blocks.before, successors(blocks)
    layer = {start: _ready(blocks, start) for start in starts}
    found = set(layer)
    while layer and steps:
        steps -= 1
        following: dict[int, int] = {}
        for number, (mask, ready) in enumerate(layer.items()):
            if len(found) > most or (number % 1024 == 0 and late()):
                return None
            rest = ready
            while rest:
                bit = rest & -rest
                rest ^= bit
                child = mask | bit
                if child in found:
                    continue
                found.add(child)
                opened = ready ^ bit
                for other in after[bit.bit_length() - 1]:
                    if before[other] & child == before[other]:
                        opened |= 1 << other
                following[child] = opened
        layer = following
    return found if len(found) <= most else None


def shrink(blocks: Blocks, start: int, most: int, steps: int) -> set[int]:
    """Down-sets inside of `start` with at most `steps` blocks less, `most` of them."""
    found, layer = {start}, {start: last_of(blocks, start)}
    for _ in range(steps):
        following: dict[int, int] = {}
        for mask, last in layer.items():
            for block in bits(last):
                child = mask & ~(1 << block)
                if child not in found and len(found) < most:
                    found.add(child)
                    following[child] = last_of(blocks, child)
        layer = following
    return found


def last_of(blocks: Blocks, mask: int) -> int:
    """Blocks of a down-set that nothing in it follows, as bits."""
    inner = 0
    for block in bits(mask):
        inner |= blocks.before[block]
    return mask & ~inner


def along(order: Iterable[int]) -> list[int]:
    """The down-sets of an order of the blocks."""
    masks = [0]
    for block in order:
        masks.append(masks[-1] | 1 << block)
    return masks


def members(blocks: Blocks, masks: Iterable[int]) -> np.ndarray:
    """Whether a block is in each of these sets. [set, block]"""
    n = len(blocks.before)
    width = n // 8 + 1
    packed = b"".join(mask.to_bytes(width, "little") for mask in masks)
    rows = np.frombuffer(packed, np.uint8).reshape(-1, width)
    return np.unpackbits(rows, axis=1, count=n, bitorder="little").view(bool)


def tabulate(blocks: Blocks, member: np.ndarray) -> Ideals:
    """Figures of the down-sets of these blocks, sorted."""
    accelerator_s = np.zeros(len(member))
    for block in np.flatnonzero(blocks.supported):
        # One after another, so that no rounding puts a set before a subset of it.
        accelerator_s += np.where(member[:, block], blocks.accelerator_s[block], 0.0)
    order = np.lexsort((member.sum(axis=1), accelerator_s))
    member, accelerator_s = member[order], accelerator_s[order]
    inside = members(blocks, [mask for mask, _ in blocks.nets])  # [net, block]
    net_size = inside.sum(axis=1, dtype=np.int64)
    net_s = np.array([seconds for _, seconds in blocks.nets])
    touched = np.empty((len(member), len(net_s)), np.min_scalar_type(net_size.max(initial=0)))
    cut_s = np.empty(len(member))
    for start in range(0, len(member), _CHUNK):
        rows = slice(start, start + _CHUNK)
        touched[rows] = member[rows].astype(np.float32) @ inside.T.astype(np.float32)
        cut_s[rows] = ((touched[rows] > 0) & (touched[rows] < net_size)) @ net_s
    return Ideals(
        member=member,
        last=_last(blocks, member),
        touched=touched,
        net_size=net_size.astype(touched.dtype),
        net_s=net_s,
        accelerator_s=accelerator_s,
        cpu_s=member @ blocks.cpu_s,
        num_bytes=member @ blocks.num_bytes,
        num_unsupported=member @ (~blocks.supported).astype(np.int64),
        num_not_on_cpu=member @ (~blocks.on_cpu).astype(np.int64),
        cut_s=cut_s,
        relief=relief(blocks),
    )


def relief(blocks: Blocks) -> float:
    """Most accelerator seconds that a second of a CPU can take over."""
    useful = blocks.supported & blocks.on_cpu & (blocks.accelerator_s > 0)
    if not useful.any():
        return 0.0
    with np.errstate(divide="ignore"):
        return float((blocks.accelerator_s[useful] / blocks.cpu_s[useful]).max())


def _last(blocks: Blocks, member: np.ndarray) -> np.ndarray:
    """Whether nothing in the set follows this block of it. [set, block]"""
    last = member.copy()
    for block, mask in enumerate(blocks.before):
        for first in bits(mask):
            last[:, first] &= ~member[:, block]
    return last


def _ready(blocks: Blocks, mask: int) -> int:
    """Blocks that can be added to a down-set, as bits."""
    ready = 0
    for block, before in enumerate(blocks.before):
        if not mask >> block & 1 and before & mask == before:
            ready |= 1 << block
    return ready


def bits(mask: int) -> list[int]:
    """The blocks of a set, ascending."""
    result = []
    while mask:
        low = mask & -mask
        result.append(low.bit_length() - 1)
        mask ^= low
    return result
