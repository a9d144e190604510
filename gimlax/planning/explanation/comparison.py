"""What a plan was compared with, as records that travel with it.

All values are in the unit of the plan's objective. Figures only, so a plan read from JSON explains
itself without model or cluster.
"""

from dataclasses import dataclass

from gimlax.records import Amount, Count, Share


@dataclass(frozen=True, slots=True, kw_only=True)
class Rival:
    """Another layout and its value: boundaries, and the mesh of each stage.

    Of a layout made from groups there are no boundaries; `meshes` says how many devices of which
    group it uses.
    """

    cuts: tuple[Count, ...]
    meshes: tuple[str, ...]
    value: Amount


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """The best layout if one thing were different.

    Attributes:
        what: the thing, in words.
        best: the best layout then.
        moves: whether it is another one than the plan's.
    """

    what: str
    best: Rival
    moves: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """A plan beside what else could have been done on the same cluster.

    Attributes:
        single_mesh: the best layout on one mesh, None if no mesh could do it within the limits.
        vendor: whose devices the best layout of one vendor uses, empty if no vendor could do it.
        single_vendor: that layout.
        num_vendors: how many vendors the meshes of the cluster are of.
        next_best: the best layout other than the plan's, also where meshes that nothing tells apart
            change places; None if there is none, if cuts or meshes
            were given, or if time ran out before it was known.
        free: the best layout if cuts and meshes had not been given; None where they were not.
        transfer_share: of the seconds of a request that runs alone, the part that transfers take.
        break_even: how many times slower links would have to be until the gain over the best
            single mesh is zero or a limit breaks, whatever the layout; below 1 is impossible, None:
            at no speed, or there is no gain to lose; 0: time ran out before it was known.
        crowded: holdings that cannot take over the segment before or after them for want of memory.
        changes: what would happen if single things were different.
        single_group: of a plan made from groups the best one with the devices of one group.
    """

    single_mesh: Rival | None
    vendor: str
    single_vendor: Rival | None
    num_vendors: Count
    next_best: Rival | None
    free: Rival | None
    transfer_share: Share
    break_even: Amount | None
    crowded: tuple[Count, ...]
    changes: tuple[Change, ...]
    single_group: Rival | None = None
