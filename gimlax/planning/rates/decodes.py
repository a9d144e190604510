"""How long attention of one new token of each sequence takes on a fitted kind of device.

A decode is short, so how its library cuts it over the processors decides more than its bytes do,
and no smooth function of sizes says that: 48 query heads of 4 key heads take twice as long over
1,024 keys as over 2,048 on H100, where another kernel begins. So the law cuts as they do. Written
from what TensorRT-LLM's public sources say of its choices (version 1.3, November 2026):

- *filling*: a block takes up to 8, 16 or 32 query heads of a key head, and keys are cut into as
  many parts as run at once, at most one for 256 keys. All there is on Blackwell of data centres;
  Arc Pro B60, whose library is another, is nearest to it.
- *sharing*: a block takes a key head with all of its query heads, and keys are cut into parts of
  128 and more, fewer where they would take more than 8 waves. Taken where 2 to 32 share, and only
  where a quarter of the processors would have a part. Caches of 8 bits always go this way, on
  Hopper by a kernel that also does what elsewhere another does before it, elsewhere uncut.
- *alone*: a block takes one query head, with the more threads the fewer blocks there are. The rest.

Chosen over the fastest of all ways to cut, which is not what libraries take. What waits for no
memory takes cycles, so seconds here are of a clock of 2 GHz. Units: seconds, bytes.
"""

from typing import Any, NamedTuple

from gimlax.planning.rates.kernels import CLOCK_HZ, Coefficients, Device, binding

__all__ = ["decode_attention_s", "fill", "run_alone", "share"]

_MOST_SHARED = 32  # query heads of a key head that one block can take together
_FILLING_KEYS, _SHARING_KEYS = 256, 128  # of a part, at least
_MOST_WAVES = 8
_MOST_PARTS = 6000  # of all sequences, which a workspace is for
_UNROLLED = 8  # passes over keys that a block alone has under way at once
_CLUSTER = 16  # parts that are merged without another pass through memory
_EDGE = (
    6  # how suddenly a cache that is read round and round holds nothing of what it is too small for
)


class Cut(NamedTuple):
    """How a decode is cut: parts of a sequence, blocks of all, and how many a processor holds."""

    parts: Any
    blocks: Any
    at_once: Any


def decode_attention_s(xp: Any, c: Coefficients, device: Device, w: Any) -> Any:
    """Seconds of attention of one new token of each sequence over its cache.

    Args:
        xp: NumPy or JAX's.
        c: launch_s, prepare_s (of a kernel before that which shares), lone_s and convert_s (beyond
            a launch, where there is one key head and where the cache is of 8 bits); wave_s (each
            block that shares), step_s (64 keys of size 128), crowd (growth with query heads of a
            block); alone_s (each block), pass_s (its first pass over keys) and loop_s (8 passes) of
            blocks alone; merge_s and alone_merge_s (of parts), global_s (of more than 16 parts);
            bandwidth, cache (share that holds keys), cached (bandwidth of it over the card's),
            sharpness.
        device: memory_bytes_per_s, processors, cache_bytes, clock_hz, fills (1 where a library
            fills the processors), joins (1 where caches of 8 bits have a kernel of their own).
        w: batch, heads, key_heads, keys, size, window, itemsize (of the cache), warm.
    """
    keys = xp.where(w["window"] > 0, xp.minimum(w["window"], w["keys"]), w["keys"])
    shared = w["heads"] / w["key_heads"]
    short = w["itemsize"] < 2
    fills = (device["fills"] > 0) & (shared <= _MOST_SHARED)
    joins = short & (device["joins"] > 0)
    filling, rows = fill(xp, device, w, keys)
    sharing, shares = share(xp, device, w, keys)
    lone, each_pass = run_alone(xp, device, w)
    alone = xp.logical_not(fills | shares)
    cut = [
        xp.where(fills, one, xp.where(alone, other, third))
        for one, other, third in zip(filling, lone, sharing)
    ]
    parts, blocks, at_once = cut
    waves = xp.ceil(blocks / device["processors"] / at_once)

    step_s = (
        xp.maximum(128.0, xp.ceil(keys / parts / 64) * 64) * w["size"] / (64 * 128) * c["step_s"]
    )
    filling_s = (c["wave_s"] + step_s) * (1 + c["crowd"] * (rows - 8) / 24)
    sharing_s = c["wave_s"] + step_s * (1 + c["crowd"] * (shared / _MOST_SHARED) ** 2)
    passes = xp.ceil(keys / parts) / each_pass
    alone_s = c["alone_s"] + c["pass_s"] * xp.minimum(passes, 1.0)
    alone_s = alone_s + c["loop_s"] * xp.maximum(passes - 1, 0.0) / _UNROLLED
    block_s = xp.where(fills, filling_s, xp.where(alone, alone_s, sharing_s))

    merge_s = xp.where(alone, c["alone_merge_s"], c["merge_s"])
    merge_s = merge_s + xp.where(fills & (parts > _CLUSTER), c["global_s"], 0.0)
    launch_s = c["launch_s"] + xp.where(parts > 1, merge_s, 0.0)
    launch_s = launch_s + xp.where(alone | fills | joins, 0.0, c["prepare_s"])
    launch_s = launch_s + xp.where(w["key_heads"] > 1, 0.0, c["lone_s"])
    launch_s = launch_s + xp.where(short, c["convert_s"], 0.0)
    cycle = CLOCK_HZ / device["clock_hz"]
    memory_s = _memory_s(xp, c, device, w, keys, xp.where(alone, shared, 1.0))
    return cycle * launch_s + binding(xp, cycle * waves * block_s, memory_s, c["sharpness"])


def fill(xp: Any, device: Device, w: Any, keys: Any) -> tuple[Cut, Any]:
    """What a library does that fills the processors, and the query heads that blocks take."""
    shared = w["heads"] / w["key_heads"]
    rows = xp.where(shared <= 8, 8.0, xp.where(shared <= 16, 16.0, 32.0))
    groups = w["batch"] * w["heads"] / xp.minimum(shared, rows)
    room = xp.maximum(1.0, xp.floor(device["processors"] / groups))
    parts = xp.minimum(xp.ceil(keys / _FILLING_KEYS), room)
    return Cut(parts, groups * parts, 1.0), rows


def share(xp: Any, device: Device, w: Any, keys: Any) -> tuple[Cut, Any]:
    """What a library does with a key head's query heads together, and whether it does so."""
    shared, groups = w["heads"] / w["key_heads"], w["batch"] * w["key_heads"]
    short = w["itemsize"] < 2
    joins = short & (device["joins"] > 0)
    parts = xp.maximum(1.0, xp.floor(w["keys"] / _SHARING_KEYS))
    enough = short | (4 * groups * parts >= device["processors"])
    shares = (shared > 1) & (shared <= _MOST_SHARED) & enough
    parts = xp.minimum(parts, xp.round(xp.sqrt(8 * parts)))  # merging takes time too
    over = groups * parts / (_MOST_WAVES * device["processors"])
    parts = xp.where(over > 1, xp.floor(parts / xp.maximum(over, 1.0)), parts)
    parts = xp.maximum(1.0, xp.minimum(parts, xp.floor(_MOST_PARTS / w["batch"])))
    parts = xp.where(short & xp.logical_not(joins), 1.0, parts)
    # Parts are of all keys, and those before the window have nothing to do.
    working = xp.minimum(parts, xp.ceil(keys / 64))
    return Cut(parts, groups * working, xp.where(joins, 2.0, 1.0)), shares


def run_alone(xp: Any, device: Device, w: Any) -> tuple[Cut, Any]:
    """What a library does with single query heads, and the keys of a pass of a block.

    Of 256, 512 or 1,024 threads as few blocks leave room, a thread reads 16 bytes of a key at a
    time (in 16 bits), heads padded to 64, 128 or 256.
    """
    heads = w["batch"] * w["heads"]
    room = xp.ceil(4 * device["processors"] / heads)
    at_once = xp.where(room >= 4, 1.0, xp.where(room >= 2, 2.0, 4.0))
    padded = xp.where(w["size"] > 128, 256.0, xp.where(w["size"] > 64, 128.0, 64.0))
    each_pass = 1024 * 8 / padded / at_once
    parts = xp.ceil((w["keys"] + 1) / (each_pass * _UNROLLED))
    parts = xp.maximum(1.0, xp.minimum(parts, xp.ceil(device["processors"] / heads)))
    return Cut(parts, heads * parts, at_once), each_pass


def _memory_s(xp: Any, c: Coefficients, device: Device, w: Any, keys: Any, times: Any) -> Any:
    """Seconds of traffic where blocks read keys so many times, from memory only the first time.

    A cache that is read round and round keeps all of what it holds, or nothing of what is too much.
    """
    num_bytes = w["batch"] * w["key_heads"] * keys * w["size"] * 2 * w["itemsize"]
    num_bytes = num_bytes + 4 * w["batch"] * w["heads"] * w["size"]
    full = xp.minimum(num_bytes / (c["cache"] * device["cache_bytes"]), 30.0) ** _EDGE
    missed = xp.where(w["warm"] > 0, full / (1 + full), 1.0)
    return (
        num_bytes * (times / c["cached"] + missed / c["bandwidth"]) / device["memory_bytes_per_s"]
    )
