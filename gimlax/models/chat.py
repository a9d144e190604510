"""Messages to prompt text, by the template that a model brings along.

A template is a program from the internet. It runs in `minijinja` with a limit on the work it may do
(fuel), so a template that never ends, or grows without end, stops with an error after milliseconds.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn

from gimlax.errors import SpecError
from gimlax.models.extras import require
from gimlax.models.gguf import Gguf, read_gguf
from gimlax.models.tokenizer import token_id

FUEL = 100_000  # instructions of the template engine
FUEL_PER_MESSAGE = 1_000  # SmolLM2's template takes about 30


def refuse(reason: str) -> NoReturn:
    """What templates call to turn messages down."""
    raise ValueError(reason)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatTemplate:
    """A template and the names it may use."""

    source: str
    origin: str  # where it came from, for messages
    bos_token: str = ""
    eos_token: str = ""

    def render(
        self, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool = True
    ) -> str:
        """The prompt for `messages`, each `{'role': ..., 'content': ...}`.

        Raises `SpecError` for messages that are not of this form or that the template turns down,
        for a template with a fault, and for one that runs out of fuel.
        """
        for index, message in enumerate(messages):
            for key in ("role", "content"):
                if not isinstance(message.get(key), str):
                    raise SpecError(
                        f"message {index}: '{key}' is {message.get(key)!r}; give a string"
                    )
        if not messages:
            raise SpecError("there are no messages; give at least one")
        minijinja = require("minijinja", "rendering a chat template")
        fuel = FUEL + FUEL_PER_MESSAGE * len(messages)
        environment = minijinja.Environment(
            fuel=fuel, trim_blocks=True, lstrip_blocks=True, debug=False
        )
        try:
            return environment.render_str(
                self.source,
                "chat_template",
                messages=[dict(message) for message in messages],
                add_generation_prompt=add_generation_prompt,
                bos_token=self.bos_token,
                eos_token=self.eos_token,
                raise_exception=refuse,
            )
        except minijinja.TemplateError as error:
            if error.kind == "OutOfFuel":
                raise SpecError(
                    f"chat template of {self.origin} did not end within {fuel} steps; "
                    "use the model without its template, or with another one"
                ) from error
            raise SpecError(f"chat template of {self.origin}: {error}") from error
        except ValueError as error:
            raise SpecError(
                f"chat template of {self.origin} turns these messages down: {error}"
            ) from error


def load_chat_template(source: str | os.PathLike[str] | Gguf) -> ChatTemplate:
    """The chat template in a GGUF file; raises `SpecError` if it has none."""
    gguf = source if isinstance(source, Gguf) else read_gguf(source)
    if "tokenizer.chat_template" not in gguf.metadata:
        raise SpecError(
            f"'{gguf.path}' has no chat template (metadata key 'tokenizer.chat_template'); "
            "give the prompt as raw text"
        )
    tokens = gguf.field("tokenizer.ggml.tokens", tuple, ())
    names = {
        name: token_id(gguf, f"tokenizer.ggml.{name}_token_id", len(tokens))
        for name in ("bos", "eos")
    }
    bos_token, eos_token = ("" if index is None else tokens[index] for index in names.values())
    return ChatTemplate(
        source=gguf.field("tokenizer.chat_template", str),
        origin=f"'{gguf.path}'",
        bos_token=bos_token,
        eos_token=eos_token,
    )
