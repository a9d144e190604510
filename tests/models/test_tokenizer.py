"""Text to ids and back; streams that never print half a character."""

import hypothesis
import hypothesis.strategies as st
import pytest

from gimlax.errors import SpecError
from gimlax.models import load_tokenizer
from tests.models.gguf_files import (
    ARRAY,
    BOOL,
    I32,
    STRING,
    TYPE_F32,
    U32,
    VOCABULARY,
    field,
    file_bytes,
    tensor_info,
    tokenizer_fields,
)

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


@pytest.fixture(scope="module", name="load")
def load_fixture(tmp_path_factory):
    def load(**changes):
        path = tmp_path_factory.mktemp("tokenizer") / "model.gguf"
        path.write_bytes(file_bytes(tokenizer_fields(**changes)))
        return load_tokenizer(path)

    return load


@pytest.fixture(scope="module", name="tokenizer")
def tokenizer_fixture(load):
    return load()


@hypothesis.given(TEXT)
def test_any_text_comes_back(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids, skip_special=False) == text


@hypothesis.given(st.lists(st.integers(0, len(VOCABULARY) - 1), max_size=30))
def test_a_stream_gives_the_text_of_all_ids_in_whole_characters(tokenizer, ids):
    stream = tokenizer.stream()
    pieces = [stream.push(token_id) for token_id in ids]
    assert "".join(pieces) + stream.flush() == tokenizer.decode(ids)


def test_a_character_is_held_back_until_it_is_whole(tokenizer):
    ids = tokenizer.encode("é🎉!")
    assert len(ids) == 2 + 4 + 1
    stream = tokenizer.stream()
    assert [stream.push(token_id) for token_id in ids] == ["", "é", "", "", "", "🎉", "!"]
    assert stream.flush() == ""
    stream.push(ids[0])
    assert stream.flush() == "\N{REPLACEMENT CHARACTER}"


def test_merges_and_special_tokens_are_applied(tokenizer):
    names = [tokenizer.tokens[i] for i in tokenizer.encode("<|start|>hello world<tool>")]
    assert names == ["<|start|>", "hello", "Ġw", "o", "r", "l", "d", "<tool>"]
    ids = tokenizer.encode("<|start|>hello<tool>")
    assert tokenizer.decode(ids) == "hello<tool>"
    assert tokenizer.token_bytes(ids[0]) == b"<|start|>"
    assert (tokenizer.bos_id, tokenizer.bos_token) == (0, "<|start|>")
    assert (tokenizer.eos_ids, tokenizer.eos_token) == ((1,), "<|end|>")
    assert tokenizer.vocab_size == len(VOCABULARY)


def test_digits_are_split_as_the_file_says(load):
    merges = field("tokenizer.ggml.merges", ARRAY, (STRING, ["1 2"]))
    tokens = field("tokenizer.ggml.tokens", ARRAY, (STRING, [*VOCABULARY[:-1], "12", "<tool>"]))
    types = field("tokenizer.ggml.token_type", ARRAY, (I32, [3, 3] + [1] * (len(VOCABULARY) - 1)))
    no_bos = field("tokenizer.ggml.add_bos_token", BOOL, False)
    changes = {"merges": merges, "tokens": tokens, "token_type": types, "add_bos": no_bos}
    lengths = {}
    for pre in ("smollm", "gpt-2", "llama-bpe"):
        changed = load(pre=field("tokenizer.ggml.pre", STRING, pre), **changes)
        lengths[pre] = len(changed.encode("1212"))
    # each digit alone; all in one piece; in pieces of three, '121' and '2'
    assert lengths == {"smollm": 4, "gpt-2": 2, "llama-bpe": 3}


def test_bos_is_added_once_when_the_file_says_so(load):
    adding = load(add_bos=field("tokenizer.ggml.add_bos_token", BOOL, True))
    assert adding.encode("he")[0] == 0
    assert adding.encode("<|start|>he") == adding.encode("he")


def test_all_ends_are_known(load):
    changed = load(
        eot=field("tokenizer.ggml.eot_token_id", U32, 0),
        eom=field("tokenizer.ggml.eom_token_id", U32, 1),
    )
    assert changed.eos_ids == (1, 0)


REFUSED = {
    "model": (field("tokenizer.ggml.model", STRING, "llama"), "kind 'llama'"),
    "pre": (field("tokenizer.ggml.pre", STRING, "tekken"), "'tekken'; known are gpt-2, smollm"),
    "merges": (field("tokenizer.ggml.merges", ARRAY, (STRING, ["h nope"])), "merge 0 is 'h nope'"),
    "tokens": (
        field("tokenizer.ggml.tokens", ARRAY, (STRING, ["a", "a"])),
        "2 tokens, 1 of them different",
    ),
    "token_type": (field("tokenizer.ggml.token_type", ARRAY, (I32, [1])), "1 token types for"),
    "eos": (field("tokenizer.ggml.eos_token_id", U32, 9999), "eos_token_id' is 9999"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_tokenizer_that_cannot_be_used_is_refused(load, name):
    content, words = REFUSED[name]
    with pytest.raises(SpecError, match=words):
        load(**{name: content})


def test_a_file_without_vocabulary_is_refused(load):
    with pytest.raises(SpecError, match=r"no metadata key 'tokenizer.ggml.tokens'"):
        load(tokens=None)


def test_tokens_without_embedding_are_refused(tmp_path):
    path = tmp_path / "model.gguf"
    infos = [tensor_info("token_embd.weight", (4, 9), TYPE_F32, 0)]
    path.write_bytes(file_bytes(tokenizer_fields(), infos, bytes(4 * 9 * 4)))
    with pytest.raises(SpecError, match=rf"{len(VOCABULARY)} tokens, and embeddings of 9"):
        load_tokenizer(path)


def test_ids_and_texts_that_do_not_exist_are_refused(tokenizer):
    with pytest.raises(SpecError, match=f"token id {len(VOCABULARY)} is not"):
        tokenizer.decode([len(VOCABULARY)])
    with pytest.raises(SpecError, match=r"surrogate .* at character 1"):
        tokenizer.encode("a\ud800")
