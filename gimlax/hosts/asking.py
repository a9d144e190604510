"""What `ray=` and `insecure=` ask for, wherever a caller gives them."""

from gimlax.checking import shown
from gimlax.errors import SpecError

__all__ = ["asked_address"]


def asked_address(ray: bool | str, insecure: bool) -> str | None:
    """The address to join, empty for a Ray of our own, None for none.

    Raises:
        SpecError: they are of another kind, contradict each other, or an address is empty, as one
            out of a variable that is not set.
    """
    if not isinstance(ray, bool | str) or ray == "":
        raise SpecError(
            f"ray is {shown(ray)}; give True for a Ray of this host, 'host:port' of one to join,"
            " or False"
        )
    if not isinstance(insecure, bool):
        raise SpecError(f"insecure is {shown(insecure)}; give True or False")
    if insecure and not isinstance(ray, str):
        raise SpecError("insecure is for joining a Ray by its address; give ray='host:port', too")
    if isinstance(ray, str):
        return ray
    return "" if ray else None
