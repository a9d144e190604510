"""Fits the coefficients of the laws in `gimlax.planning.rates.kernels` to measured rows.

The loss is a smooth absolute error of the logarithm of the time, so a row of 5 µs counts as much as
one of 5 ms and an outlier no more than it must. Coefficients are fitted in their logarithms and
drawn weakly to where they begin, which keeps those that nothing determines at sensible values.
Where a law has tiles to choose from, the choice and the coefficients take turns, as in Lloyd's
algorithm.
"""

import dataclasses
import sys
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from silicon_rows import Rows

from gimlax.planning.rates import kernels
from gimlax.planning.rates.decodes import decode_attention_s
from gimlax.planning.rates.fitted import accelerators

__all__ = ["LAWS", "Coefficients", "Law", "count", "fit", "predict"]

# By class of kernel, name of the coefficient, and group: 'hopper/float8', 'hopper' or 'all'.
Coefficients = dict[str, dict[str, dict[str, float]]]

_ROUNDS, _STEPS, _STEP_SIZE = 60, 30, 0.03
_SMOOTH = 0.03  # relative error below which the loss is quadratic
_PULL = 3e-4
# What a coefficient depends on; APART is the architecture, with 4-bit formats for themselves.
DTYPE, APART, ARCHITECTURE, ALL = "dtype", "apart", "architecture", "all"
NONE = "none"  # rows that a coefficient does not concern


@dataclasses.dataclass(frozen=True, slots=True)
class But:
    """One value for `rest` (ALL, or NONE for none), and one for each of some groups."""

    rest: str
    groups: tuple[str, ...]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Law:
    """A law with where its coefficients begin and what each depends on."""

    seconds: Callable[..., Any]
    begin: Mapping[str, tuple[float, str | But]]
    tiles: tuple[tuple[int, int, int], ...] = ()


_SLOW_FLOAT8 = ("ada/float8", "blackwell_gddr/float8")  # of heads that are not of 128
_OWN_EXPERTS = ("ada", "ampere", "blackwell/float4", "blackwell_ultra/float4")
_OWN_MIDDLE = ("ada/bfloat16", "blackwell_gddr/bfloat16", *_SLOW_FLOAT8)
_OWN_NARROW = ("blackwell", "blackwell_gddr/bfloat16", "hopper", *_SLOW_FLOAT8)
LAWS = {
    "matmul": Law(
        seconds=kernels.matmul_s,
        tiles=kernels.MATMUL_TILES,
        begin={
            "launch_s": (3e-6, DTYPE),
            "efficiency": (0.85, DTYPE),
            "bandwidth": (0.85, But(ALL, ("xe2",))),
            "step_s": (5e-8, APART),
            "quantise": (2.0, DTYPE),
            "feed": (4.0, ALL),
            "wave_s": (0.5e-6, APART),
            "sharpness": (2.0, ALL),
            "sag": (0.1, ALL),
            "reduce_s": (0.5e-6, ALL),
            "cache": (0.1, But(ALL, ("ada", "blackwell_gddr", "xe2"))),
            "cached": (3.0, ALL),
            "hidden": (1.0, But(NONE, ("xe2",))),
        },
    ),
    "context_attention": Law(
        seconds=kernels.context_attention_s,
        begin={
            "launch_s": (10e-6, ARCHITECTURE),
            "other": (1.0, But(ALL, ("hopper", *_SLOW_FLOAT8))),
            "spared": (0.25, But(NONE, ("xe2",))),
            "lone_s": (5e-6, But(NONE, ("xe2",))),
            "efficiency": (0.6, DTYPE),
            "narrow": (1.2, But(ALL, _OWN_NARROW)),
            "middle": (1.0, But(ALL, _OWN_MIDDLE)),
            "wide": (1.0, But(ALL, _SLOW_FLOAT8)),
            "wave_s": (1e-6, But(ALL, ("blackwell", "hopper", *_SLOW_FLOAT8))),
            "extra": (30.0, But(ALL, ("ampere", "blackwell", "hopper"))),
            "round": (0.7, ALL),
            "tail": (0.5, But(ALL, ("xe2",))),
            "beyond": (30.0, But(ALL, ("blackwell/float8", "hopper/bfloat16", "hopper/float8"))),
            "least": (16.0, But(NONE, ("blackwell_gddr/bfloat16",))),
            "bandwidth": (0.8, But(ALL, ("ada", "blackwell_gddr"))),
            "cache": (0.3, But(ALL, ("ada", "blackwell_gddr"))),
            "cached": (4.0, ALL),
            "hidden": (1.0, But(NONE, ("xe2",))),
        },
    ),
    "decode_attention": Law(
        seconds=decode_attention_s,
        begin={
            "launch_s": (5e-6, ARCHITECTURE),
            "prepare_s": (1e-6, ALL),
            "lone_s": (5e-6, But(NONE, ("xe2",))),
            "convert_s": (3e-6, But(NONE, ("xe2",))),
            "wave_s": (6e-6, But(ALL, ("blackwell", "hopper/float8", "xe2"))),
            "step_s": (0.4e-6, But(ALL, ("ada/float8", "blackwell", "xe2"))),
            "crowd": (0.5, ALL),
            "alone_s": (1.5e-6, But(ALL, ("ada/float8",))),
            "pass_s": (2e-6, ALL),
            "loop_s": (2e-6, ALL),
            "merge_s": (4e-6, But(ALL, ("blackwell", "xe2"))),
            "alone_merge_s": (2e-6, ALL),
            "global_s": (3e-6, But(NONE, ("blackwell",))),
            "bandwidth": (0.85, But(ALL, ("ada", "xe2"))),
            "cache": (0.3, But(ALL, ("ada", "blackwell_gddr", "xe2"))),
            "cached": (4.0, ALL),
            "sharpness": (2.0, ALL),
        },
    ),
    "experts": Law(
        seconds=kernels.experts_s,
        tiles=kernels.EXPERT_TILES,
        begin={
            "launch_s": (30e-6, APART),
            "efficiency": (0.7, But(ALL, _OWN_EXPERTS)),
            "bandwidth": (0.8, ALL),
            "step_s": (5e-8, ALL),
            "permute": (1.0, But(ALL, ("blackwell",))),
            "feed": (4.0, ALL),
            "wave_s": (1e-6, ALL),
            "skew": (0.5, ALL),
            "sharpness": (2.0, ALL),
        },
    ),
    "all_reduce": Law(
        seconds=kernels.all_reduce_s,
        begin={
            "launch_s": (3e-6, ARCHITECTURE),
            "peer_s": (0.5e-6, ALL),
            "bus_peer_s": (3e-6, ALL),
            "hop_s": (5e-6, ALL),
            "efficiency": (0.8, ALL),
            "bus_efficiency": (0.6, ALL),
            "reading": (0.5, ALL),
            "bus_reading": (0.4, ALL),
            "crossed": (1.0, But(NONE, ("ada", "blackwell_gddr"))),
        },
    ),
}


def count(coefficients: Coefficients) -> int:
    """How many numbers were fitted."""
    return sum(len(groups) for law in coefficients.values() for groups in law.values())


def fit(name: str, rows: Rows, rounds: int = _ROUNDS) -> dict[str, dict[str, float]]:
    """Coefficients of one law by group, fitted to all of `rows`."""
    law = LAWS[name]
    groups, index = {}, {}
    for coefficient, (_, level) in law.begin.items():
        keys = _keys(rows, coefficient, level)
        groups[coefficient], index[coefficient] = np.unique(keys, return_inverse=True)
    begin = {
        c: jnp.full(len(groups[c]), np.log(value), jnp.float32)
        for c, (value, _) in law.begin.items()
    }
    data = jax.tree.map(
        lambda a: jnp.asarray(a, jnp.float32), (rows.work, rows.device, rows.seconds)
    )
    used = {c: jnp.asarray(names != NONE) for c, names in groups.items()}
    fitted = _descend(law, begin, jax.tree.map(jnp.asarray, index), used, data, rounds)
    return {
        c: {
            str(group): float(f"{np.exp(v):.4g}")
            for group, v in zip(groups[c], fitted[c])
            if group != NONE
        }
        for c in law.begin
    }


def predict(name: str, coefficients: Mapping[str, Mapping[str, float]], rows: Rows) -> np.ndarray:
    """Seconds of each row; groups that were not fitted do as cards like theirs do."""
    law = LAWS[name]
    values = {}
    for coefficient, (_, level) in law.begin.items():
        keys, inverse = np.unique(_keys(rows, coefficient, level), return_inverse=True)
        each = [_value(coefficients, coefficient, key) for key in keys]
        values[coefficient] = jnp.asarray(each, jnp.float32)[inverse]
    data = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), (rows.work, rows.device))
    if not law.tiles:
        return np.asarray(law.seconds(jnp, values, data[1], data[0]))
    return np.asarray(_best(law, values, *data)[0])


def _keys(rows: Rows, coefficient: str, level: str | But) -> np.ndarray:
    """Which group each row belongs to."""
    if isinstance(level, But):
        rest = np.full(len(rows), level.rest, object)
        keys = np.where(np.isin(rows.architecture, level.groups), rows.architecture, rest)
        return np.where(np.isin(rows.group, level.groups), rows.group, keys).astype(str)
    if level == ALL:
        return np.full(len(rows), ALL)
    if level == ARCHITECTURE:
        return rows.architecture
    if level == APART:
        return np.where(rows.dtype == "float4", rows.group, rows.architecture)
    if coefficient == "quantise":  # only where operands are brought to a shorter format
        return np.where(rows.dtype == "bfloat16", NONE, rows.group)
    return rows.group


def _value(law: Mapping[str, Mapping[str, float]], coefficient: str, key: str) -> float:
    """A coefficient of a group, or what cards alone make of those of other architectures.

    The mean (of logarithms) over architectures counts each by the inverse fourth power of the
    distance between cards, so that a device that is like a known one does as that one does.
    """
    known = law[coefficient]
    if key in known:
        return known[key]
    if key == NONE or not known:
        return 0.0
    architecture, _, dtype = key.partition("/")
    groups = {group for groups in law.values() for group in groups if group != ALL}
    others = sorted({group.partition("/")[0] for group in groups} - {architecture})
    values = [_own(known, other, dtype) for other in others]
    alike = [(other, value) for other, value in zip(others, values) if value]
    here = _card(architecture)
    away = [np.sum((_card(other) - here) ** 2) for other, _ in alike]
    logs = np.log([value for _, value in alike])
    return float(np.exp(np.average(logs, weights=(np.array(away) + 1e-3) ** -2)))


def _own(known: Mapping[str, float], architecture: str, dtype: str) -> float:
    """What an architecture uses, 0 where nothing was fitted for it."""
    groups = (f"{architecture}/{dtype}" if dtype else architecture, architecture, ALL)
    return next((known[group] for group in groups if group in known), 0.0)


def _card(architecture: str) -> np.ndarray:
    """Figures of the cards of an architecture, as logarithms."""
    cards = [
        each
        for each in accelerators().values()
        if architecture in (each.architecture, each.four_bit_architecture)
    ]
    figures = [
        (
            c.peak_flops_per_s["bfloat16"],
            c.peak_flops_per_s["bfloat16"] / c.processors,
            c.memory_bytes_per_s,
            c.cache_bytes / c.memory_bytes_per_s,
            c.link_bytes_per_s,
        )
        for c in cards
    ]
    return np.log(figures).mean(axis=0)


def _descend(law: Law, begin: Any, index: Any, used: Any, data: Any, rounds: int) -> Any:
    work, device, seconds = data
    schedule = optax.cosine_decay_schedule(_STEP_SIZE, rounds * _STEPS)
    optimiser = optax.adam(schedule)

    def values(logs: Any) -> Any:
        return {c: jnp.where(used[c], jnp.exp(logs[c]), 0.0)[index[c]] for c in logs}

    def loss(logs: Any, tile: Any) -> jax.Array:
        chosen = (tile,) if law.tiles else ()
        missed = jnp.log(law.seconds(jnp, values(logs), device, work, *chosen) / seconds)
        robust = jnp.mean(jnp.sqrt(missed * missed + _SMOOTH**2))
        away = sum(jnp.mean((logs[c] - begin[c]) ** 2) for c in logs)
        return robust + _PULL * away

    @jax.jit
    def turn(logs: Any, state: Any) -> tuple[Any, Any, jax.Array]:
        tile = _best(law, values(logs), work, device)[1] if law.tiles else None

        def step(carry: Any, _: None) -> tuple[Any, jax.Array]:
            logs, state = carry
            lost, slope = jax.value_and_grad(loss)(logs, tile)
            change, state = optimiser.update(slope, state, logs)
            return (optax.apply_updates(logs, change), state), lost

        (logs, state), lost = jax.lax.scan(step, (logs, state), None, length=_STEPS)
        return logs, state, lost[-1]

    logs, state = begin, optimiser.init(begin)
    for round_ in range(rounds):
        logs, state, lost = turn(logs, state)
        if sys.stderr.isatty():
            print(
                f"\r  round {round_ + 1}/{rounds}, loss {float(lost):.4f} ", end="", file=sys.stderr
            )

    return jax.tree.map(np.asarray, logs)


def _best(law: Law, values: Any, work: Any, device: Any) -> tuple[jax.Array, jax.Array]:
    """Seconds with the fastest tile, and that tile. [row], [3, row]"""
    num_rows = next(iter(work.values())).shape[0]

    def keep(best: Any, tile: jax.Array) -> tuple[Any, None]:
        seconds = law.seconds(jnp, values, device, work, tile)
        better = seconds < best[0]
        return (
            jnp.where(better, seconds, best[0]),
            jnp.where(better, tile[:, None], best[1]),
        ), None

    begin = (jnp.full(num_rows, jnp.inf), jnp.ones((3, num_rows)))
    return jax.lax.scan(keep, begin, jnp.asarray(law.tiles, jnp.float32))[0]
