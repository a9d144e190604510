"""What a run of several requests amounts to, printed as a short table."""

from collections.abc import Sequence
from dataclasses import dataclass

from gimlax.program import Program, Timeline
from gimlax.serving.generate import Statistics
from gimlax.serving.usage import Busy, moved_bytes, shares
from gimlax.units import show_bytes, show_seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """Rates over all requests, shares of the busy time, and bytes that each new token moved."""

    num_requests: int
    total: Statistics
    busy: tuple[Busy, ...]
    moved_bytes_per_token: int

    @classmethod
    def of(
        cls, statistics: Sequence[Statistics], programs: Sequence[Program], timeline: Timeline
    ) -> "Summary":
        """Adds up the statistics of each request; one of the programs is that of decode."""
        return cls(
            num_requests=len(statistics),
            total=Statistics.total(statistics),
            busy=shares(programs, timeline),
            moved_bytes_per_token=sum(moved_bytes(p) for p in programs if p.phase == "decode"),
        )

    def __str__(self) -> str:
        total = self.total
        busy = [
            f"{busy.what} on {busy.mesh}" if busy.what != busy.mesh else f"transfer {busy.what}"
            for busy in self.busy
        ]
        rows = [
            ("prefill", f"{total.prefill_tokens_per_s:.1f} tokens/s", total.prefill_s),
            ("decode", f"{total.decode_tokens_per_s:.1f} tokens/s", total.decode_s),
            *(
                (what, f"{busy.share:.1%} of the busy time", busy.busy_s)
                for what, busy in zip(busy, self.busy, strict=True)
            ),
        ]
        width = max(len(what) for what, _, _ in rows)
        lines = [
            f"{what:{width}}  {value:24}  {show_seconds(seconds)}" for what, value, seconds in rows
        ]
        moved = f"{show_bytes(self.moved_bytes_per_token)} per token between meshes"
        return "\n".join([*lines, f"{'moved':{width}}  {moved}"])
