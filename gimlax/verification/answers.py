"""What a compiler said of one stage, wherever it was asked: in this process or in a child.

It is plain data that travels as JSON, and whoever reads it trusts nothing. Units: seconds, bytes of
one device, FLOPs of one device.
"""

import re
import time
from dataclasses import dataclass
from typing import Any

from gimlax import _jax
from gimlax.checking import mistakes_of_fields
from gimlax.errors import GimlaxError, SpecError
from gimlax.records import Amount, Count
from gimlax.verification.hlo import emitted

__all__ = ["ANSWER_VERSION", "Answer", "Compiled", "Emitted", "ask_compiler"]

ANSWER_VERSION = 1
_MOST_SAID = 2000
# How XLA says that memory is short: by a status code, and by a name of libtpu's.
_OUT_OF_MEMORY = re.compile(r"RESOURCE_EXHAUSTED|HbmOom|[Oo]ut of memory")


@dataclass(frozen=True, slots=True, kw_only=True)
class Emitted:
    """Collectives of one kind in one call: how many, and bytes as `partition.Collective` counts."""

    kind: str
    count: Count
    num_bytes: Count


@dataclass(frozen=True, slots=True, kw_only=True)
class Compiled:
    """What XLA says of a program that it compiled, for one device.

    Attributes:
        argument_bytes, output_bytes, alias_bytes, temp_bytes, code_bytes: of its memory analysis;
            `alias_bytes` are outputs that take the place of arguments.
        peak_bytes: the most at any time, as far as the backend tells.
        told_memory: whether it gave a memory analysis; all of it is 0 if not.
        flops, accessed_bytes: of its cost analysis, None where the backend gives none.
        collectives: what it sends to other devices.
    """

    argument_bytes: Count = 0
    output_bytes: Count = 0
    alias_bytes: Count = 0
    temp_bytes: Count = 0
    code_bytes: Count = 0
    peak_bytes: Count = 0
    told_memory: bool = True
    flops: Amount | None = None
    accessed_bytes: Amount | None = None
    collectives: tuple[Emitted, ...] = ()

    @property
    def needed_bytes(self) -> int:
        """Memory of a device while it runs, its program included.

        Some backends leave temporaries out of their peak, others leave them out beside it: the
        larger of both counts.
        """
        held = self.argument_bytes + self.output_bytes - self.alias_bytes + self.temp_bytes
        return max(self.peak_bytes, held) + self.code_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """`compiled`, or why not in `refusal`; `lacks_memory` says that memory was what was short.

    Raises:
        SpecError: it is both, or neither.
    """

    seconds: Amount
    compiled: Compiled | None = None
    refusal: str = ""
    lacks_memory: bool = False

    def __post_init__(self) -> None:
        wrong = mistakes_of_fields(self)
        if not wrong and (self.compiled is None) != bool(self.refusal):
            wrong = ["it has to be compiled, or to say why it is not"]
        if wrong:
            raise SpecError(f"answer: {'; '.join(wrong)}")


def ask_compiler(lower: Any) -> Answer:
    """Compiles what `lower()` gives and says what came of it; only bugs of ours are raised.

    Args:
        lower: returns what `jax.jit(...).lower(...)` does.
    """
    start_s = time.monotonic()
    try:
        compiled = lower().compile()
    except Exception as error:
        said = str(error) if isinstance(error, GimlaxError) else f"{type(error).__name__}: {error}"
        return Answer(
            seconds=time.monotonic() - start_s,
            refusal=said.strip()[:_MOST_SAID] or type(error).__name__,
            lacks_memory=bool(_OUT_OF_MEMORY.search(said)),
        )
    seconds = time.monotonic() - start_s
    try:
        memory = compiled.memory_analysis()
    except (NotImplementedError, RuntimeError):
        memory = None
    cost = _jax.cost_of(compiled)

    def of_memory(what: str) -> int:
        return max(0, int(getattr(memory, f"{what}_in_bytes", 0) or 0))

    def of_cost(what: str) -> float | None:
        found = cost.get(what)
        return float(found) if found is not None and 0 <= found < float("inf") else None

    return Answer(
        seconds=seconds,
        compiled=Compiled(
            argument_bytes=of_memory("argument_size"),
            output_bytes=of_memory("output_size"),
            alias_bytes=of_memory("alias_size"),
            temp_bytes=of_memory("temp_size"),
            code_bytes=of_memory("generated_code_size"),
            peak_bytes=of_memory("peak_memory"),
            told_memory=memory is not None,
            flops=of_cost("flops"),
            accessed_bytes=of_cost("bytes accessed"),
            collectives=tuple(
                Emitted(kind=kind, count=count, num_bytes=num_bytes)
                for kind, (count, num_bytes) in emitted(compiled.as_text() or "").items()
            ),
        ),
    )
