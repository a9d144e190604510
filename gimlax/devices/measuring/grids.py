"""Which sizes a calibration samples: thin to square, decode to prefill, cache to memory.

Chosen so that a model's sizes lie between samples in every dim, and that the whole takes less than
a minute a mesh on two cores.
"""

import itertools
from collections.abc import Iterator

from gimlax.devices.measuring.programs import (
    Microbenchmark,
    attention,
    chain,
    convolution,
    grouped,
    look_up,
    matmul,
    reduction,
    sweep,
)

__all__ = ["microbenchmarks"]

_DTYPES = ("float32", "bfloat16")
_LARGEST = 2**31  # multiply-adds of a product: about 10 ms on two cores


def microbenchmarks() -> tuple[Microbenchmark, ...]:
    """All of them, the classes one after another."""
    return (
        *_products(),
        *_batched_products(),
        *_grouped_products(),
        *_convolutions(),
        *_attentions(),
        *_chains(),
        *_reductions(),
        *_look_ups(),
        *(sweep(2**exponent) for exponent in range(23, 29)),
    )


def _products() -> Iterator[Microbenchmark]:
    depths = (64, 512, 2048)
    for dtype, layout in itertools.product(_DTYPES, ("mk,nk", "mk,kn")):
        for m, n, k in itertools.product((1, 2, 8, 32, 128, 512, 2048), depths, depths):
            if m * n * k <= _LARGEST:
                yield matmul((1, m, n, k), dtype, layout)
    for layout in ("mk,nk", "mk,kn"):
        for m, n, k in itertools.product((1, 8, 64, 512), (64, 512), (64, 512)):
            yield matmul((1, m, n, k), "bfloat16", layout, "bfloat16")


def _batched_products() -> Iterator[Microbenchmark]:
    for dtype in _DTYPES:
        for batch, m, n in (
            (8, 1, 256),
            (64, 1, 64),
            (8, 16, 16),
            (64, 16, 64),
            (8, 128, 128),
            (64, 64, 64),
            (8, 512, 512),
            (32, 256, 256),
        ):
            yield matmul((batch, m, n, 64), dtype, "bmk,bnk")
            yield matmul((batch, m, 64, n), dtype, "bmk,bkn")
            yield matmul((batch, m, n, 16), dtype, "bmk,bnk")


def _grouped_products() -> Iterator[Microbenchmark]:
    """Few experts and many, fewer rows than experts and many more, weights of 0.3 to 33 MB."""
    wide = ((64, 256), (512, 256), (256, 512), (1024, 512), (512, 1024))
    for dtype, (groups, rows_of, sizes) in itertools.product(
        _DTYPES,
        (
            (4, (1, 32, 512), wide),
            (8, (2, 64, 256), wide),
            (16, (8, 128), ((128, 128), (512, 256))),
            (64, (1, 32, 128), ((64, 256), (128, 256), (512, 256))),
        ),
    ):
        for rows, (n, k) in itertools.product(rows_of, sizes):
            # Every group may work on every row.
            if groups * rows * n * k <= _LARGEST // 4 and (
                n != k // 2 or groups > 16 or dtype == "float32"
            ):
                yield grouped((groups, rows, n, k), dtype)


def _convolutions() -> Iterator[Microbenchmark]:
    for dtype in _DTYPES:
        for batch, size, channels, filters, kernel, stride in (
            (1, 32, 3, 32, 3, 1),
            (8, 32, 3, 32, 3, 1),
            (1, 32, 64, 64, 3, 1),
            (8, 16, 64, 64, 3, 1),
            (8, 16, 64, 128, 3, 2),
            (8, 8, 128, 256, 3, 1),
            (32, 8, 128, 128, 3, 1),
            (2, 32, 32, 32, 5, 1),
            (8, 16, 64, 256, 1, 1),
            (8, 16, 256, 64, 1, 1),
            (1, 56, 3, 128, 8, 8),
            (6, 56, 3, 320, 8, 8),
            (16, 56, 3, 320, 8, 8),
            (4, 96, 3, 512, 16, 16),
        ):
            yield convolution(
                batch=batch,
                size=size,
                channels=channels,
                filters=filters,
                kernel=kernel,
                stride=stride,
                dtype=dtype,
            )


def _attentions() -> Iterator[Microbenchmark]:
    prefill = (
        (1, 8, 8, 64, 64, 64),
        (1, 8, 2, 64, 256, 64),
        (1, 8, 8, 256, 256, 64),
        (1, 8, 2, 256, 1024, 64),
        (4, 8, 8, 128, 128, 32),
        (4, 16, 4, 128, 512, 64),
        (2, 8, 8, 512, 512, 64),
        (8, 4, 4, 64, 64, 128),
    )
    decode = (
        (1, 8, 8, 1, 128, 64),
        (1, 8, 2, 1, 1024, 64),
        (1, 16, 16, 1, 512, 64),
        (8, 8, 8, 1, 128, 64),
        (8, 8, 2, 1, 512, 64),
        (8, 16, 4, 1, 1024, 64),
        (32, 8, 8, 1, 128, 32),
        (32, 8, 2, 1, 512, 64),
        (32, 4, 4, 1, 256, 128),
    )
    for dtype, dims in itertools.product(_DTYPES, (*prefill, *decode)):
        yield attention(dims, dtype)


def _chains() -> Iterator[Microbenchmark]:
    for exponent in range(10, 24, 2):
        for name in ("add", "scale", "polynomial", "exp", "tanh", "logistic", "cast"):
            yield chain(name, 2**exponent, "float32")
        for name in ("add", "tanh", "cast"):
            yield chain(name, 2**exponent, "bfloat16")
    for name in ("add", "scale"):  # results that an allocator takes fresh from the system
        for size in (2**23, 2**24):
            yield chain(name, size, "float32")


def _reductions() -> Iterator[Microbenchmark]:
    for rows, length in (
        (1, 4096),
        (16, 512),
        (128, 512),
        (1024, 64),
        (1024, 512),
        (8192, 64),
        (4096, 1024),
        (256, 4096),
    ):
        yield reduction(rows, length)
        yield reduction(rows, length, special=True)


def _look_ups() -> Iterator[Microbenchmark]:
    for dtype in _DTYPES:
        for rows, row in ((8, 512), (128, 512), (1024, 512), (4096, 512), (1024, 64)):
            yield look_up(rows, row, 8192, dtype)
