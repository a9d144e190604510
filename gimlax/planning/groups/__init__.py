"""Plans for groups of devices: which meshes to make of them, and what replicas hold."""

from gimlax.planning.groups.planning import plan_groups
from gimlax.planning.groups.pricing import GroupCosts, price_groups

__all__ = ["GroupCosts", "plan_groups", "price_groups"]
