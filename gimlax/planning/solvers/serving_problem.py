"""Machines that serve a language model: what they take for a layer, and what a layout is.

Units: seconds, tokens, bytes.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from gimlax.planning.problem import Array

__all__ = ["Held", "ServingMachine", "ServingProblem"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ServingMachine:
    """One kind of machine.

    Attributes:
        count: how many there are.
        prompt_s: seconds of one layer by the tokens of a prompt batch. [row, (tokens, seconds)]
        decode_s: seconds of one layer by the decodes of a batch. [row, (batch, seconds)]
        kv_token_layers: tokens times layers that fit when it holds k layers. [k - 1]
        max_prompts: of one batch.
        max_decodes: of one batch, by layers held. [k - 1]
    """

    count: int
    prompt_s: Array
    decode_s: Array
    kv_token_layers: Array
    max_prompts: int
    max_decodes: Array

    @property
    def max_layers(self) -> int:
        """How many layers it can hold."""
        return len(self.kv_token_layers)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ServingProblem:
    """Machines, the links between them, and the requests.

    Attributes:
        machines: by kind.
        latency_s: of a hop from one machine to the next.
        token_s: seconds for which a token occupies a link.
        input_tokens, output_tokens: of a mean request.
        kv_share: how much of the room for keys and values is filled.
    """

    num_layers: int
    machines: Mapping[str, ServingMachine]
    latency_s: float
    token_s: float
    input_tokens: float
    output_tokens: float
    kv_share: float = 0.8


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Held:
    """A machine of a kind and the interval of layers that it holds."""

    first_layer: int
    num_layers: int
    machine: str

    @property
    def stop(self) -> int:
        """The first layer after these."""
        return self.first_layer + self.num_layers
