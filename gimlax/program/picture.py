"""A timeline as a picture: a row for each mesh and link, a box for each span; SVG, of text alone.

Chosen over a plotting library because notebooks show SVG as it is, and it needs nothing installed.
"""

from collections.abc import Iterable
from html import escape
from typing import Protocol

WIDTH, ROW, LABELS, GAP = 960, 22, 150, 4  # pixels
THINNEST = 0.4  # pixels; spans that would be thinner and touch the last one are left out
COLOURS = ("#4269d0", "#efb118", "#ff725c", "#6cc5b0", "#3ca951", "#ff8ab7", "#a463f2", "#97bbf5")
NUM_TICKS = 6


class Timed(Protocol):
    """A span: where, what, and from when to when in seconds."""

    @property
    def mesh(self) -> str: ...
    @property
    def task(self) -> str: ...
    @property
    def start_s(self) -> float: ...
    @property
    def end_s(self) -> float: ...


def svg(spans: Iterable[Timed], tracks: tuple[str, ...]) -> str:
    """The spans of each track from left to right, each task in a colour of its own."""
    ordered = sorted(spans, key=lambda span: span.start_s)
    start_s = min((span.start_s for span in ordered), default=0.0)
    length_s = max((span.end_s for span in ordered), default=0.0) - start_s or 1.0
    tasks = dict.fromkeys(span.task for span in ordered)
    colours = {task: COLOURS[i % len(COLOURS)] for i, task in enumerate(tasks)}

    def at(time_s: float) -> float:
        return LABELS + (time_s - start_s) / length_s * (WIDTH - LABELS - 2 * GAP)

    height = ROW * (len(tracks) + 1) + GAP
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" '
        f'font-family="sans-serif" font-size="11">',
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
    ]
    for tick in range(NUM_TICKS + 1):
        time_s = start_s + length_s * tick / NUM_TICKS
        anchor = "end" if tick == NUM_TICKS else "middle" if tick else "start"
        parts.append(
            f'<line x1="{at(time_s):.1f}" x2="{at(time_s):.1f}" y1="0" y2="{height - ROW}" '
            f'stroke="#ddd"/><text x="{at(time_s):.1f}" y="{height - GAP}" text-anchor="{anchor}">'
            f"{(time_s - start_s) * 1e3:.4g} ms</text>"
        )
    for row, track in enumerate(tracks):
        top = row * ROW
        parts.append(f'<text x="{GAP}" y="{top + 15}">{escape(track)}</text>')
        last = -1.0
        for span in ordered:
            left, right = at(span.start_s), at(span.end_s)
            if span.mesh != track or (right - left < THINNEST and right - last < THINNEST):
                continue
            last = right
            took = f"{span.task}: {(span.end_s - span.start_s) * 1e3:.4g} ms"
            parts.append(
                f'<rect x="{left:.2f}" y="{top + GAP}" width="{max(right - left, THINNEST):.2f}" '
                f'height="{ROW - GAP}" fill="{colours[span.task]}"><title>{escape(took)}</title>'
                "</rect>"
            )
    return "\n".join([*parts, "</svg>"])
