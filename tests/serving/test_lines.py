"""What lines ask and what answers look like, format by format."""

import json

import pytest

from gimlax.errors import SpecError
from gimlax.serving import (
    Asked,
    Finish,
    JsonLines,
    OpenAiLines,
    Reply,
    TextLines,
    is_openai,
    most_tokens,
    read_all,
    read_lines,
    up_to_stop,
)

REPLY = Reply(text="é", finish=Finish.CONTEXT, num_prompt_tokens=3, num_new_tokens=2)
HELLO = {"role": "user", "content": "hello"}
OPENAI = OpenAiLines(created_s=1234)


def openai(url="/v1/chat/completions", method="POST", custom_id="a", **body):
    body = {"model": "m", "messages": [HELLO]} | body
    body = {key: value for key, value in body.items() if value != "absent"}
    return json.dumps({"custom_id": custom_id, "method": method, "url": url, "body": body})


def test_a_text_is_a_message_or_goes_on():
    assert TextLines().read("hello") == Asked(messages=(HELLO,))
    assert TextLines(raw=True).read("hello") == Asked(prompt="hello")
    row = TextLines().answer(7, Asked(), REPLY)
    assert row == {
        "index": 7,
        "text": "é",
        "finish": "length",
        "num_prompt_tokens": 3,
        "num_new_tokens": 2,
    }
    fault = TextLines().fault(7, "hello", "why")
    assert fault == {"index": 7, "error": "why"}
    assert [TextLines().is_fault(r) for r in (row, fault)] == [False, True]


def test_an_object_has_a_prompt_or_messages_and_its_id_comes_back():
    form = JsonLines(field="q")
    asked = form.read('{"q": "hello", "id": 3, "more": 1}')
    assert asked == Asked(messages=(HELLO,), echo={"id": 3})
    assert JsonLines(field="q", raw=True).read('{"q": "hello"}') == Asked(prompt="hello")
    assert form.read(json.dumps({"messages": [HELLO]})) == Asked(messages=(HELLO,))
    assert form.answer(7, asked, REPLY)["id"] == 3
    assert form.fault(7, '{"id": 3}', "why") == {"index": 7, "id": 3, "error": "why"}
    assert form.fault(7, "{", "why") == {"index": 7, "error": "why"}


def test_a_chat_of_openai():
    line = openai(max_completion_tokens=9, temperature=0.5, top_p=0.9, seed=4, stop="x", n=1)
    asked = OPENAI.read(line)
    assert asked == Asked(
        messages=(HELLO,),
        settings={"max_tokens": 9, "temperature": 0.5, "top_p": 0.9, "seed": 4},
        stop=("x",),
        echo={"custom_id": "a", "model": "m"},
    )
    row = OPENAI.answer(7, asked, REPLY)
    assert (row["custom_id"], row["error"], row["id"]) == ("a", None, "batch_req_7")
    assert row["response"]["status_code"] == 200
    assert row["response"]["body"] == {
        "id": "chatcmpl-7",
        "object": "chat.completion",
        "created": 1234,
        "model": "m",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "é"},
                "logprobs": None,
                "finish_reason": "length",
            }
        ],
        "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
    }
    fault = OPENAI.fault(7, line, "why")
    assert (fault["custom_id"], fault["response"]["status_code"]) == ("a", 400)
    assert fault["response"]["body"]["error"]["message"] == "why"
    assert [OPENAI.is_fault(r) for r in (row, fault)] == [False, True]


def test_a_completion_of_openai():
    asked = OPENAI.read(openai("/v1/completions", messages="absent", prompt="once", stop=None))
    assert (asked.prompt, asked.messages, asked.stop) == ("once", (), ())
    (choice,) = OPENAI.answer(0, asked, REPLY)["response"]["body"]["choices"]
    assert choice == {"index": 0, "text": "é", "logprobs": None, "finish_reason": "length"}


def test_settings_that_change_nothing_pass():
    OPENAI.read(openai(n=1, stream=False, logprobs=False, presence_penalty=0, tools=[]))
    OPENAI.read(openai(frequency_penalty=0.0, response_format={"type": "text"}, logit_bias={}))


def test_contents_may_be_lists_of_texts():
    parts = [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]
    asked = OPENAI.read(openai(messages=[{"role": "user", "content": parts}]))
    assert asked.messages == (HELLO,)


BAD = {
    "no JSON": ("{", "it is no JSON"),
    "deep": ("[" * 100000, "it is no JSON"),
    "a list": ("[]", "it is a list, not an object"),
    "no name": (openai(custom_id=None), "'custom_id' is None; give a string"),
    "url": (openai("/v1/embeddings"), "asks for POST /v1/embeddings; there are POST /v1/chat"),
    "method": (openai(method="GET"), "asks for GET /v1/chat/completions"),
    "body": ('{"custom_id": "a", "url": "/v1/completions"}', "it has no object 'body'"),
    "tools": (openai(tools=[{"type": "function"}]), "it asks for tools, which is not supported"),
    "logprobs of none": (openai(logprobs=0), "it asks for logprobs, which"),
    "n as a truth": (openai(n=True), "it asks for n, which"),
    "stream as a number": (openai(stream=0), "it asks for stream, which"),
    "penalty as a truth": (openai(presence_penalty=False), "it asks for presence_penalty, which"),
    "not a number": (openai(temperature=float("nan")), r"no JSON \(NaN is no finite number\)"),
    "too large": (openai()[:-1] + ', "id": 1e999}', r"no JSON \(1e999 is no finite number\)"),
    "several": (openai(n=2, logprobs=True), "it asks for n, logprobs, which"),
    "unknown": (openai(wibble=0), "it asks for wibble, which"),
    "number": (openai(temperature="hot"), "'temperature' is 'hot'; give a number"),
    "bool": (openai(max_tokens=True), "'max_tokens' is True; give a number"),
    "stop": (openai(stop=[""]), r"'stop' is \[''\]; give strings"),
    "no messages": (openai(messages=[]), "'messages' is no list of messages"),
    "no role": (openai(messages=[{"content": "x"}]), "message 0 has no 'role' and 'content'"),
    "image": (
        openai(messages=[HELLO, {"role": "user", "content": [{"type": "image_url"}]}]),
        "message 1 has content that is no text",
    ),
    "other content": (openai(messages=[{"role": "user", "content": 3}]), "not both strings"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_done_is_a_fault_of_its_row(name):
    line, words = BAD[name]
    with pytest.raises(SpecError, match=words):
        OPENAI.read(line)
    assert OPENAI.is_fault(OPENAI.fault(0, line, words))


def test_an_object_without_prompt_is_a_fault():
    with pytest.raises(SpecError, match="it has neither 'q' nor 'messages'"):
        JsonLines(field="q").read('{"prompt": "x"}')
    with pytest.raises(SpecError, match="'q' is 3; give a string"):
        JsonLines(field="q").read('{"q": 3}')


def test_a_custom_id_that_comes_again_is_a_fault():
    first, bad, again = read_all(OPENAI, [openai(), "{", openai()])
    assert isinstance(first, Asked) and isinstance(bad, SpecError)
    assert str(again) == "custom_id 'a' is that of row 0, too"


def test_bytes_that_are_no_utf8_are_a_fault_of_their_row(tmp_path):
    path = tmp_path / "in.txt"
    path.write_bytes("hello\nhé\udcff!\r\n\nworld\n".encode(errors="surrogateescape"))
    lines = read_lines(path)
    assert len(lines) == 4
    one, bad, *others = read_all(TextLines(), lines)
    assert [row.messages[0]["content"] for row in (one, *others)] == ["hello", "", "world"]
    assert str(bad) == "its byte 3 is 0xff, which is no UTF-8"
    with pytest.raises(SpecError, match="none"):
        read_lines(tmp_path / "none.txt")


def test_a_row_that_wants_far_more_than_the_others_is_known():
    def rows(*wanted):
        given = ({} if of is None else {"max_tokens": of} for of in wanted)
        return [Asked(prompt="", settings=of) for of in given]

    assert most_tokens(rows(None, None, 10**6), 64) == 4096
    assert most_tokens(rows(None, None, 10**6), 1000) == 16_000
    assert most_tokens([SpecError("bad"), *rows(10**6, 2000, 9)], 64) == 32_000
    assert most_tokens(rows(10**6), 64) == 16 * 10**6
    assert most_tokens([SpecError("bad")], 5000) == 5000


def test_openai_is_known_by_the_first_object():
    assert is_openai(["{", openai(), '{"prompt": "x"}'])
    assert not is_openai(['{"prompt": "x"}', openai()])
    assert not is_openai([])


def test_an_answer_ends_where_a_stop_begins():
    pieces = ["on", "e t", "wo", " three"]
    assert up_to_stop(pieces, ()) == ("one two three", None)
    assert up_to_stop(pieces, ("e tw",)) == ("on", 3)
    assert up_to_stop(pieces, ("three", "two")) == ("one ", 3)
    assert up_to_stop(pieces, ("four",)) == ("one two three", None)
