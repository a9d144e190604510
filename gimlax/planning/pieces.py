"""How much of the model's memory each run of segments needs on a mesh, with nothing counted twice.

Resident and carried arguments are broken into pieces: rows of a leaf that the same segments use. A
piece that one segment uses adds up; one that several use (tied parameters) counts once per mesh,
however many stages there share it. Phases share all of them. Where a mesh splits an argument, each
of its devices has a part of every piece of it. Units: bytes of one device.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gimlax.graph import Chain, Part, Role
from gimlax.planning.problem import Array
from gimlax.planning.sharding import Sharded


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Rows of one argument leaf, and the segments that use them in any phase.

    `path` is that of the argument, None for a closed-over array, which is never split.
    """

    role: Role
    path: str | None
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
        found.append(
            Piece(role=Role.RESIDENT, path=None, num_bytes=num_bytes, users=users_of_constant)
        )
    return tuple(found)


def _split(
    chain: Chain, role: Role, leaf: int, parts: list[Part], users: dict[Part, set[int]]
) -> list[Piece]:
    traced = chain.phases[0].traced
    argument = traced.arguments[traced.leaves(role)[leaf]]
    path = argument.path
    if all(part.whole for part in parts):
        whole = parts[0]
        num_bytes = chain.part_bytes(role, whole)
        return [Piece(role=role, path=path, num_bytes=num_bytes, users=tuple(sorted(users[whole])))]
    rows = argument.aval.shape[0]
    ends = {part: (0, rows) if part.whole else (part.start, part.stop) for part in parts}
    edges = sorted({edge for pair in ends.values() for edge in pair})
    result: list[Piece] = []
    for start, stop in zip(edges[:-1], edges[1:], strict=True):
        used = {s for part, (a, b) in ends.items() if a <= start < b for s in users[part]}
        if used:
            num_bytes = chain.part_bytes(role, Part(leaf, start, stop))
            users_of = tuple(sorted(used))
            result.append(Piece(role=role, path=path, num_bytes=num_bytes, users=users_of))
    return result


def device_bytes(found: Sequence[Piece], sharded: Sequence[Sharded | None]) -> Array:
    """Bytes of each piece on a device of each mesh, None for one that splits nothing.

    Returns:
        [mesh, piece]
    """
    whole = np.array([piece.num_bytes for piece in found], float)
    return np.stack(
        [
            whole / [of.parts(piece.path) if piece.path is not None else 1 for piece in found]
            if of
            else whole
            for of in sharded
        ]
    )


def added_bytes(found: Sequence[Piece], num_bytes: Array, num_segments: int) -> Array:
    """Bytes of the pieces that add up over the stages of a mesh.

    Carried pieces are never cut, so those that several segments use add up as well.

    Args:
        found: the pieces.
        num_bytes: of each. [mesh, piece]
        num_segments: of the chain.

    Returns:
        [mesh, segment]
    """
    result = np.zeros((len(num_bytes), num_segments))
    for piece, each in zip(found, num_bytes.T, strict=True):
        if not _counts_once(piece):
            result[:, piece.users[0]] += each
    return result


def shared_bytes(found: Sequence[Piece], num_bytes: Array, num_segments: int) -> list[Array]:
    """For each set of segments that share pieces, their bytes where a stage uses any of them.

    Args:
        found, num_bytes, num_segments: as those of `added_bytes`.

    Returns:
        [mesh, first, stop] each.
    """
    by_users: dict[tuple[int, ...], Array] = {}
    for piece, each in zip(found, num_bytes.T, strict=True):
        if _counts_once(piece):
            by_users[piece.users] = by_users.get(piece.users, 0.0) + each
    result: list[Array] = []
    for users, each in by_users.items():
        before = np.zeros(num_segments + 1)  # how many of the users come before each boundary
        np.add.at(before, np.array(users) + 1, 1)
        before = before.cumsum()
        uses = before[None, :] > before[:, None]
        result.append(np.where(uses, each[:, None, None], 0.0))
    return result


def used_bytes(
    found: Sequence[Piece], num_bytes: Array, role: Role, runs: Sequence[tuple[int, int]]
) -> int:
    """Bytes of the pieces of a role that any of these runs of segments `[first, stop)` uses.

    Args:
        found: the pieces.
        num_bytes: of each on the mesh in question. [piece]
        role: resident or carried.
        runs: of segments.
    """
    return sum(
        int(each)
        for piece, each in zip(found, num_bytes, strict=True)
        if piece.role is role
        and any(first <= user < stop for user in piece.users for first, stop in runs)
    )


def _counts_once(piece: Piece) -> bool:
    return piece.role is Role.RESIDENT and len(piece.users) > 1
