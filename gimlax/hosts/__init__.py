"""Processes on the hosts that Ray joins: started, told one thing, watched and ended."""

from gimlax.hosts.asking import asked_address
from gimlax.hosts.joining import Hosts, Node, Running, join

__all__ = ["Hosts", "Node", "Running", "asked_address", "join"]
