"""Messages to prompt text, by the template that a model brings along.

A template is a program from the internet. It runs in `minijinja` with a limit on the work it may do
(fuel), so a template that never ends, or grows without end, stops with an error after milliseconds.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, overload

from gimlax.errors import SpecError
from gimlax.models.checkpoint import read_json
from gimlax.models.extras import require
from gimlax.models.gguf import Gguf, read_gguf
from gimlax.models.tokenizer import token_id
from gimlax.models.tokenizer_json import token_names

FUEL = 100_000  # instructions of the template engine
FUEL_PER_MESSAGE = 1_000  # SmolLM2's template takes about 30
MAX_TEMPLATE_BYTES = 1 << 20
Source = str | os.PathLike[str] | Gguf


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


@overload
def load_chat_template(source: Source) -> ChatTemplate: ...
@overload
def load_chat_template(source: Source, *, needed: bool) -> ChatTemplate | None: ...
def load_chat_template(source: Source, *, needed: bool = True) -> ChatTemplate | None:
    """The chat template in a GGUF file or a folder of Hugging Face.

    Raises `SpecError` if there is none, unless none is `needed`, and if it is no text.
    """
    if not isinstance(source, Gguf) and Path(source).is_dir():
        return folder_template(Path(source), needed)
    gguf = source if isinstance(source, Gguf) else read_gguf(source)
    if "tokenizer.chat_template" not in gguf.metadata:
        if not needed:
            return None
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


def folder_template(folder: Path, needed: bool) -> ChatTemplate | None:
    """The template in a file of its own, or else the one among the tokenizer's values."""
    alone, beside = folder / "chat_template.jinja", folder / "tokenizer_config.json"
    if alone.is_file():
        path, source = alone, read_text(alone)
    else:
        path = beside
        source = (
            read_json(beside, "tokenizer config").get("chat_template") if beside.is_file() else None
        )
        if isinstance(source, list):  # several by name
            named = [of for of in source if isinstance(of, dict) and of.get("name") == "default"]
            source = named[0].get("template") if named else None
    if source is None:
        if not needed:
            return None
        raise SpecError(
            f"'{folder}' has no chat template ('chat_template.jinja', or 'chat_template' in "
            "tokenizer_config.json); give the prompt as raw text"
        )
    if not isinstance(source, str):
        raise SpecError(f"'{path}': its chat template is a {type(source).__name__}, not text")
    return ChatTemplate(source=source, origin=f"'{path}'", **token_names(folder))


def read_text(path: Path) -> str:
    """A template in a file of moderate size."""
    try:
        with path.open("rb") as file:
            text = file.read(MAX_TEMPLATE_BYTES + 1)
        if len(text) > MAX_TEMPLATE_BYTES:
            raise SpecError(f"chat template '{path}' has more than {MAX_TEMPLATE_BYTES} bytes")
        return text.decode()
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"chat template '{path}' cannot be read: {error}") from error
