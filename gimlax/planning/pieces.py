"""How much of the model's memory each run of segments needs, with nothing counted twice.

Resident and carried arguments are broken into pieces: rows of a leaf that the same segments use. A
piece that one segment uses adds up; one that several use (tied parameters) counts once per mesh,
however many stages there share it. Phases share all of them. Units: bytes.
"""

from collections import defaultdict
from dataclasses import dataclass

import numpy as np

from gimlax.graph import Chain, Part, Role
from gimlax.planning.problem import Array


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Rows of one argument leaf, and the segments that use them in any phase."""

    role: Role
    num_bytes: int
    users: tuple[int, ...]


def pieces(chain: Chain) -> tuple[Piece, ...]:
    """All pieces of the resident and the carried arguments that any segment uses.

    Closed-over arrays live on the meshes as parameters do, and count as such.
    """
    found: list[Piece] = []
    for role in (Role.RESIDENT, Role.CARRIED):
        users: dict[Part, set[int]] = defaultdict(set)
        for segment in range(chain.num_segments):
            parts = (chain.resident_parts if role is Role.RESIDENT else chain.carried_parts)(
                segment, segment + 1
            )
            for part in parts:
                users[part].add(segment)
        by_leaf: dict[int, list[Part]] = defaultdict(list)
        for part in users:
            by_leaf[part.leaf].append(part)
        for leaf, parts in by_leaf.items():
            found += _split(chain, role, leaf, parts, users)
    for num_bytes, users_of_constant in chain.constants():
        found.append(Piece(role=Role.RESIDENT, num_bytes=num_bytes, users=users_of_constant))
    return tuple(found)


def _split(
    chain: Chain, role: Role, leaf: int, parts: list[Part], users: dict[Part, set[int]]
) -> list[Piece]:
    if all(part.whole for part in parts):
        whole = parts[0]
        num_bytes = chain.part_bytes(role, whole)
        return [Piece(role=role, num_bytes=num_bytes, users=tuple(sorted(users[whole])))]
    traced = chain.phases[0].traced
    rows = traced.arguments[traced.leaves(role)[leaf]].aval.shape[0]
    ends = {part: (0, rows) if part.whole else (part.start, part.stop) for part in parts}
    edges = sorted({edge for pair in ends.values() for edge in pair})
    result: list[Piece] = []
    for start, stop in zip(edges[:-1], edges[1:], strict=True):
        used = {s for part, (a, b) in ends.items() if a <= start < b for s in users[part]}
        if used:
            num_bytes = chain.part_bytes(role, Part(leaf, start, stop))
            result.append(Piece(role=role, num_bytes=num_bytes, users=tuple(sorted(used))))
    return result


def added_bytes(found: tuple[Piece, ...], num_segments: int) -> Array:
    """Bytes of the pieces that add up over the stages of a mesh. [segment]

    Carried pieces are never split, so those that several segments use add up as well.
    """
    result = np.zeros(num_segments)
    for piece in found:
        if not _counts_once(piece):
            result[piece.users[0]] += piece.num_bytes
    return result


def shared_bytes(found: tuple[Piece, ...], num_segments: int) -> list[Array]:
    """For each set of segments that share pieces, their bytes where a stage uses any of them.

    Returns:
        [first, stop] each.
    """
    by_users: dict[tuple[int, ...], int] = defaultdict(int)
    for piece in found:
        if _counts_once(piece):
            by_users[piece.users] += piece.num_bytes
    result: list[Array] = []
    for users, num_bytes in by_users.items():
        before = np.zeros(num_segments + 1)  # how many of the users come before each boundary
        np.add.at(before, np.array(users) + 1, 1)
        before = before.cumsum()
        result.append(np.where(before[None, :] > before[:, None], float(num_bytes), 0.0))
    return result


def used_bytes(found: tuple[Piece, ...], role: Role, runs: list[tuple[int, int]]) -> int:
    """Bytes of the pieces of a role that any of these runs of segments `[first, stop)` uses."""
    return sum(
        piece.num_bytes
        for piece in found
        if piece.role is role
        and any(first <= user < stop for user in piece.users for first, stop in runs)
    )


def _counts_once(piece: Piece) -> bool:
    return piece.role is Role.RESIDENT and len(piece.users) > 1
