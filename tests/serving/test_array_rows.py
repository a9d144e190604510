"""Rows of arrays out of files of every kind, and records back into arrays."""

import io
import json
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gimlax.errors import SpecError
from gimlax.serving import check_outputs, read_array_rows, records, write_arrays

ROWS = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)


def lines(tmp_path, *rows):
    path = tmp_path / "in.jsonl"
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return read_array_rows(path)


def test_an_array_and_arrays_by_name(tmp_path):
    np.save(tmp_path / "in.npy", ROWS.astype(np.float64))
    one = read_array_rows(tmp_path / "in.npy")
    assert (one.num_rows, one.faults) == (5, {})
    assert one.shapes(4) == jax.ShapeDtypeStruct((4, 3), np.float32)
    np.testing.assert_array_equal(one.group(3, 5, 4), [*ROWS[3:], *np.zeros((2, 3))])
    np.savez(tmp_path / "in.npz", x=ROWS, n=np.arange(5))
    several = read_array_rows(tmp_path / "in.npz")
    assert several.shapes(2)["n"] == jax.ShapeDtypeStruct((2,), np.int32)
    np.testing.assert_array_equal(several.group(1, 3, 2)["n"], [1, 2])


def test_lines_of_arrays_whose_bad_ones_are_zeros(tmp_path):
    found = lines(tmp_path, [1, 2], "{", [3, 0.5], [1], {"x": 1}, "", ["a", "b"], [1, [2]], [7, 8])
    np.testing.assert_array_equal(
        found.group(0, 8, 8), [[1, 2], [0, 0], [3, 0.5], *[[0, 0]] * 4, [7, 8]]
    )
    assert found.shapes(2).dtype == np.float32
    assert list(found.faults) == [1, 3, 4, 5, 6]
    assert "its shape is {row: (1,)}, not {row: (2,)}" in found.faults[3]
    assert "no array of numbers" in found.faults[6]


def test_a_line_that_is_no_utf8_is_a_fault_of_its_own(tmp_path):
    (tmp_path / "in.jsonl").write_bytes(b"[1]\n[2]\xff\n[3]")
    found = read_array_rows(tmp_path / "in.jsonl")
    assert found.faults == {1: "its byte 3 is 0xff, which is no UTF-8"}
    np.testing.assert_array_equal(found.group(0, 3, 3), [[1], [0], [3]])


def test_lines_of_objects_and_of_whole_numbers(tmp_path):
    found = lines(tmp_path, {"x": [1.5], "n": 2}, {"n": 3, "x": [2]}, {"x": [1.0], "n": 1 << 40})
    assert {k: v.dtype for k, v in found.shapes(1).items()} == {"x": np.float32, "n": np.int32}
    np.testing.assert_array_equal(found.group(0, 2, 2)["n"], [2, 3])
    assert found.faults == {2: "it has 1099511627776, no 32-bit integer"}


def test_integers_are_kept_or_are_a_fault_of_their_row(tmp_path, monkeypatch):
    least, most = -(1 << 31), (1 << 31) - 1
    values = [least, most, least - 1, most + 1, 0, -(1 << 63), (1 << 63) - 1, 1 << 40]
    bad = [2, 3, 5, 6, 7]
    kept = [0 if i in bad else value for i, value in enumerate(values)]
    np.save(tmp_path / "in.npy", np.array([[7, value] for value in values], ">i8"))
    np.savez(tmp_path / "in.npz", n=np.array(values), x=np.ones((8, 2)))
    for at_once in (1, 5, 1 << 20):
        monkeypatch.setattr("gimlax.serving.array_rows.CHECKED_AT_ONCE", at_once)
        of_lines = lines(tmp_path, *([7, value] for value in values))
        array = read_array_rows(tmp_path / "in.npy")
        several = read_array_rows(tmp_path / "in.npz")
        for found in (of_lines, array, several):
            assert sorted(found.faults) == bad
            assert found.faults[5] == f"it has {-(1 << 63)}, no 32-bit integer"
        np.testing.assert_array_equal(of_lines.group(0, 8, 8)[:, 1], kept)
        np.testing.assert_array_equal(array.group(0, 8, 9)[:8, 1], kept)
        np.testing.assert_array_equal(several.group(2, 8, 6)["n"], kept[2:])
    np.save(tmp_path / "in.npy", np.array([(1 << 32) - 1, 1 << 32], np.uint64))
    unsigned = read_array_rows(tmp_path / "in.npy")
    assert unsigned.shapes(1).dtype == np.uint32
    assert unsigned.faults == {1: "it has 4294967296, no 32-bit integer"}


@pytest.mark.parametrize("dtype", ["U3", "S3", "i4,f4", "complex64", "M8[s]", "longdouble", "V2"])
def test_what_is_no_real_number_is_refused(tmp_path, dtype):
    np.save(tmp_path / "in.npy", np.zeros(3, dtype))
    with pytest.raises(SpecError, match=r"not all of real numbers \(output: .*; save them as"):
        read_array_rows(tmp_path / "in.npy")


REFUSED = {
    "in.txt": (b"1", r"its ending is none of .npy, .npz, .jsonl"),
    "none.npy": (None, "No such file"),
    "bad.npy": (b"\x93NUMPY", r"bad.npy"),
    "bad.npz": (b"PK\x03\x04", r"bad.npz"),
    "text.jsonl": (b'"a"\n"b"', "none of its 2 rows is an array of numbers"),
    "empty.jsonl": (b"", "none of its 0 rows"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_files_that_have_no_rows_are_refused(tmp_path, name):
    content, words = REFUSED[name]
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(SpecError, match=words):
        read_array_rows(tmp_path / name)


def test_an_archive_that_unpacks_out_of_proportion_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "in.npz"
    np.savez_compressed(path, x=np.zeros((1 << 14, 64), np.float32))
    assert read_array_rows(path).num_rows == 1 << 14
    monkeypatch.setattr("gimlax.serving.array_rows.SMALL_BYTES", 1 << 20)
    with pytest.raises(SpecError, match=r"in.npz' unpacks to 4194432 bytes, more than 100 times"):
        read_array_rows(path)
    with zipfile.ZipFile(path, "a") as file:  # which says less than it has
        file.infolist()[0].file_size = file.infolist()[0].file_size // 100
        file.writestr("more", b"")
    with pytest.raises(SpecError, match=r"in.npz"):
        read_array_rows(path)
    np.savez(path, x=np.zeros((1 << 14, 64), np.float32))
    assert read_array_rows(path).num_rows == 1 << 14


def test_pickles_and_arrays_without_common_rows_are_refused(tmp_path):
    np.save(tmp_path / "in.npy", np.array([{}], object), allow_pickle=True)
    with pytest.raises(SpecError, match="Python objects"):
        read_array_rows(tmp_path / "in.npy")
    np.savez(tmp_path / "in.npz", x=ROWS, y=ROWS[:2])
    with pytest.raises(SpecError, match=r"no common number of rows \(x: \[5\], y: \[2\]\)"):
        read_array_rows(tmp_path / "in.npz")
    np.save(tmp_path / "in.npy", np.float32(1))
    with pytest.raises(SpecError, match=r"no common number of rows"):
        read_array_rows(tmp_path / "in.npy")


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int32", "uint8", "bool"])
def test_numbers_come_back_exactly_through_json(dtype):
    if dtype == "bool":
        made = ROWS > 0
    else:
        made = jnp.asarray(100 * ROWS).at[0, 0].set(jnp.inf if "float" in dtype else 1)
        made = made.astype(dtype)
    for tree in (made, {"file": made, "other": made[:, 0]}):
        shapes = jax.eval_shape(lambda tree=tree: tree)
        rows = [json.loads(json.dumps(row)) for row in records(tree, 4)]
        file = io.BytesIO()
        write_arrays(file, iter(rows), shapes, 4)
        file.seek(0)
        found = np.load(file)
        first = found["file"] if isinstance(tree, dict) else found
        np.testing.assert_array_equal(first, np.asarray(made[:4]).astype(first.dtype))
        assert first.dtype == ("float32" if dtype == "bfloat16" else dtype)


def test_json_that_others_read_has_null_for_what_it_cannot_say():
    made = {"x": jnp.array([[1.5, jnp.nan], [-jnp.inf, 2]], "bfloat16"), "n": jnp.arange(2)}
    assert list(records(made, 2, nulls=True)) == [
        {"output": {"x": [1.5, None], "n": 0}},
        {"output": {"x": [None, 2.0], "n": 1}},
    ]


def test_what_is_no_row_each_is_refused():
    with pytest.raises(SpecError, match=r"of 4 rows the function makes float32\[\]; needed"):
        check_outputs(jax.ShapeDtypeStruct((), "float32"), 4)
    with pytest.raises(SpecError, match=r"complex64\[4\]"):
        check_outputs({"a": jax.ShapeDtypeStruct((4,), "complex64")}, 4)
    check_outputs({"a": jax.ShapeDtypeStruct((4, 2), "bfloat16")}, 4)
