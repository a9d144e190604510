"""Plans for groups of devices: which meshes to make of them, and what replicas hold."""

from gimlax.planning.groups.planning import GroupSetting
from gimlax.planning.groups.pricing import GroupCosts, price_groups

__all__ = ["GroupCosts", "GroupSetting", "price_groups"]
