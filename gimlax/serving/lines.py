"""What each line of a batch asks, and the line that answers it.

Three formats: a prompt a line; JSON lines with a prompt or messages in each object; and the JSON
lines of OpenAI's batch interface, with their `custom_id`. A line that asks for what is not there is
a fault of that line alone, and no setting in it is passed over without a word.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from gimlax.errors import SpecError
from gimlax.serving.generate import Finish
from gimlax.serving.text_rows import check_utf8

CHAT, COMPLETION = "/v1/chat/completions", "/v1/completions"
# Settings of OpenAI's interface that change nothing here, and values of others that do not.
WITHOUT_EFFECT = {"model", "user", "metadata", "store", "service_tier", "safety_identifier"}
NEUTRAL = {
    "n": 1,
    "best_of": 1,
    "stream": False,
    "logprobs": False,
    "echo": False,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "logit_bias": {},
    "response_format": {"type": "text"},
    "tools": [],
}
# A row has to say that it wants so many tokens more than the others; all get its positions.
FAR, PLENTY = 16, 4096
SETTINGS = ("max_tokens", "temperature", "top_p", "seed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One row: a prompt that is continued, or messages that are answered.

    Attributes:
      settings: of `max_tokens`, `temperature`, `top_p` and `seed`, those that the row has.
      stop: texts that end an answer, and are not part of it.
      echo: what of the row its answer repeats.
    """

    prompt: str | None = None
    messages: tuple[Mapping[str, str], ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    stop: tuple[str, ...] = ()
    echo: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What a row came to."""

    text: str
    finish: Finish
    num_prompt_tokens: int
    num_new_tokens: int


class Format(Protocol):
    """A format of rows and answers; rows are numbered from 0."""

    def read(self, line: str) -> Asked:
        """What a line asks; raises `SpecError` for what it cannot."""
        ...

    def answer(self, index: int, asked: Asked, reply: Reply) -> dict[str, Any]:
        """The line that answers a row."""
        ...

    def fault(self, index: int, line: str, fault: str) -> dict[str, Any]:
        """The line that says why there is no answer."""
        ...

    def is_fault(self, row: Mapping[str, Any]) -> bool:
        """Whether a line is one of those."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class TextLines:
    """A prompt a line, blank ones too; `raw` prompts are continued as they are."""

    raw: bool = False

    def read(self, line: str) -> Asked:
        return Asked(prompt=line) if self.raw else Asked(messages=(said_by_user(line),))

    def answer(self, index: int, asked: Asked, reply: Reply) -> dict[str, Any]:
        return {
            "index": index,
            **asked.echo,
            "text": reply.text,
            "finish": finish_reason(reply.finish),
            "num_prompt_tokens": reply.num_prompt_tokens,
            "num_new_tokens": reply.num_new_tokens,
        }

    def fault(self, index: int, line: str, fault: str) -> dict[str, Any]:
        return {"index": index, "error": fault}

    def is_fault(self, row: Mapping[str, Any]) -> bool:
        return "error" in row


@dataclass(frozen=True, slots=True, kw_only=True)
class JsonLines(TextLines):
    """An object a line, with a prompt under the name `field`, or with `messages`; an `id` comes
    back with the answer."""

    field: str = "prompt"

    def read(self, line: str) -> Asked:
        row = an_object(line)
        echo = {"id": row["id"]} if "id" in row else {}
        if self.field in row:
            asked = TextLines(raw=self.raw).read(a_string(row, self.field))
            return Asked(prompt=asked.prompt, messages=asked.messages, echo=echo)
        if "messages" in row:
            return Asked(messages=messages_of(row), echo=echo)
        raise SpecError(f"it has neither {self.field!r} nor 'messages'")

    def fault(self, index: int, line: str, fault: str) -> dict[str, Any]:
        row = parsed(line)
        return {"index": index, **({"id": row["id"]} if "id" in row else {}), "error": fault}


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenAiLines:
    """OpenAI's batch lines: `custom_id`, `url` and a `body` for chat completions or completions.

    All answers of a job say that they were created at `created_s`, in seconds since 1970, so that
    a row which is made again is the same.
    """

    created_s: int

    def read(self, line: str) -> Asked:
        row = an_object(line)
        a_string(row, "custom_id")
        url, body = row.get("url"), row.get("body")
        if row.get("method", "POST") != "POST" or url not in (CHAT, COMPLETION):
            raise SpecError(
                f"it asks for {str(row.get('method'))[:20]} {str(url)[:80]}; there are POST {CHAT} "
                f"and {COMPLETION}"
            )
        if not isinstance(body, dict):
            raise SpecError("it has no object 'body'")
        body = {key: value for key, value in body.items() if value is not None}
        settings = {key: body.pop(key) for key in SETTINGS if key in body}
        if url == CHAT and "max_completion_tokens" in body:
            settings["max_tokens"] = body.pop("max_completion_tokens")
        check_numbers(settings)
        stop = body.pop("stop", ())
        stop = (stop,) if isinstance(stop, str) else stop
        if not isinstance(stop, list | tuple) or not all(isinstance(s, str) and s for s in stop):
            raise SpecError(f"'stop' is {repr(stop)[:80]}; give strings")
        wanted = "messages" if url == CHAT else "prompt"
        known = {*WITHOUT_EFFECT, wanted}
        odd = [key for key in body if key not in known and not _is_neutral(key, body[key])]
        if odd:
            raise SpecError(f"it asks for {', '.join(odd)[:200]}, which is not supported")
        return Asked(
            prompt=None if url == CHAT else a_string(body, "prompt"),
            messages=messages_of(body) if url == CHAT else (),
            settings=settings,
            stop=tuple(stop),
            echo={"custom_id": row["custom_id"], "model": body.get("model", "")},
        )

    def answer(self, index: int, asked: Asked, reply: Reply) -> dict[str, Any]:
        chat = asked.prompt is None
        said = {"message": {"role": "assistant", "content": reply.text}} if chat else {}
        choice = {
            "index": 0,
            **(said or {"text": reply.text}),
            "logprobs": None,
            "finish_reason": finish_reason(reply.finish),
        }
        body = {
            "id": f"{'chatcmpl' if chat else 'cmpl'}-{index}",
            "object": "chat.completion" if chat else "text_completion",
            "created": self.created_s,
            "model": asked.echo["model"],
            "choices": [choice],
            "usage": {
                "prompt_tokens": reply.num_prompt_tokens,
                "completion_tokens": reply.num_new_tokens,
                "total_tokens": reply.num_prompt_tokens + reply.num_new_tokens,
            },
        }
        return self._line(index, asked.echo["custom_id"], 200, body)

    def fault(self, index: int, line: str, fault: str) -> dict[str, Any]:
        error = {"message": fault, "type": "invalid_request_error", "param": None, "code": None}
        return self._line(index, parsed(line).get("custom_id"), 400, {"error": error})

    def is_fault(self, row: Mapping[str, Any]) -> bool:
        return row["response"]["status_code"] != 200

    def _line(self, index: int, custom_id: Any, status: int, body: Any) -> dict[str, Any]:
        return {
            "id": f"batch_req_{index}",
            "custom_id": custom_id,
            "response": {"status_code": status, "request_id": f"req_{index}", "body": body},
            "error": None,
        }


def read_all(format: Format, lines: Sequence[str]) -> list[Asked | SpecError]:
    """What each line asks, or what is wrong with it; a `custom_id` that was there before is."""
    found: list[Asked | SpecError] = []
    seen: dict[str, int] = {}
    for index, line in enumerate(lines):
        try:
            check_utf8(line)
            asked = format.read(line)
            name = asked.echo.get("custom_id")
            if name is not None and seen.setdefault(name, index) != index:
                raise SpecError(f"custom_id {name[:80]!r} is that of row {seen[name]}, too")
            found.append(asked)
        except SpecError as error:
            found.append(error)
    return found


def most_tokens(asked: Iterable[Asked | SpecError], usual: int) -> int:
    """The longest answer for which rows are given positions that others do not need.

    That is `PLENTY` tokens, or `FAR` times what the row in the middle wants.

    Args:
      asked: all rows of a file, so that its shards come to the same.
      usual: what a row wants that does not say.
    """
    rows = (row for row in asked if isinstance(row, Asked))
    wanted = sorted(row.settings.get("max_tokens", usual) for row in rows)
    return max(PLENTY, FAR * wanted[(len(wanted) - 1) // 2] if wanted else usual)


def is_openai(lines: Iterable[str]) -> bool:
    """Whether the first line that is an object looks like one of OpenAI's."""
    first = next((row for row in map(parsed, lines) if row), {})
    return "custom_id" in first and "body" in first


def up_to_stop(pieces: Iterable[str], stop: Sequence[str]) -> tuple[str, int | None]:
    """Text of the tokens up to where one of `stop` begins, and how many tokens that took.

    Args:
      pieces: text that each token adds.
      stop: texts that end an answer.

    Returns:
      The text, and the number of tokens until a stop was there; None if none came.
    """
    text = ""
    for number, piece in enumerate(pieces, 1):
        text += piece
        at = min((text.find(s) for s in stop if s in text), default=-1)
        if at >= 0:
            return text[:at], number
    return text, None


def _is_neutral(key: str, value: Any) -> bool:
    """Whether a setting is as if it were not there; 0 is not False, nor True 1."""
    ours = NEUTRAL.get(key)
    kinds = (int, float) if isinstance(ours, float) else (type(ours),)
    return key in NEUTRAL and type(value) in kinds and value == ours


def finish_reason(finish: Finish) -> str:
    """As OpenAI calls it."""
    return "stop" if finish is Finish.STOP else "length"


def said_by_user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def messages_of(row: Mapping[str, Any]) -> tuple[dict[str, str], ...]:
    """The messages of a row, whose contents are strings or lists of texts."""
    messages = row.get("messages")
    if not isinstance(messages, list) or not messages:
        raise SpecError("'messages' is no list of messages")
    found = []
    for number, message in enumerate(messages):
        if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
            raise SpecError(f"message {number} has no 'role' and 'content'")
        content = message["content"]
        if isinstance(content, list):
            parts = [part.get("text") for part in content if isinstance(part, dict)]
            texts = [part for part in parts if isinstance(part, str)]
            if len(texts) < len(content):
                raise SpecError(f"message {number} has content that is no text")
            content = "".join(texts)
        if not isinstance(message["role"], str) or not isinstance(content, str):
            raise SpecError(f"message {number}: 'role' and 'content' are not both strings")
        found.append({"role": message["role"], "content": content})
    return tuple(found)


def check_numbers(settings: Mapping[str, Any]) -> None:
    for key, value in settings.items():
        kinds = (int,) if key in ("max_tokens", "seed") else (int, float)
        if type(value) not in kinds:
            raise SpecError(f"{key!r} is {repr(value)[:80]}; give a number")


def a_string(row: Mapping[str, Any], key: str) -> str:
    if not isinstance(row.get(key), str):
        raise SpecError(f"{key!r} is {repr(row.get(key))[:80]}; give a string")
    return row[key]


def an_object(line: str) -> dict[str, Any]:
    try:
        row = json.loads(line, parse_constant=_a_number, parse_float=_a_number)
    except (ValueError, RecursionError) as error:
        raise SpecError(f"it is no JSON ({str(error)[:200]})") from error
    if not isinstance(row, dict):
        raise SpecError(f"it is a {type(row).__name__}, not an object")
    return row


def _a_number(text: str) -> float:
    """Which an answer can repeat; raises `ValueError` for NaN, infinity and 1e999."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:20]} is no finite number")
    return value


def parsed(line: str) -> dict[str, Any]:
    """The object in a line, empty if there is none."""
    try:
        return an_object(line)
    except SpecError:
        return {}
