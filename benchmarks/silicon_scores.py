"""Errors of predicted times: relative ones, by group, and of the order of pairs."""

from typing import Any

import numpy as np
from silicon_rows import Rows

__all__ = ["WORK", "bare_s", "by_group", "ordered", "score"]

_NUM_PAIRS = 200_000


def score(rows: Rows, seconds: np.ndarray) -> dict[str, float]:
    """Median absolute relative error, its quartiles, and the share within a quarter."""
    error = np.abs(seconds / rows.seconds - 1)
    low, middle, high = np.percentile(error, [25, 50, 75])
    return {
        "median": float(middle),
        "lower_quartile": float(low),
        "upper_quartile": float(high),
        "within_quarter": float(np.mean(error < 0.25)),
    }


def by_group(rows: Rows, seconds: np.ndarray) -> dict[str, float]:
    """Median absolute relative error of each accelerator and dtype."""
    error = np.abs(seconds / rows.seconds - 1)
    group = np.char.add(np.char.add(rows.accelerator, " "), rows.dtype)
    return {str(each): float(np.median(error[group == each])) for each in np.unique(group)}


def ordered(rows: Rows, seconds: np.ndarray, apart: float = 1.0) -> float:
    """Of random pairs of one accelerator whose times differ by less than two, how many keep order.

    Args:
        rows: measured.
        seconds: predicted.
        apart: measured times differ by more than this factor; equal ones have no order.
    """
    generator = np.random.default_rng(0)
    right = wrong = 0
    for accelerator in np.unique(rows.accelerator):
        index = np.flatnonzero(rows.accelerator == accelerator)
        pairs = generator.choice(index, (_NUM_PAIRS, 2))
        distance = np.abs(np.log(rows.seconds[pairs[:, 0]] / rows.seconds[pairs[:, 1]]))
        pairs = pairs[(distance > np.log(apart)) & (distance < np.log(2))]
        measured = rows.seconds[pairs[:, 0]] < rows.seconds[pairs[:, 1]]
        same = measured == (seconds[pairs[:, 0]] < seconds[pairs[:, 1]])
        right, wrong = right + int(same.sum()), wrong + int((~same).sum())
    return right / max(right + wrong, 1)


def bare_s(name: str, rows: Rows) -> np.ndarray:
    """Seconds of the plain roofline."""
    flops, num_bytes = WORK[name](rows.work)
    if name == "all_reduce":
        return num_bytes / rows.device["link_bytes_per_s"]
    device = rows.device
    return np.maximum(flops / device["peak_flops_per_s"], num_bytes / device["memory_bytes_per_s"])


def _matmul(w: Any) -> tuple:
    m, n, k = w["m"], w["n"], w["k"]
    return 2 * m * n * k, (m * k + n * k) * w["itemsize"] + 2 * m * n


def _context(w: Any) -> tuple:
    queries, window = w["queries"], w["window"]
    seen = np.where((window > 0) & (window < queries), window, queries)
    pairs = queries * seen - 0.5 * seen * seen  # of a query and a key it sees
    heads = w["batch"] * w["heads"] * w["size"]
    num_bytes = (2 * heads + 2 * w["batch"] * w["key_heads"] * w["size"]) * queries * w["itemsize"]
    return 4 * heads * pairs, num_bytes


def _decode(w: Any) -> tuple:
    window, keys = w["window"], w["keys"]
    seen = np.where((window > 0) & (window < keys), window, keys)
    cache = 2 * w["batch"] * w["key_heads"] * w["size"] * seen
    return 4 * w["batch"] * w["heads"] * w["size"] * seen, cache * w["itemsize"]


def _experts(w: Any) -> tuple:
    local = w["experts"] / w["devices"]
    assigned = w["tokens"] * w["chosen"] / w["devices"]
    each = 3 * w["hidden"] * w["inner"]
    return 2 * assigned * each, np.minimum(local, np.maximum(assigned, 1)) * each * w["itemsize"]


def _all_reduce(w: Any) -> tuple:
    return 0.0, 2 * (w["num_devices"] - 1) / w["num_devices"] * w["num_bytes"]


WORK = {
    "matmul": _matmul,
    "context_attention": _context,
    "decode_attention": _decode,
    "experts": _experts,
    "all_reduce": _all_reduce,
}
