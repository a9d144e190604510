"""Shares of time and bytes moved, from a program and a timeline made by hand."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import pytest

from gimlax.program import Program, Run, Span, Timeline, Transfer
from gimlax.serving import Request, Statistics, Summary, moved_bytes, shares


def program(phase, length):
    """Two stages; value 0 crosses from 'a' to 'b'."""
    avals = {0: jax.ShapeDtypeStruct((1, length, 8), jnp.bfloat16)}
    return Program(
        phase=phase,
        meshes=(
            ("a", (Run(stage=0, streamed=(), inputs=(), outputs=(0,)),)),
            ("b", (Run(stage=1, streamed=(), inputs=(0,), outputs=(1,)),)),
        ),
        links=((("a", "b"), (Transfer(values=(0,), source="a", target="b"),)),),
        outputs=(("b", 1),),
        placement=("a", "b"),
        segments=(("embed",), ("head",)),
        partition=types.SimpleNamespace(avals=avals),
    )


PREFILL, DECODE = program("prefill", 16), program("decode", 1)
TIMELINE = Timeline(
    spans=tuple(
        Span(mesh=mesh, task=task, start_s=start_s, end_s=start_s + length_s)
        for mesh, task, start_s, length_s in [
            ("a", "prefill: stage 0", 0.0, 2.0),
            ("a -> b", "prefill: a -> b", 2.0, 0.5),
            ("b", "prefill: stage 1", 3.0, 1.0),
            ("a", "decode: stage 0", 4.0, 0.25),
            ("b", "decode: stage 1", 5.0, 0.25),
        ]
    )
)


def test_busy_time_is_shared_out_over_stages_and_links():
    found = shares([PREFILL, DECODE], TIMELINE)
    assert [(b.what, b.mesh, b.busy_s) for b in found] == [
        ("stage 0", "a", 2.25),
        ("stage 1", "b", 1.25),
        ("a -> b", "a -> b", 0.5),
    ]
    assert sum(b.share for b in found) == pytest.approx(1)


def test_stages_are_listed_by_number_whatever_their_mesh():
    runs = [Run(stage=n, streamed=(), inputs=(), outputs=()) for n in range(11)]
    to_and_fro = dataclasses.replace(
        DECODE, meshes=(("a", tuple(runs[::2])), ("b", tuple(runs[1::2])))
    )
    found = [b.what for b in shares([to_and_fro], TIMELINE)]
    assert found == [*(f"stage {n}" for n in range(11)), "a -> b"]


def test_nothing_measured_has_no_share():
    assert {b.share for b in shares([PREFILL], Timeline(spans=()))} == {0.0}


def test_moved_bytes_follow_from_the_shapes_that_cross():
    assert (moved_bytes(PREFILL), moved_bytes(DECODE)) == (16 * 8 * 2, 8 * 2)


def test_a_summary_says_rates_shares_and_bytes():
    statistics = Statistics(num_prompt_tokens=12, num_decoded_tokens=4, prefill_s=3.0, decode_s=2.0)
    summary = Summary.of([statistics, statistics], [PREFILL, DECODE], TIMELINE)
    text = str(summary)
    for expected in ("4.0 tokens/s", "2.0 tokens/s", "stage 0 on a", "56.2%", "16 B per token"):
        assert expected in text
    assert summary.num_requests == 2
    assert Statistics.of(Request(prompt=(1,)), []).decode_s == 0
