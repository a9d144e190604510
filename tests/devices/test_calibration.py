"""Calibration files: what is written is read back."""

import jax

from gimlax.devices import Calibration, MeasuredLink, MeshCalibration, Sample, Slowdown


def sample(**changes):
    figures = {
        "kind": "matmul",
        "dims": (1, 8, 64, 64),
        "dtype": "float32",
        "layout": "mk,kn",
        "flops": 65536.0,
        "num_bytes": 20480.0,
        "seconds": 1.2e-6,
    }
    return Sample(**(figures | changes))


def calibration(**changes):
    mesh = MeshCalibration(
        mesh="a",
        device_kind="cpu",
        num_devices=1,
        dispatch_s=5e-6,
        probe_s=4e-3,
        samples=(sample(), sample(kind="elementwise", dims=(64,))),
    )
    figures = {
        "jax_version": jax.__version__,
        "processor": "some processor",
        "date": "2026-11-24",
        "meshes": (mesh,),
        "links": (
            MeasuredLink(
                source="a", target="b", latency_s=1e-5, bandwidth_bytes_per_s=8e9, aliases=True
            ),
        ),
        "slowdowns": (Slowdown(meshes=("a", "b"), factor=1.7),),
    }
    return Calibration(**(figures | changes))


def test_a_file_is_read_back_to_an_equal_calibration(tmp_path):
    written = calibration()
    written.save(tmp_path / "calibration.json")
    assert Calibration.load(tmp_path / "calibration.json") == written
