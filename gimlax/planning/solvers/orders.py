"""A few orders of the blocks, along which a graph is cut as a chain: where a search can start.

Depth first keeps a branch together, breadth first advances all branches, and the thrifty order adds
whatever leaves the least to be sent across a cut. Their down-sets are a good sample of all.
"""

from gimlax.planning.solvers.blocks import Blocks
from gimlax.planning.solvers.ideals import successors


def orders(blocks: Blocks) -> list[list[int]]:
    """Three orders in which each block comes after all that lead to it."""
    return [_walk(blocks, -1), _walk(blocks, 0), thrifty(blocks)]


def _walk(blocks: Blocks, end: int) -> list[int]:
    """Takes the newest (-1) or the oldest (0) of the blocks that are ready."""
    after, missing = successors(blocks), [mask.bit_count() for mask in blocks.before]
    ready = [block for block, count in enumerate(missing) if not count]
    order: list[int] = []
    while ready:
        order.append(ready.pop(end))
        for other in after[order[-1]]:
            missing[other] -= 1
            if not missing[other]:
                ready.append(other)
    return order


def thrifty(blocks: Blocks) -> list[int]:
    """Takes the ready block after which the nets that are cut cost least; ties to the newest."""
    after, missing = successors(blocks), [mask.bit_count() for mask in blocks.before]
    nets_of: list[list[int]] = [[] for _ in missing]
    for net, (mask, _) in enumerate(blocks.nets):
        for block in range(len(missing)):
            if mask >> block & 1:
                nets_of[block].append(net)
    outside = [mask.bit_count() for mask, _ in blocks.nets]
    size = list(outside)
    ready = [block for block, count in enumerate(missing) if not count]
    order: list[int] = []

    def change_s(block: int) -> float:
        opened = sum(blocks.nets[n][1] for n in nets_of[block] if outside[n] == size[n])
        closed = sum(blocks.nets[n][1] for n in nets_of[block] if outside[n] == 1)
        return opened - closed

    while ready:
        chosen = min(reversed(range(len(ready))), key=lambda i: change_s(ready[i]))
        order.append(ready.pop(chosen))
        for net in nets_of[order[-1]]:
            outside[net] -= 1
        for other in after[order[-1]]:
            missing[other] -= 1
            if not missing[other]:
                ready.append(other)
    return order
