"""Factors between units, and how a quantity is printed: one place, so that tables agree.

Memory is printed in binary units (GiB), work and rates in decimal ones (GFLOP, GB/s), as is usual.
"""

import math

__all__ = [
    "GIB",
    "GIGA",
    "KIB",
    "KILO",
    "MEGA",
    "MIB",
    "TERA",
    "show_bytes",
    "show_bytes_per_s",
    "show_flops",
    "show_seconds",
]

KIB, MIB, GIB, TIB = 2**10, 2**20, 2**30, 2**40
KILO, MEGA, GIGA, TERA = 1e3, 1e6, 1e9, 1e12


def _show(value: float, steps: tuple[tuple[float, str], ...]) -> str:
    """`value` in the first of `steps` (factor, unit; largest first) that it reaches."""
    if not math.isfinite(value):
        return str(float(value))
    factor, unit = next((s for s in steps if abs(value) >= s[0] * 0.9995), steps[-1])
    scaled = value / factor
    digits = 0 if abs(scaled) >= 99.95 or scaled == 0 else 1 if abs(scaled) >= 9.995 else 2
    return f"{scaled:.{digits}f} {unit}"


def show_bytes(num_bytes: float) -> str:
    """Memory or a message: `1.50 GiB`, `12 B`."""
    steps = ((TIB, "TiB"), (GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB"))
    if abs(num_bytes) < KIB * 0.9995:
        return f"{num_bytes:.0f} B"
    return _show(num_bytes, steps)


def show_seconds(seconds: float) -> str:
    """A duration: `1.23 s`, `45.6 ms`, `7.00 us`."""
    return (
        "0 s"
        if seconds == 0
        else _show(seconds, ((1, "s"), (1e-3, "ms"), (1e-6, "us"), (1e-9, "ns")))
    )


def show_flops(flops: float) -> str:
    """Work: `989 TFLOP`."""
    return _show(
        flops, ((1e15, "PFLOP"), (TERA, "TFLOP"), (GIGA, "GFLOP"), (MEGA, "MFLOP"), (1, "FLOP"))
    )


def show_bytes_per_s(bytes_per_s: float) -> str:
    """A bandwidth: `3.35 TB/s`."""
    return _show(
        bytes_per_s, ((TERA, "TB/s"), (GIGA, "GB/s"), (MEGA, "MB/s"), (KILO, "KB/s"), (1, "B/s"))
    )
