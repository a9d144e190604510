"""What a plan is to be good at, and what it must keep to.

Four terms are known of every layout, all per request and all better when smaller; a goal is one of
them or a weighted sum. Limits hold whatever the goal. Chosen over a function given by the caller:
of these terms the search knows enough to prove that nothing is better.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from gimlax.checking import mistakes_of_fields
from gimlax.errors import InternalError, SpecError

TERMS = ("latency", "throughput", "usd", "joules")
GOALS = (*TERMS, "weighted")
UNITS = {"latency": "s", "throughput": "s", "usd": "usd", "joules": "J", "weighted": ""}
TERM_OF_LIMIT = {
    "max_latency_s": "latency",
    "min_requests_per_s": "throughput",
    "max_usd_per_request": "usd",
    "max_joules_per_request": "joules",
}
_ROUNDING = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """The goal of a plan and its limits.

    Attributes:
        goal: 'latency': seconds of a request that runs alone, all stages and transfers of all
            phases, times their calls. 'throughput': seconds for which the busiest mesh, link or
            shared host is occupied by one request, which passes in flight approach at best (the
            period of the full pipeline). 'usd': all used meshes are paid for during one period.
            'joules': power at full load while a mesh is busy, idle power for the rest of the
            period. 'weighted': the sum of terms times `weights`.
        weights: of each term in a weighted goal, per second, per second of the period, per dollar
            and per joule: `{"latency": 1.0, "usd": 50.0}`. Kept as pairs.
        max_latency_s: of a request that runs alone.
        min_requests_per_s: what the full pipeline has to reach.
        max_usd_per_request, max_joules_per_request: of the full pipeline.

    Raises:
        SpecError: an unknown goal or term, weights without a weighted goal or the other way round,
            or a figure that no layout could meet; all of them at once.
    """

    goal: str = "latency"
    weights: tuple[tuple[str, float], ...] = ()
    max_latency_s: float | None = None
    min_requests_per_s: float | None = None
    max_usd_per_request: float | None = None
    max_joules_per_request: float | None = None

    def __post_init__(self) -> None:
        if isinstance(self.weights, Mapping):
            object.__setattr__(self, "weights", tuple(self.weights.items()))
        if wrong := mistakes_of_fields(self) or list(self._mistakes()):
            raise SpecError(f"objective: {'; '.join(wrong)}")
        object.__setattr__(self, "weights", tuple((term, float(w)) for term, w in self.weights))

    @property
    def unit(self) -> str:
        """Of the value of a plan: 's', 'usd', 'J', or empty for a weighted sum."""
        return UNITS[self.goal]

    @property
    def term_weights(self) -> tuple[float, ...]:
        """The weight of each of TERMS."""
        found = dict(self.weights) if self.goal == "weighted" else {self.goal: 1.0}
        return tuple(found.get(term, 0.0) for term in TERMS)

    @property
    def term_limits(self) -> tuple[float, ...]:
        """The largest value that each of TERMS may take, inf where it is free."""
        rate = self.min_requests_per_s
        most = (
            self.max_latency_s,
            None if rate is None else 1 / rate,
            self.max_usd_per_request,
            self.max_joules_per_request,
        )
        return tuple(math.inf if limit is None else limit for limit in most)

    @property
    def limits(self) -> tuple[tuple[str, float], ...]:
        """The limits that are given, by name."""
        given = [(name, getattr(self, name)) for name in TERM_OF_LIMIT]
        return tuple((name, limit) for name, limit in given if limit is not None)

    def most(self, term: str) -> float:
        """The largest value that one of TERMS may take."""
        return self.term_limits[TERMS.index(term)]

    def needs(self, term: str) -> bool:
        """Whether the goal or a limit looks at one of TERMS."""
        at = TERMS.index(term)
        return self.term_weights[at] > 0 or math.isfinite(self.term_limits[at])

    def value(self, terms: tuple[float, ...]) -> float:
        """What the goal says of a layout with these TERMS."""
        pairs = zip(self.term_weights, terms, strict=True)
        return sum(weight * term for weight, term in pairs if weight)

    def _mistakes(self) -> Iterator[str]:
        if self.goal not in GOALS:
            yield f"goal is {self.goal!r}; give one of {', '.join(map(repr, GOALS))}"
        elif self.goal == "weighted" and not self.weights:
            yield "goal is 'weighted', but weights is empty; give {'latency': ..., 'usd': ...}"
        elif self.goal != "weighted" and self.weights:
            yield f"weights are given, but goal is {self.goal!r}; give goal='weighted'"
        for term, weight in self.weights:
            if term not in TERMS:
                yield f"weights name {term!r}; give {', '.join(map(repr, TERMS))}"
            elif not 0 < weight < math.inf:
                yield f"the weight of {term!r} is {weight!r}; give a positive number"
        named = [term for term, _ in self.weights]
        if len(set(named)) < len(named):
            yield "weights name a term twice; give each once"
        for name, limit in self.limits:
            if not 0 < limit < math.inf:
                yield f"{name} is {limit!r}; give a positive number, or leave it out"


def certified(bound: float, value: float) -> float:
    """The bound of a value that was found, which rounding may put a little above it.

    Raises:
        InternalError: it lies further above, so one of the two is wrong.
    """
    if bound > value * (1 + _ROUNDING):
        raise InternalError(
            f"a plan of value {value!r} was found, and a bound says that none lies below {bound!r};"
            " please report this"
        )
    return min(bound, value)
