"""What devices send each other, read from the text of a compiled program.

Backends write one collective in several ways: as one operation or as a start and a done, which
carry their operands in the type; a sum that is scattered as an operation of its own, or as a fusion
of a sum and a slice (TPU). Here each counts once, with the bytes that `gimlax.partition.Collective`
means, times the iterations of the loops around it where XLA knows them. Units: bytes per device.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from gimlax.partition import ALL_GATHER, ALL_REDUCE, ALL_TO_ALL, PERMUTE, REDUCE_SCATTER

__all__ = ["KINDS", "emitted"]

KINDS = {
    "all-reduce": ALL_REDUCE,
    "all-gather": ALL_GATHER,
    "all-to-all": ALL_TO_ALL,
    "ragged-all-to-all": "ragged_all_to_all",
    "reduce-scatter": REDUCE_SCATTER,
    "collective-permute": PERMUTE,
    "collective-broadcast": "broadcast",
    "send": "send",
    "recv": "recv",
}
# Of a start, the type holds operands and results, but for a sum, whose operands lie as its result.
_TYPED_BY_RESULT = {"all-reduce"}
# What speaks with other devices says to whom, whatever it is called.
_SPEAKS = re.compile(r"replica_groups=|source_target_pairs=|channel_id=")
_OPERATION = re.compile(r"^\s*(?:ROOT )?%?[\w.-]+ = (.*?) ([a-z][\w-]*)\(")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.-]+) .*\{$")
_ARRAY = re.compile(r"([a-z]\w*)\[([\d,]*)\]")
_CALLS = re.compile(r"(?:calls|body|called_computations)=\{?(%[\w.-]+(?:, ?%[\w.-]+)*)")
_BRANCHES = re.compile(r"(?:branch_computations=\{|(?:true|false)_computation=)([^}\s]*)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_SLICED_SUM = "all-reduce-scatter"  # how libtpu calls a computation that sums and slices
_BITS = re.compile(r"^(?:bf|[a-z]+?)(\d+)")


@dataclass(slots=True)
class _Computation:
    """`found` are (kind, bytes) of each collective, `calls` what it calls and how often."""

    found: list[tuple[str, int]] = field(default_factory=list)
    calls: list[tuple[str, int]] = field(default_factory=list)


def emitted(text: str) -> dict[str, tuple[int, int]]:
    """How many collectives of each kind one call of a compiled program does, and their bytes.

    Args:
        text: of the compiled module.

    Returns:
        (count, bytes) by kind: those of `gimlax.partition`, and some that a plan never asks for.
        An operation that speaks with other devices and has no such name counts as it is called.
    """
    computations, entry = _read(text)
    count: Counter[str] = Counter()
    num_bytes: Counter[str] = Counter()
    todo = [(entry, 1)]
    while todo:
        name, times = todo.pop()
        of = computations.get(name)
        if of is None:
            continue
        for kind, size in of.found:
            count[kind] += times
            num_bytes[kind] += times * size
        todo += [(called, times * trips) for called, trips in of.calls]
    return {kind: (count[kind], num_bytes[kind]) for kind in sorted(count)}


def _read(text: str) -> tuple[dict[str, _Computation], str]:
    computations: dict[str, _Computation] = {}
    header = re.search(r"num_partitions=(\d+)", text.partition("\n")[0])
    everyone = int(header[1]) if header else 1
    entry, name = "", ""
    for line in text.splitlines():
        if line[:1] not in (" ", "}", "") and (opened := _COMPUTATION.match(line)):
            name = opened[2]
            computations[name] = _Computation()
            entry = name if opened[1] else entry
        elif name and (operation := _OPERATION.match(line)):
            here = computations[name]
            tail = line[operation.end() :].partition(", metadata=")
            here.calls += _called(tail[0] + tail[2], operation[2])
            if _SPEAKS.search(tail[0]):
                sums_and_slices = name.startswith(_SLICED_SUM)
                here.found += _collective(
                    operation[1], operation[2], tail[0], everyone, sums_and_slices
                )
    return computations, entry


def _called(tail: str, opcode: str) -> Iterator[tuple[str, int]]:
    trips = _TRIPS.search(tail) if opcode == "while" else None
    for found in (*_CALLS.findall(tail), *_BRANCHES.findall(tail)):
        for name in found.split(","):
            yield name.strip(" %{}"), int(trips[1]) if trips else 1


def _collective(
    kind: str, opcode: str, tail: str, everyone: int, sums_and_slices: bool
) -> Iterator[tuple[str, int]]:
    """The collective that an operation starts or is, if it is one.

    Args:
        kind: type of its result, as text.
        opcode: how it is called.
        tail: of its line, from its operands on.
        everyone: devices that take part where no groups are named.
        sums_and_slices: whether it is in a computation that scatters a sum.
    """
    if opcode.endswith("-done"):  # counted where it started
        return
    starts = opcode.endswith("-start")
    name = opcode.removesuffix("-start")
    if name not in KINDS and not name.startswith(("all-", "collective-")):
        return  # a partition id, say, or a fusion around what is counted inside
    parts = _elements(kind)
    of_start = starts and name not in _TYPED_BY_RESULT and len(parts) > 1
    operands, results = (parts[0], parts[1]) if of_start else ("", kind)
    num_bytes = _bytes(results)
    if name == "reduce-scatter":
        num_bytes = _bytes(operands) if of_start else num_bytes * _group_size(tail, everyone)
    found = REDUCE_SCATTER if sums_and_slices and name == "all-reduce" else KINDS.get(name, name)
    yield found, num_bytes


def _elements(kind: str) -> list[str]:
    """The elements of a tuple type, or the type itself."""
    if not kind.startswith("("):
        return [kind]
    parts, depth, start = [], 0, 1
    for place, letter in enumerate(kind):
        depth += (letter in "([{") - (letter in ")]}")
        if (depth == 1 and letter == ",") or (depth == 0 and place):
            parts.append(kind[start:place].strip())
            start = place + 1
        if depth == 0 and place:
            break
    return parts


def _bytes(kind: str) -> int:
    """Bytes of all arrays in a type, without what a layout adds."""
    total = 0
    for dtype, dims in _ARRAY.findall(re.sub(r"\{[^{}]*\}", "", kind)):
        bits = _BITS.match(dtype)
        size = math.prod(int(d) for d in dims.split(",") if d)
        total += -(-size * (int(bits[1]) if bits else 8) // 8)
    return total


def _group_size(tail: str, everyone: int) -> int:
    """Devices of one group of a collective, in each of the ways that XLA writes them."""
    if found := re.search(r"replica_groups=\{\{([\d,]+)\}", tail):
        return found[1].count(",") + 1
    if found := re.search(r"replica_groups=\[\d+,(\d+)\]", tail):
        return int(found[1])
    if found := re.search(r"replica_groups=mesh\[([^\]]*)\] ?\{([^}]*)\}", tail):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", found[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", found[2]))
    return everyone
