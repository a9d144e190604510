"""Which sharding among the legal ones: a search with the cost of the collectives in it."""

from gimlax.planning.sharding.choosing import shard
from gimlax.planning.sharding.reading import planned
from gimlax.planning.sharding.sharded import Sharded, ShardedSegment
from gimlax.planning.sharding.states import Pieces, take_apart

__all__ = ["Pieces", "Sharded", "ShardedSegment", "planned", "shard", "take_apart"]
