"""What can go wrong on a link, by what the layer above can do about it.

    BackendError
    └── LinkError      something of one link; `link` is its name
        ├── LinkTimeout  nothing wrong was seen, but it did not happen in time: ask again or give up
        ├── LinkClosed   one of the two sides closed it in order
        ├── LinkLost     the other side is gone without a farewell
        └── FrameError   what came is not what was sent; `sequence` is the frame that was expected

After any of these but a timeout of `receive` a link is of no use: make a new offer and send again.
"""

from gimlax.errors import BackendError

__all__ = ["FrameError", "LinkClosed", "LinkError", "LinkLost", "LinkTimeout"]


class LinkError(BackendError):
    """Something went wrong on the link that it names."""

    def __init__(self, link: str, said: str) -> None:
        super().__init__(f"link {link!r}: {said}")
        self.link = link


class LinkTimeout(LinkError):
    """It did not happen in the time that was given."""


class LinkClosed(LinkError):
    """One of the two sides has closed the link."""


class LinkLost(LinkError):
    """The process at the other end is gone."""


class FrameError(LinkError):
    """A frame is corrupt, repeated, missing or out of turn; it is not repaired here."""

    def __init__(self, link: str, sequence: int, said: str) -> None:
        super().__init__(link, f"frame {sequence}: {said}")
        self.sequence = sequence
