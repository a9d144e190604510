"""How arrays go from one process to another: links, and what to send over them."""

from gimlax.fabric.blocks import Block, assemble, cut, route, shards
from gimlax.fabric.failures import FrameError, LinkClosed, LinkError, LinkLost, LinkTimeout
from gimlax.fabric.frames import Limits, Tag
from gimlax.fabric.landing import Landed, land
from gimlax.fabric.linking import connect, listen
from gimlax.fabric.narrowing import NARROWINGS, forms, narrow, narrowing_bound, narrows, widen
from gimlax.fabric.seam import Message, Offer, Outgoing, Part, Receiver, Sender

__all__ = [
    "NARROWINGS",
    "Block",
    "FrameError",
    "Landed",
    "Limits",
    "LinkClosed",
    "LinkError",
    "LinkLost",
    "LinkTimeout",
    "Message",
    "Offer",
    "Outgoing",
    "Part",
    "Receiver",
    "Sender",
    "Tag",
    "assemble",
    "connect",
    "cut",
    "forms",
    "land",
    "listen",
    "narrow",
    "narrowing_bound",
    "narrows",
    "route",
    "shards",
    "widen",
]
