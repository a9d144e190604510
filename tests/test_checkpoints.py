"""Parameters from files onto the meshes of a plan: they are those that `place` puts there."""

from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import gimlax as gx
from gimlax import models
from gimlax.graph import Part
from gimlax.lazy import LazyArray
from gimlax.models.opening import open_tree
from gimlax.runtime.stores import LocalStore
from tests.models.gguf_files import TINY, TINY_EXPERTS, llama_file
from tests.models.safetensors_files import config_of, tensors_file, tensors_of, write_folder

ROOT = Path(__file__).parent.parent
TOKENS = np.arange(6, dtype=np.int32).reshape(1, 6)


def compiled(config, cluster, *, cuts=2, meshes=None):
    """A decoder of these sizes in stages, planned from shapes."""
    traced = gx.trace(
        models.decoder_apply(config),
        models.abstract_params(config),
        models.abstract_cache(config, 1, 16),
        TOKENS,
        np.int32(0),
        carried={1: 1},
    )
    return gx.compile(gx.plan(traced, cluster, cuts=cuts, meshes=meshes), traced)


def logits(step, params, config):
    return np.asarray(step(params, models.init_cache(config, 1, 16), TOKENS, np.int32(0))[0])


def halves(tensors):
    """Two files of tensors, and the index of them."""
    names = sorted(tensors)
    files = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    shards = {file: {name: tensors[name] for name in of} for file, of in files.items()}
    return shards, {name: file for file, of in files.items() for name in of}


@pytest.mark.parametrize("config", [TINY, TINY_EXPERTS], ids=["llama", "mixtral"])
@pytest.mark.parametrize("kind", ["folder", "file", "gguf", "tree"])
def test_what_is_loaded_is_what_is_placed(tmp_path, cluster, plugin_name, config, kind):
    tensors, params = tensors_of(config)
    if kind == "gguf":
        path = tmp_path / "model.gguf"
        path.write_bytes(llama_file(config))
    elif kind == "tree":
        path = tmp_path / "tree.safetensors"
        flat = jax.tree_util.tree_leaves_with_path(params)
        named = {".".join(str(key.key) for key in of): np.asarray(leaf) for of, leaf in flat}
        path.write_bytes(tensors_file(named))
    else:
        shards, index = halves(tensors)
        one = {"model.safetensors": tensors}
        path = tmp_path / "model"
        write_folder(
            path,
            config_of(config),
            shards if kind == "folder" else one,
            index=index if kind == "folder" else None,
        )
        path = path / "model.safetensors" if kind == "file" else path
    with compiled(config, cluster) as step:
        loaded, placed = gx.load(path, plan=step), step.place(params)
        assert loaded.meshes == placed.meshes and len(loaded.meshes) == 2
        assert loaded.nbytes == placed.nbytes
        jax.tree.map(np.testing.assert_array_equal, gx.gather(loaded), gx.gather(placed))
        np.testing.assert_array_equal(logits(step, loaded, config), logits(step, placed, config))


def test_numbers_become_those_that_were_traced(tmp_path, cluster):
    config = TINY.with_dtype("bfloat16")
    tensors, params = tensors_of(TINY)
    path = write_folder(tmp_path / "m", config_of(TINY), {"model.safetensors": tensors})
    with compiled(config, cluster) as step:
        found = gx.gather(gx.load(path, plan=step))
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(a, np.asarray(b).astype(ml_dtypes.bfloat16)),
        found,
        params,
    )


def test_progress_counts_each_byte_of_the_files_once(tmp_path, cluster):
    tensors, _ = tensors_of(TINY)  # whose embedding two stages use
    path = write_folder(tmp_path / "m", config_of(TINY), {"model.safetensors": tensors})
    calls = []
    with compiled(TINY, cluster) as step:
        gx.load(path, plan=step, progress=lambda done, total: calls.append((done, total)))
    total_bytes = sum(values.nbytes for values in tensors.values())
    assert calls[-1] == (total_bytes, total_bytes)
    assert calls == sorted(calls)


def test_a_device_reads_what_it_holds():
    values, asked = np.arange(24, dtype=np.float32).reshape(4, 6), []

    def read(index):
        asked.append(values[index].shape)
        return values[index]

    mesh = Mesh(np.array(jax.devices("cpu")[:2]).reshape(1, 2), ("data", "model"))
    lazy = LazyArray(shape=values.shape, dtype=values.dtype, read=read)
    for spec, shapes in ((PartitionSpec("model"), [(2, 6)] * 2), (PartitionSpec(), [(4, 6)])):
        lying = NamedSharding(mesh, spec)
        (array,) = LocalStore().shelve(None, "m", [Part(0)], [lazy], [lying])
        np.testing.assert_array_equal(array, values)
        assert array.sharding == lying
        assert asked == shapes
        asked.clear()


def test_rows_of_a_lazy_array_are_read_alone():
    values, asked = np.arange(24).reshape(8, 3), []

    def read(index):
        asked.append(index)
        return values[index]

    rows = LazyArray(shape=values.shape, dtype=values.dtype, read=read)[2:7]
    assert (rows.shape, asked) == ((5, 3), [])
    np.testing.assert_array_equal(rows, values[2:7])
    np.testing.assert_array_equal(rows.read((slice(1, 4), slice(2))), values[3:6, :2])
    assert asked == [(slice(2, 7, 1),), (slice(3, 6, 1), slice(2))]


@pytest.mark.parametrize("rows", [3, slice(None, None, -1), slice(5, 1, -2), (slice(1), 2)])
def test_rows_of_a_lazy_array_are_slices_that_go_forwards(rows):
    lazy = LazyArray(shape=(8, 3), dtype=np.dtype(int), read=lambda index: np.ones((8, 3))[index])
    with pytest.raises(gx.SpecError, match=r"of shape \(8, 3\) was indexed by .*positive step"):
        lazy[rows]
    with pytest.raises(gx.SpecError, match=r"of shape \(\) has no rows"):
        LazyArray(shape=(), dtype=np.dtype(int), read=lambda index: np.int64(1))[:1]


def stack(params, x):
    return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, params["w"])[0] + params["bias"]


def test_stages_read_their_rows_of_what_is_stacked(tmp_path, cluster, plugin_name):
    rng = np.random.default_rng(0)
    params = {
        "w": rng.normal(size=(6, 8, 8)).astype(np.float32),
        "bias": np.ones(8, np.float32),
        "unused": np.arange(3, dtype=np.int32),
    }
    path = tmp_path / "tree.safetensors"
    path.write_bytes(tensors_file(params))
    x = np.ones((2, 8), np.float32)
    traced = gx.trace(stack, params, x)
    with gx.compile(gx.plan(traced, cluster, cuts=2), traced) as step:
        loaded = gx.load(path, plan=step)
        np.testing.assert_array_equal(step(loaded, x), step(step.place(params), x))
        jax.tree.map(np.testing.assert_array_equal, gx.gather(loaded), params)


def test_what_does_not_fit_is_listed_with_both_shapes(tmp_path, cluster):
    path = tmp_path / "tree.safetensors"
    params = {"w": np.ones((6, 8, 8), np.float32), "bias": np.ones(8, np.float32)}
    traced = gx.trace(stack, params, np.ones((2, 8), np.float32))
    path.write_bytes(
        tensors_file(
            {
                "w": np.ones((8, 8, 6), np.float32),
                "bias": np.ones(8, np.int32),
                "b": 0 * params["bias"],
            }
        )
    )
    step = gx.compile(gx.plan(traced, cluster, cuts=1), traced)
    with step, pytest.raises(gx.SpecError) as caught:
        gx.load(path, plan=step)
    for words in (
        "['w'] (w): model (6, 8, 8), file (8, 8, 6), transposed",
        "['bias'] (bias): model floats (8,), file int32 (8,)",
        "(b): model nothing, file (8,)",
    ):
        assert words in str(caught.value)


def test_whole_numbers_have_to_be_of_the_same_kind(tmp_path, cluster):
    path = tmp_path / "tree.safetensors"
    params = [np.ones(3, np.int32)]
    path.write_bytes(tensors_file({"0": np.ones(3, np.float32)}))
    traced = gx.trace(lambda params, x: params[0] + x, params, np.ones(3, np.int32))
    step = gx.compile(gx.plan(traced, cluster, cuts=1), traced)
    with step, pytest.raises(gx.SpecError, match=r"model int32 \(3,\), file float32 \(3,\)"):
        gx.load(path, plan=step)


def test_each_resident_argument_has_a_path(tmp_path, cluster):
    traced = gx.trace(
        lambda a, b, x: a[0] * x + b[0],
        [TOKENS * 1.0],
        [TOKENS * 1.0],
        TOKENS * 1.0,
        resident=(0, 1),
    )
    for name in "ab":
        (tmp_path / name).write_bytes(tensors_file({"0": np.full((1, 6), ord(name), np.float32)}))
    with gx.compile(gx.plan(traced, cluster, cuts=1), traced) as step:
        a, b = gx.load((tmp_path / "a", tmp_path / "b"), plan=step)
        np.testing.assert_array_equal(step(a, b, 1.0 * TOKENS), TOKENS * 97.0 + 98)
        with pytest.raises(gx.SpecError, match="given 1 paths, and there are 2 resident"):
            gx.load(tmp_path / "a", plan=step)


def test_a_plan_has_to_be_compiled(tmp_path, cluster):
    traced = gx.trace(lambda params, x: params[0] * x, [np.ones(3)], np.ones(3))
    with pytest.raises(gx.SpecError, match=r"given a Plan.*give what gimlax\.compile"):
        gx.load(tmp_path, plan=gx.plan(traced, cluster))


@pytest.mark.parametrize("format", ["safetensors", "orbax"])
@pytest.mark.parametrize("config", [TINY, TINY_EXPERTS], ids=["llama", "mixtral"])
def test_what_was_saved_of_some_meshes_is_loaded_onto_others(
    tmp_path, cluster, plugin_name, config, format
):
    path = tmp_path / "saved"
    params = models.init_params(config)
    with compiled(config, cluster) as step:
        placed = step.place(params)
        gx.save(path, placed, format=format)
        expected = logits(step, placed, config)
    calls = []
    with compiled(config, cluster, cuts=3, meshes=[plugin_name, "cpu:1", "cpu:0"]) as other:
        loaded = gx.load(path, plan=other, progress=lambda done, total: calls.append((done, total)))
        jax.tree.map(np.testing.assert_array_equal, gx.gather(loaded), params)
        np.testing.assert_allclose(logits(other, loaded, config), expected, atol=1e-5)
    assert calls == sorted(calls) and calls[-1][0] == calls[-1][1]
    with compiled(config, cluster, cuts=1, meshes=[plugin_name]) as alone:
        np.testing.assert_allclose(
            logits(alone, gx.load(path, plan=alone, verify=False), config), expected, atol=1e-5
        )


def test_rows_of_what_is_stacked_come_together_in_a_file(tmp_path, cluster, plugin_name):
    rng = np.random.default_rng(0)
    params = {"w": rng.normal(size=(6, 8, 8)).astype(np.float32), "bias": np.ones(8, np.float32)}
    x = np.ones((2, 8), np.float32)
    traced = gx.trace(stack, params, x)
    with gx.compile(gx.plan(traced, cluster, cuts=2), traced) as step:
        gx.save(tmp_path / "m", {"params": step.place(params), "step": 4})
        found = open_tree(tmp_path / "m", {"params": params, "step": np.int64(0)})
    jax.tree.map(np.testing.assert_array_equal, found, {"params": params, "step": 4})


def test_a_host_copy_of_what_is_saved_is_not_kept(tmp_path, vendors):
    array = jax.device_put(np.ones((256, 256), np.float32), jax.devices("zenith")[0])
    gx.save(tmp_path / "m", {"x": array})
    assert array._npy_value is None
    np.asarray(array)
    assert array._npy_value is not None  # or this test sees nothing
