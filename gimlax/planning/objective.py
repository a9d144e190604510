"""What a plan is to be good at."""

from dataclasses import dataclass

from gimlax.errors import SpecError

GOALS = ("latency", "throughput")


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """The goal of a plan; both are seconds per request, and fewer are better.

    `latency` is the time of one request that runs alone: all stages and transfers of all phases,
    times their calls. `throughput` is the time for which the busiest mesh, link or shared host is
    occupied by one request, which is what passes in flight can at best approach.
    """

    goal: str = "latency"

    def __post_init__(self) -> None:
        if self.goal not in GOALS:
            raise SpecError(
                f"objective: goal is {self.goal!r}; give one of {', '.join(map(repr, GOALS))}"
            )
