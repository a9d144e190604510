"""Laws of how long the kernels of an accelerator take, as functions of sizes and coefficients.

Each law is a launch and what binds: tiles that go over the processors in whole waves, each limited
by arithmetic or by what it is fed, beside the traffic to memory that no tile can avoid. They hold
for scalars and for arrays, of NumPy and of JAX alike (`xp` is either), so that what is fitted is
what is used. Chosen over a table, which knows nothing between its rows or of a device that is not
in it, and over a learned regressor, whose coefficients mean nothing. Units: seconds, bytes, FLOP/s.
"""

from collections.abc import Mapping
from typing import Any

__all__ = [
    "CONTEXT_TILES",
    "DECODE_PARTS",
    "EXPERT_TILES",
    "MATMUL_TILES",
    "all_reduce_s",
    "context_attention_s",
    "decode_attention_s",
    "experts_s",
    "matmul_s",
]

Coefficients = Mapping[str, Any]
Device = Mapping[str, Any]

_SIDES = ((256, 128), (128, 256), (128, 128), (256, 64), (64, 256), (128, 64), (64, 128), (64, 64))
_SIDES += ((32, 64), (64, 32), (16, 128), (128, 16))
# What a library chooses from: rows and columns of a tile, and in how many parts it cuts k.
MATMUL_TILES = tuple((m, n, s) for m, n in _SIDES for s in (1, 2, 3, 4, 6, 8, 16, 32))
EXPERT_TILES = tuple((m, 128, 1) for m in (16, 64, 128))
CONTEXT_TILES = ((16, 1, 1), (64, 1, 1), (128, 1, 1))
DECODE_PARTS = tuple((parts, 1, 1) for parts in (1, 2, 4, 8, 16, 32, 64, 128))
_DEPTH = 64  # of k, which a tile goes through at a time
_NEVER_S = 1.0  # more than any product takes
_WARM_S = 1e-3  # after which clocks have fallen by half of what they will


def matmul_s(xp: Any, c: Coefficients, device: Device, w: Mapping[str, Any], tile: Any) -> Any:
    """Seconds of a product [m, k] × [k, n] with tiles of one size.

    Args:
        xp: NumPy or JAX's.
        c: coefficients: launch_s, efficiency (of the peak), bandwidth (of the card's), feed
            (bandwidth of one processor's loads over its share of the card's), wave_s, reduce_s,
            sharpness, step_s (least time of a step along k, a byte of an element), sag (loss of
            clock), cache (share that holds operands), cached (bandwidth of it over the card's),
            quantise (passes over the left operand that bring it to a short format).
        device: peak_flops_per_s, memory_bytes_per_s, processors, cache_bytes.
        w: batch, m, n, k, itemsize, warm (1 where a cache may hold operands from an earlier use).
        tile: its rows, columns, and the parts of k.
    """
    m, n, k, itemsize = w["m"], w["n"], w["k"], w["itemsize"]
    num_bytes = ((m * k + n * k) * itemsize + 2 * m * n) * w["batch"]
    memory_s = _memory_s(xp, c, device, num_bytes, w["warm"])
    core_s = _waves_s(xp, c, device, w, tile, w["batch"])
    parts = tile[2]
    # No library that was measured cuts products of 4-bit operands along k.
    reduce_s = xp.where(itemsize < 1, _NEVER_S, c["reduce_s"])
    partial_s = (
        8 * parts * m * n * w["batch"] / (device["memory_bytes_per_s"] * c["cached"]) + reduce_s
    )
    quantise_s = w["batch"] * m * k * 2 * c["quantise"] / device["memory_bytes_per_s"]
    # A product that lasts meets the power limit, and clocks fall.
    core_s = core_s * (1 + c["sag"] * core_s / (core_s + _WARM_S))
    return (
        c["launch_s"]
        + _binding(xp, core_s, memory_s, c["sharpness"])
        + xp.where(parts > 1, partial_s, 0.0)
        + quantise_s
    )


def experts_s(xp: Any, c: Coefficients, device: Device, w: Mapping[str, Any], tile: Any) -> Any:
    """Seconds of a layer of gated experts on one device: two grouped products.

    Args:
        xp: NumPy or JAX's.
        c: as of a product, permute, and skew: the load of the fullest of p devices is p to it.
        device: as of a product.
        w: tokens (of all devices), hidden, inner (of one device), chosen (experts of a token),
            experts, devices (that hold different experts), uneven (1 where load is skewed),
            itemsize, warm.
        tile: its rows, columns, and 1.
    """
    local = w["experts"] / w["devices"]
    load = w["tokens"] * w["chosen"] / w["experts"]  # tokens of an expert, if even
    even = xp.minimum(load, 1.0)
    hit = xp.maximum(local * xp.where(w["uneven"] > 0, 1 - (1 + load / 2.5) ** -2.5, even), 1.0)
    share = xp.maximum(w["devices"], 1.0) ** (c["skew"] * w["uneven"])
    rows = xp.maximum(load * local * share / hit, 1.0)
    wide = {"m": rows, "n": 2 * w["inner"], "k": w["hidden"], "itemsize": w["itemsize"]}
    back = {"m": rows, "n": w["hidden"], "k": w["inner"], "itemsize": w["itemsize"]}
    seconds = (
        c["launch_s"] + rows * hit * w["hidden"] * 6 * c["permute"] / device["memory_bytes_per_s"]
    )
    for product in (wide, back):
        weights = hit * product["n"] * product["k"] * product["itemsize"]
        acts = hit * rows * (product["k"] * product["itemsize"] + 2 * product["n"])
        memory_s = (weights + acts) / (device["memory_bytes_per_s"] * c["bandwidth"])
        core_s = _waves_s(xp, c, device, product, tile, hit)
        seconds = seconds + _binding(xp, core_s, memory_s, c["sharpness"])
    return seconds


def context_attention_s(
    xp: Any, c: Coefficients, device: Device, w: Mapping[str, Any], tile: Any
) -> Any:
    """Seconds of causal attention of whole prompts, the writing of the cache with it.

    Args:
        xp: NumPy or JAX's.
        c: launch_s, efficiency, wide (what heads of 256 lose of it), softmax (FLOPs
            that take as long as an exponential), bandwidth, wave_s.
        device: peak_flops_per_s, memory_bytes_per_s, processors.
        w: batch, heads, key_heads, queries, size (of a head), window (keys that a query sees, 0
            where it sees all before it), keys (of a sequence, the latest of them its queries'),
            causal (0 where every query sees every key), itemsize.
        tile: queries of it, 1, 1.
    """
    batch, heads, queries, size = w["batch"], w["heads"], w["queries"], w["size"]
    past = w["keys"] - queries
    window = xp.where(w["window"] > 0, xp.minimum(w["window"], queries), queries)
    rows = xp.ceil(queries / tile[0]) * tile[0]
    # Keys that a tile of queries meets, at most and on average: more until the window is full.
    most = xp.minimum(window + tile[0], rows)
    mean = (0.5 * most * (most + tile[0]) + (rows - most) * most) / rows
    mean = past + xp.where(w["causal"] > 0, mean, most)
    most = past + most
    processor = device["peak_flops_per_s"] / device["processors"]
    pair_s = (
        4 * size * (1 + c["wide"] * (size / 256) ** 2) / c["efficiency"]
        + 2 * c["softmax"] / w["itemsize"]
    ) / processor  # of one query and one key
    tiles = batch * heads * rows / tile[0]
    each_s = c["wave_s"] + tile[0] * mean * pair_s
    core_s = xp.maximum(
        tiles * each_s / device["processors"], tile[0] * most * pair_s + c["wave_s"]
    )
    num_bytes = batch * queries * size * (4 * heads + 6 * w["key_heads"]) * 2
    memory_s = num_bytes / (device["memory_bytes_per_s"] * c["bandwidth"])
    return c["launch_s"] + core_s + memory_s


def decode_attention_s(
    xp: Any, c: Coefficients, device: Device, w: Mapping[str, Any], tile: Any
) -> Any:
    """Seconds of attention of one new token of each sequence over its cache.

    Args:
        xp: NumPy or JAX's.
        c: launch_s, bandwidth, wave_s, step_s (a pass over 64 keys of size 128), merge_s, alone
            (share of wave_s where a key head has one query head), crowd (growth with the square of
            query heads of a key head, in 32), sharpness, cache and cached (as of a product).
        device: memory_bytes_per_s, processors, cache_bytes.
        w: batch, heads, key_heads, keys, size, window, itemsize (of the cache), warm.
        tile: in how many parts a sequence is cut, 1, 1.
    """
    parts = tile[0]
    keys = xp.where(w["window"] > 0, xp.minimum(w["window"], w["keys"]), w["keys"])
    groups = w["batch"] * w["key_heads"]
    shared = w["heads"] / w["key_heads"]  # query heads of a key head
    waves = xp.ceil(groups * parts / device["processors"])
    each_s = c["wave_s"] * xp.where(shared > 1, 1.0, c["alone"])
    each_s = each_s + keys / parts * w["size"] / 8192 * c["step_s"]
    core_s = waves * each_s * (1 + c["crowd"] * (shared / 32) ** 2)
    num_bytes = groups * keys * w["size"] * 2 * w["itemsize"]
    num_bytes = num_bytes + 4 * w["batch"] * w["heads"] * w["size"]
    memory_s = _memory_s(xp, c, device, num_bytes, w["warm"])
    merge_s = xp.where(parts > 1, c["merge_s"], 0.0)
    return c["launch_s"] + merge_s + _binding(xp, core_s, memory_s, c["sharpness"])


def all_reduce_s(xp: Any, c: Coefficients, device: Device, w: Mapping[str, Any]) -> Any:
    """Seconds of summing `num_bytes` over `num_devices`: all at once, or scattered and gathered.

    Args:
        xp: NumPy or JAX's.
        c: launch_s, peer_s (each other device), hop_s (a second exchange), efficiency.
        device: link_bytes_per_s, one way.
        w: num_devices, num_bytes.
    """
    others = w["num_devices"] - 1
    rate = device["link_bytes_per_s"] * c["efficiency"]
    at_once_s = others * w["num_bytes"] / rate
    scattered_s = c["hop_s"] + 2 * others / w["num_devices"] * w["num_bytes"] / rate
    return c["launch_s"] + others * c["peer_s"] + xp.minimum(at_once_s, scattered_s)


def _waves_s(
    xp: Any, c: Coefficients, device: Device, w: Mapping[str, Any], tile: Any, count: Any
) -> Any:
    """Seconds of the tiles of `count` equal products that go over the processors in waves."""
    rows, columns, parts = tile
    m, n = w["m"], w["n"]
    depth = xp.ceil(w["k"] / parts / _DEPTH) * _DEPTH
    waves = xp.ceil(xp.ceil(m / rows) * xp.ceil(n / columns) * parts * count / device["processors"])
    processor = device["peak_flops_per_s"] / device["processors"] * c["efficiency"]
    arithmetic_s = 2 * rows * columns * depth / processor
    feed = device["memory_bytes_per_s"] / device["processors"] * c["feed"]
    loads_s = (xp.minimum(rows, m) + xp.minimum(columns, n)) * depth * w["itemsize"] / feed
    slower, faster = xp.maximum(arithmetic_s, loads_s), xp.minimum(arithmetic_s, loads_s)
    waits_s = depth / _DEPTH * xp.where(w["itemsize"] < 1, 1.0, w["itemsize"]) * c["step_s"]
    return waves * (c["wave_s"] + xp.maximum(slower + 0.3 * faster, waits_s))


def _memory_s(xp: Any, c: Coefficients, device: Device, num_bytes: Any, warm: Any) -> Any:
    """Seconds of traffic, of which a part may be found in cache."""
    kept = c["cache"] * device["cache_bytes"] * warm
    beyond = num_bytes - kept
    beyond = 0.5 * (beyond + xp.sqrt(beyond * beyond + 0.04 * kept * kept))
    slow_s = beyond / c["bandwidth"]
    return (num_bytes / c["cached"] + slow_s) / device["memory_bytes_per_s"]


def _binding(xp: Any, one_s: Any, other_s: Any, sharpness: Any) -> Any:
    """The longer of two that overlap, rounded where they are alike: a norm."""
    longer, shorter = xp.maximum(one_s, other_s), xp.minimum(one_s, other_s)
    order = 1 + sharpness
    return longer * (1 + (shorter / longer) ** order) ** (1 / order)
