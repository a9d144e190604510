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
    "CLOCK_HZ",
    "EXPERT_TILES",
    "MATMUL_TILES",
    "all_reduce_s",
    "binding",
    "context_attention_s",
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
_DEPTH = 64  # of k, which a tile goes through at a time
_QUERIES = 128  # of a tile of a prompt
CLOCK_HZ = 2e9  # of the processors, at which coefficients that stand for cycles are in seconds
_LOADS = 8  # quantiles that stand for the loads of experts
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
            quantise (passes over the left operand that bring it to a short format), hidden (how
            well the launch hides behind the kernel: 0 not at all).
        device: peak_flops_per_s, memory_bytes_per_s, processors, cache_bytes.
        w: batch, m, n, k, itemsize, warm (1 where a cache may hold operands from an earlier use).
        tile: its rows, columns, and the parts of k.
    """
    m, n, k, itemsize = w["m"], w["n"], w["k"], w["itemsize"]
    num_bytes = ((m * k + n * k) * itemsize + 2 * m * n) * w["batch"]
    memory_s = _memory_s(xp, c, device, num_bytes, w["warm"])
    core_s = _waves_s(xp, c, device, w, tile, xp.ceil(m / tile[0]) * w["batch"])
    parts = tile[2]
    # No library that was measured cuts products of 4-bit operands along k.
    reduce_s = xp.where(itemsize < 1, _NEVER_S, c["reduce_s"])
    partial_s = (
        8 * parts * m * n * w["batch"] / (device["memory_bytes_per_s"] * c["cached"]) + reduce_s
    )
    quantise_s = w["batch"] * m * k * 2 * c["quantise"] / device["memory_bytes_per_s"]
    # A product that lasts meets the power limit, and clocks fall.
    core_s = core_s * (1 + c["sag"] * core_s / (core_s + _WARM_S))
    kernel_s = binding(xp, core_s, memory_s, c["sharpness"])
    kernel_s = kernel_s + xp.where(parts > 1, partial_s, 0.0) + quantise_s
    return binding(xp, c["launch_s"], kernel_s, c["hidden"])


def experts_s(xp: Any, c: Coefficients, device: Device, w: Mapping[str, Any], tile: Any) -> Any:
    """Seconds of a layer of gated experts on one device, the fullest: two grouped products.

    Args:
        xp: NumPy or JAX's.
        c: as of a product, permute, and skew (of what the fullest device has above the mean, over
            what independent loads would give it).
        device: as of a product.
        w: tokens (of all devices), hidden, inner (of one device), chosen (experts of a token),
            experts, devices (that hold different experts), exponent (of the power law of loads,
            0 where all are equal), itemsize, warm.
        tile: its rows, columns, and 1.
    """
    local = w["experts"] / w["devices"]
    loads = _expert_loads(xp, w) * _fullest(xp, c, w)  # [quantile, row]
    hits, rows = xp.minimum(loads, 1.0), xp.maximum(loads, 1.0)
    # Some expert has work on the fullest device.
    at_least_one = xp.maximum(1.0, 1 / (local * hits.mean(0)))
    num_hit = local * hits.mean(0) * at_least_one
    num_rows = local * (hits * rows).mean(0) * at_least_one
    num_tiles = local * (hits * xp.ceil(rows / tile[0])).mean(0) * at_least_one
    mean = num_rows / num_hit
    wide = {"m": mean, "n": 2 * w["inner"], "k": w["hidden"], "itemsize": w["itemsize"]}
    back = {"m": mean, "n": w["hidden"], "k": w["inner"], "itemsize": w["itemsize"]}
    seconds = (
        c["launch_s"] + num_rows * w["hidden"] * 6 * c["permute"] / device["memory_bytes_per_s"]
    )
    for product in (wide, back):
        weights = num_hit * product["n"] * product["k"] * product["itemsize"]
        acts = num_rows * (product["k"] * product["itemsize"] + 2 * product["n"])
        memory_s = (weights + acts) / (device["memory_bytes_per_s"] * c["bandwidth"])
        core_s = _waves_s(xp, c, device, product, tile, num_tiles)
        seconds = seconds + binding(xp, core_s, memory_s, c["sharpness"])
    return seconds


def context_attention_s(xp: Any, c: Coefficients, device: Device, w: Mapping[str, Any]) -> Any:
    """Seconds of causal attention of whole prompts, the writing of the cache with it.

    Tiles of 128 queries keep all processors busy but for a last wave, and but for the longest tile,
    which may go on alone; work of a tile is what it does for pairs of a query and a key, and as
    much again as `extra` keys would be. What waits for no arithmetic and no memory takes cycles, so
    launch_s and wave_s are of a clock of 2 GHz.

    Args:
        xp: NumPy or JAX's.
        c: launch_s, other (launches with heads that are not of 128), spared (share of a launch that
            prompts of one token do without), lone_s (beyond a launch where there is one key head),
            efficiency (with heads of 128), narrow, middle and wide (FLOPs that heads of 64, 192 and
            256 take over those of 128), wave_s (each tile), extra (keys), round (share of a tile's
            time for which processors without a tile in the last wave wait), tail (share of what the
            longest tile takes beyond the mean that nothing else fills), beyond (keys that a window
            does not hold and a tile meets), least (queries that a tile works on where heads are of
            whole 128s), bandwidth, cache, cached and hidden (as of a product).
        device: peak_flops_per_s, memory_bytes_per_s, processors, cache_bytes, clock_hz.
        w: batch, heads, key_heads, queries, size (of a head), window (keys that a query sees, 0
            where it sees all before it), keys (of a sequence, the latest of them its queries'),
            causal (0 where every query sees every key), itemsize.
    """
    batch, heads, queries, size = w["batch"], w["heads"], w["queries"], w["size"]
    past = w["keys"] - queries
    window = xp.where(w["window"] > 0, xp.minimum(w["window"], queries), queries)
    num_tiles = xp.ceil(queries / _QUERIES)
    # A matrix unit takes 16 queries at a time, and those of a tile that are not there cost nothing.
    rows = xp.minimum(xp.ceil(queries / 16) * 16, _QUERIES)
    rows = xp.maximum(rows, xp.where((size == 128) | (size == 256), c["least"], 0.0))
    full = num_tiles * _QUERIES
    # Keys that a tile of queries meets, at most and on average: more until the window is full.
    most = xp.minimum(window + _QUERIES, full)
    mean = (0.5 * most * (most + _QUERIES) + (full - most) * most) / full
    beyond = past + xp.where(window < queries, c["beyond"], 0.0)
    mean = beyond + xp.where(w["causal"] > 0, mean, most)
    most = beyond + most
    # Of a query and a key.
    flops = _by_size(xp, size, 256 * c["narrow"], 512.0, 768 * c["middle"], 1024 * c["wide"])
    pair_s = flops * device["processors"] / (device["peak_flops_per_s"] * c["efficiency"])
    other = xp.where(size == 128, 1.0, c["other"])
    cycle = CLOCK_HZ / device["clock_hz"]
    each_s = c["wave_s"] * cycle * other**2 + rows * (mean + c["extra"]) * pair_s
    waves = batch * heads * num_tiles / device["processors"]
    waves = waves + c["round"] * (xp.ceil(waves) - waves)
    core_s = waves * each_s + c["tail"] * rows * (most - mean) * pair_s
    # Queries, keys and values are read and written once more on their way to the cache.
    num_bytes = batch * queries * size * (heads + 2 * w["key_heads"]) * (2 + w["itemsize"])
    kernel_s = core_s + _memory_s(xp, c, device, num_bytes, 1.0)
    launch_s = c["launch_s"] * cycle * other * xp.where(queries > 1, 1.0, 1 - c["spared"])
    launch_s = launch_s + xp.where(w["key_heads"] > 1, 0.0, c["lone_s"])
    return binding(xp, launch_s, kernel_s, c["hidden"])


def all_reduce_s(xp: Any, c: Coefficients, device: Device, w: Mapping[str, Any]) -> Any:
    """Seconds of summing `num_bytes` over `num_devices`: all at once, or scattered and gathered.

    On the bus of a host every access to another device takes longer, and more than two of them
    share what joins its halves.

    Args:
        xp: NumPy or JAX's.
        c: launch_s, peer_s (each other device), hop_s (a second exchange), efficiency and reading
            (of the link, when scattered and when all at once); bus_peer_s, bus_efficiency and
            bus_reading, the same on a bus; crossed (what more than two devices take beyond that).
        device: link_bytes_per_s, one way; bus (1 where it is that of the host).
        w: num_devices, num_bytes.
    """
    bus, others = device["bus"] > 0, w["num_devices"] - 1
    link = device["link_bytes_per_s"]
    rate = link * xp.where(bus, c["bus_efficiency"], c["efficiency"])
    rate = rate / xp.where(bus & (w["num_devices"] > 2), 1 + c["crossed"], 1.0)
    at_once_s = others * w["num_bytes"] / (link * xp.where(bus, c["bus_reading"], c["reading"]))
    scattered_s = c["hop_s"] + 2 * others / w["num_devices"] * w["num_bytes"] / rate
    peers_s = others * xp.where(bus, c["bus_peer_s"], c["peer_s"])
    return c["launch_s"] + peers_s + xp.minimum(at_once_s, scattered_s)


def _waves_s(
    xp: Any, c: Coefficients, device: Device, w: Mapping[str, Any], tile: Any, num_tiles: Any
) -> Any:
    """Seconds of tiles of products that go over the processors in waves.

    `num_tiles` are those of their rows, for each column of tiles.
    """
    rows, columns, parts = tile
    m, n = w["m"], w["n"]
    depth = xp.ceil(w["k"] / parts / _DEPTH) * _DEPTH
    waves = xp.ceil(num_tiles * xp.ceil(n / columns) * parts / device["processors"])
    processor = device["peak_flops_per_s"] / device["processors"] * c["efficiency"]
    arithmetic_s = 2 * rows * columns * depth / processor
    feed = device["memory_bytes_per_s"] / device["processors"] * c["feed"]
    loads_s = (xp.minimum(rows, m) + xp.minimum(columns, n)) * depth * w["itemsize"] / feed
    slower, faster = xp.maximum(arithmetic_s, loads_s), xp.minimum(arithmetic_s, loads_s)
    waits_s = depth / _DEPTH * xp.where(w["itemsize"] < 1, 1.0, w["itemsize"]) * c["step_s"]
    return waves * (c["wave_s"] + xp.maximum(slower + 0.3 * faster, waits_s))


def _expert_loads(xp: Any, w: Mapping[str, Any]) -> Any:
    """Tokens of an expert at quantiles of their distribution. [quantile, row]

    Loads are drawn from a power law between 1 and most of the tokens, or where there are fewer
    tokens than experts over a range of 200, and scaled to their sum: so are those measured.
    """
    mean = w["tokens"] * w["chosen"] / w["experts"]
    scarce = w["tokens"] * w["chosen"] <= w["experts"]
    top = xp.where(scarce, 200.0, xp.maximum(0.8 * w["tokens"], 1.01))
    power = 1 - w["exponent"]
    power = xp.where(abs(power) < 1e-3, 1e-3, power)
    quantiles = (xp.arange(_LOADS).reshape(_LOADS, 1) + 0.5) / _LOADS
    loads = ((top**power - 1) * quantiles + 1) ** (1 / power)
    return mean * xp.where(w["exponent"] > 0, loads / loads.mean(0), 1.0)


def _fullest(xp: Any, c: Coefficients, w: Mapping[str, Any]) -> Any:
    """Load of the fullest of the devices over their mean: so many deviations of a sum above it."""
    loads = _expert_loads(xp, w)
    loads = loads / loads.mean(0)
    deviation = xp.sqrt(((loads - 1) ** 2).mean(0) * w["devices"] / w["experts"])
    above = c["skew"] * deviation * xp.sqrt(2 * xp.log(xp.maximum(w["devices"], 1.0)))
    return xp.minimum(1 + above, loads[-1])


def _by_size(xp: Any, size: Any, at_64: Any, at_128: Any, at_192: Any, at_256: Any) -> Any:
    """Between what is known of heads of four sizes, and beyond; narrower ones are padded."""
    low, middle, high = ((xp.maximum(size, 64) - begin) / 64 for begin in (64, 128, 192))
    between = xp.where(size < 192, at_128 + (at_192 - at_128) * middle, at_192)
    between = xp.where(size < 128, at_64 + (at_128 - at_64) * low, between)
    beyond = at_256 * xp.maximum(size, 256) / 256
    return xp.where(size > 192, at_192 + (beyond - at_192) * xp.minimum(high, 1.0), between)


def _memory_s(xp: Any, c: Coefficients, device: Device, num_bytes: Any, warm: Any) -> Any:
    """Seconds of traffic, of which a part may be found in cache."""
    kept = c["cache"] * device["cache_bytes"] * warm
    beyond = num_bytes - kept
    beyond = 0.5 * (beyond + xp.sqrt(beyond * beyond + 0.04 * kept * kept))
    slow_s = beyond / c["bandwidth"]
    return (num_bytes / c["cached"] + slow_s) / device["memory_bytes_per_s"]


def binding(xp: Any, one_s: Any, other_s: Any, sharpness: Any) -> Any:
    """The longer of two that overlap, rounded where they are alike: a norm."""
    longer, shorter = xp.maximum(one_s, other_s), xp.minimum(one_s, other_s)
    order = 1 + sharpness
    return longer * (1 + (shorter / longer) ** order) ** (1 / order)
