"""`scripts/embed.py` embeds the lines of a file, and goes on where it was killed."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from gimlax.models import load_sentence_encoder
from gimlax.serving import digests_of
from tests.models import bert_folder

pytest.importorskip("tokenizers")
ROOT = Path(__file__).parents[2]
TEXTS = ["the cat sat", "", "a man eats food", "what is it ! " * 9, "the man sat", "where is food"]


def run(folder, *flags):
    return subprocess.run(
        [sys.executable, "scripts/embed.py", f"--model={folder}", "--batch=2", *flags],
        cwd=ROOT,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "JAX_PLATFORMS": "cpu",
            "XDG_CACHE_HOME": str(folder),
        },
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture(scope="module", name="folder")
def folder_fixture(tmp_path_factory):
    folder = bert_folder.write(tmp_path_factory.mktemp("model") / "encoder")
    (folder / "texts.txt").write_text("\n".join(TEXTS))
    lines = [json.dumps({"id": i, "body": text}) for i, text in enumerate(TEXTS)]
    (folder / "texts.jsonl").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module", name="expected")
def expected_fixture(folder):
    encoder = load_sentence_encoder(folder)
    rows = encoder.tokenizer.encode(TEXTS, max_tokens=encoder.max_tokens)
    tokens, mask = np.zeros((2, len(rows), encoder.max_tokens), np.int32)
    for i, row in enumerate(rows):
        tokens[i, : len(row)], mask[i, : len(row)] = row, 1
    return jax.jit(encoder.apply)(encoder.params, tokens, mask)


def test_texts_in_and_an_array_out(folder, expected, tmp_path):
    output = tmp_path / "out.npy"
    done = run(
        folder,
        f"--input={folder}/texts.txt",
        f"--output={output}",
        "--stages=2",
        "--meshes=cpu,cpu",
        "--check",
    )
    assert done.returncode == 0, done.stderr
    _, _, cosine = done.stdout.partition("cosine to the embeddings of the uncut model: ")
    assert float(cosine.split()[0]) > 0.99999
    np.testing.assert_allclose(np.load(output), expected, atol=2e-6)
    assert [path.name for path in tmp_path.iterdir()] == ["out.npy"]


def test_json_lines_in_and_out_from_where_it_was_killed(folder, expected, tmp_path):
    output = tmp_path / "out.jsonl"
    flags = ["--field=body", f"--input={folder}/texts.jsonl", f"--output={output}"]
    done = run(folder, *flags)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row["index"] for row in found] == list(range(len(TEXTS)))
    np.testing.assert_allclose([row["embedding"] for row in found], expected, atol=2e-6)

    head = {
        "input": hashlib.sha256((folder / "texts.jsonl").read_bytes()).hexdigest(),
        "field": "body",
        "model": str(folder.resolve()),
        "files": hashlib.sha256(json.dumps(digests_of(folder)).encode()).hexdigest(),
        "max_tokens": 12,
        "dtype": "float32",
        "width": 24,
    }
    kept = np.full((4, 24), 0.5, np.float32)  # of a run that was killed, and easy to know again
    rows = tmp_path / "out.jsonl.rows"
    rows.write_bytes(json.dumps(head, sort_keys=True).encode() + b"\n" + kept.tobytes() + b"half")
    done = run(folder, *flags)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line)["embedding"] for line in output.read_text().splitlines()]
    np.testing.assert_array_equal(np.float32(found[:4]), kept)
    np.testing.assert_allclose(found[4:], expected[4:], atol=2e-6)
    assert not rows.exists()
    rows.write_bytes(json.dumps(head | {"field": "text"}, sort_keys=True).encode() + b"\n")
    done = run(folder, *flags)
    assert done.returncode == 2 and "rows of another job" in done.stderr


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--input=none.txt", "--output=out.npy"], "none.txt"),
        (["--input=README.md", "--output=out.csv"], "its ending is none of .npy, .jsonl"),
        (["--input=README.md", "--output=none/out.npy"], "folder that exists"),
    ],
)
def test_faults_are_one_line(folder, flags, said):
    done = run(folder, *flags)
    assert done.returncode == 2
    assert said in done.stderr and "Traceback" not in done.stderr


def test_a_bad_line_is_named(folder, tmp_path):
    (tmp_path / "in.jsonl").write_text('{"text": "the cat"}\n{"text": 3}\n')
    done = run(folder, f"--input={tmp_path}/in.jsonl", f"--output={tmp_path}/out.npy")
    assert done.returncode == 2
    assert "line 2: 'text' is no string" in done.stderr
    (tmp_path / "in.txt").write_bytes(b"the cat\nthe \xff\n")
    done = run(folder, f"--input={tmp_path}/in.txt", f"--output={tmp_path}/out.npy")
    assert done.returncode == 2
    assert "in.txt', line 2: its byte 4 is 0xff, which is no UTF-8" in done.stderr
