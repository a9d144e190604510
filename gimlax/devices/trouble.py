"""What a backend's complaint means: the cause and what to do, for complaints that are known."""

import re

from gimlax.devices.catalogue import read_data

__all__ = ["explain"]


def explain(complaint: str) -> str:
    """The complaint, with its cause and what to do behind it where that is known."""
    for known in read_data("plugins.toml")["trouble"]:
        if found := re.search(known["says"], complaint):
            return f"{complaint}: {known['means'].format(**found.groupdict())}"
    return complaint
