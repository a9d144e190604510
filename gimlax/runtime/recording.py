"""Collects spans while passes run and hands them on as a `Timeline`; units: seconds."""

from gimlax.program import Span, Timeline


class Recording:
    """Spans since the recording began; `timeline` can be read at any time."""

    def __init__(self, start_s: float) -> None:
        self._start_s = start_s
        self._spans: list[Span] = []

    @property
    def timeline(self) -> Timeline:
        """What has ended so far, in the order of its beginning."""
        spans = sorted(self._spans, key=lambda span: (span.start_s, span.end_s))
        return Timeline(spans=tuple(spans))

    def add(self, track: str, task: str, start_s: float, end_s: float) -> None:
        """Adds a span, in the time of the clock; what began before the recording is cut short."""
        if end_s >= self._start_s:
            begun = max(start_s, self._start_s) - self._start_s
            self._spans.append(
                Span(mesh=track, task=task, start_s=begun, end_s=end_s - self._start_s)
            )
