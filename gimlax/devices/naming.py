"""What a mesh or a group may be called: tables, plans and messages print names as they are."""

from collections.abc import Iterator

__all__ = ["name_mistakes"]


def name_mistakes(name: str) -> Iterator[str]:
    """Why this cannot be a name, one sentence each."""
    if not name:
        yield "its name is empty; give it one"
    if not name.isprintable():
        yield "its name has control characters; give it one that can be printed on a line"
    if " -> " in name:
        yield "its name has ' -> ', which stands between the two ends of a link; take another"
