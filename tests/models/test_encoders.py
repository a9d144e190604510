"""Whatever is wrong with a tokenizer.json, each of its readers says one error about the file."""

import json

import pytest

from gimlax import models
from gimlax.errors import SpecError
from gimlax.models import encoders
from tests.models import bert_folder, language_folder

pytest.importorskip("tokenizers")
ADDED = {"[UNK]": 0, "[CLS]": 1, "[SEP]": 2, "[PAD]": 3, "the": 4}


def special(name):
    return {"SpecialToken": {"id": name, "type_id": 0}}


def template(**special_tokens):
    """[CLS] in front of a text."""
    text = {"Sequence": {"id": "A", "type_id": 0}}
    return {
        "type": "TemplateProcessing",
        "single": [special("[CLS]"), text],
        "pair": [special("[CLS]"), text, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": special_tokens,
    }


def write(folder, **fields):
    """A folder with a tokenizer of WordPiece, some of whose fields are others."""
    folder.mkdir(exist_ok=True)
    model = {
        "type": "WordPiece",
        "unk_token": "[UNK]",
        "continuing_subword_prefix": "##",
        "max_input_chars_per_word": 100,
        "vocab": ADDED,
    }
    whole = {"version": "1.0", "added_tokens": [], "model": model, **fields}
    (folder / "tokenizer.json").write_text(json.dumps(whole))
    (folder / "tokenizer_config.json").write_text('{"pad_token": "[PAD]"}')
    return folder


def without_unknown():
    vocab = {name: place for name, place in ADDED.items() if name != "[UNK]"}
    return {"type": "WordPiece", "unk_token": "[UNK]", "vocab": vocab} | {
        "continuing_subword_prefix": "##",
        "max_input_chars_per_word": 100,
    }


READERS = {
    models.load_tokenizer: lambda of: of.encode("the cat"),
    models.load_prompt_tokenizer: lambda of: of.encode(["the cat"], length=6),
    models.load_wordpiece: lambda of: of.encode(["the cat"], max_tokens=6),
}
BAD = {
    "a special token that is not there": {"post_processor": template()},
    "a map of characters that is none": {
        "normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}
    },
    "no token for unknown words": {"model": without_unknown()},
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("load", READERS, ids=lambda load: load.__name__)
def test_what_the_package_raises_is_said_of_the_file(tmp_path, load, name):
    folder = write(tmp_path / "model", **BAD[name])
    with pytest.raises(SpecError, match=r"tokenizer.json' is no tokenizer that can be read: "):
        READERS[load](load(folder))


@pytest.mark.parametrize("load", READERS, ids=lambda load: load.__name__)
def test_files_without_end_are_refused(tmp_path, monkeypatch, load):
    folder = write(tmp_path / "model")
    load(folder)
    monkeypatch.setattr(encoders, "MAX_BYTES", 99)
    with pytest.raises(SpecError, match=r"tokenizer.json' has more than 99 bytes"):
        load(folder)


def test_faults_of_words_alone_are_said(tmp_path, monkeypatch):
    folder = bert_folder.write(tmp_path / "bert")
    (folder / "vocab.txt").write_bytes(b"[UNK]\n[CLS]\n[SEP]\n\xff")
    with pytest.raises(SpecError, match=r"vocab.txt' is no tokenizer that can be read"):
        models.load_wordpiece(folder)
    monkeypatch.setattr(encoders, "MAX_BYTES", 9)
    with pytest.raises(SpecError, match=r"vocab.txt' has more than 9 bytes"):
        models.load_wordpiece(folder)
    folder = language_folder.write(tmp_path / "model")
    (folder / "tokenizer.json").unlink()
    (folder / "merges.txt").write_text("a b\n" * 9)
    (folder / "vocab.json").write_text("{}")
    with pytest.raises(SpecError, match=r"merges.txt' has more than 9 bytes"):
        models.load_prompt_tokenizer(folder)


@pytest.mark.parametrize("load", READERS, ids=lambda load: load.__name__)
def test_all_ids_are_below_the_size_of_a_vocabulary(tmp_path, load):
    model = without_unknown() | {"vocab": ADDED | {"##x": 100_000}}
    assert load(write(tmp_path / "gap", model=model)).vocab_size == 100_001
    around = template(**{"[CLS]": {"id": "[CLS]", "ids": [70_000], "tokens": ["[CLS]"]}})
    assert load(write(tmp_path / "around", post_processor=around)).vocab_size == 70_001
