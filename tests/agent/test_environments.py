"""Bundles in new environments that hold numpy and one runtime, and nothing of edgekit. They install from the index."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import agent_bundles as small
import numpy as np
import pytest
from pythons import interpreter

from edgekit.bundle import Bundle
from edgekit.devices.local import Local

pytestmark = pytest.mark.slow

FLOAT_TOLERANCE = 1e-4


def environment(folder: Path, version: str, *packages: str) -> Path:
    """A new virtual environment with those packages alone: its Python."""
    if (python := interpreter(version)) is None:
        pytest.skip(f"no Python {version} here")
    subprocess.run([python, "-m", "venv", str(folder)], check=True)
    own = folder / "bin" / "python"
    install(own, *packages)
    return own


def install(python: Path, *packages: str) -> None:
    pip = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-deps", *packages]
    installed = subprocess.run(pip, capture_output=True, text=True)
    if installed.returncode:
        pytest.skip(f"the package index did not serve {packages}: {installed.stderr.strip()[-300:]}")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / "cache"))


def all_commands(python: Path, bundle: Bundle, inputs: np.ndarray, folder: Path) -> np.ndarray:
    """`selftest`, `bench` and `run` of a copy of the file, somewhere else."""
    copy = folder / "copy.edge"
    shutil.copyfile(bundle.path, copy)
    np.save(folder / "in.npy", inputs)
    through = ["run", "--inputs=in.npy", "--outputs=out.npy"]
    for options in (["selftest"], ["bench", "--json"], ["cold"], ["memory"], ["layers", "--json"], ["state"], through):
        done = subprocess.run([str(python), "copy.edge", *options], capture_output=True, text=True, cwd=folder)
        assert done.returncode == 0, (options, done.stderr)
        seen = json.loads(done.stdout) if options[0] not in ("selftest", "run") else {}
        if options[0] == "bench":
            assert len(seen["samples_s"]) >= 64
        elif options[0] == "cold":
            assert seen["repeats"] == 5
        elif options[0] == "layers":
            assert seen["layers"] or seen["reason"]
    return np.load(folder / "out.npy")


def check_onnxruntime(python: Path, folder: Path) -> None:
    bundle, inputs = small.bundle(folder), small.samples(7, seed=2)
    seen = all_commands(python, bundle, inputs, folder)
    np.testing.assert_allclose(seen, small.expected(folder / "small.edge.onnx", inputs), atol=1e-5)


def refused(python: Path, bundle: Bundle) -> str:
    done = subprocess.run([str(python), str(bundle.path), "selftest"], capture_output=True, text=True)
    assert done.returncode == 6 and done.stdout == "", done
    return done.stderr


def test_numpy_and_onnxruntime_are_enough_and_needed(tmp_path: Path) -> None:
    python = environment(tmp_path / "env", "3.11", "numpy")
    assert "pip install onnxruntime" in refused(python, small.bundle(tmp_path))
    install(python, "onnxruntime", "flatbuffers", "protobuf", "packaging")
    check_onnxruntime(python, tmp_path)


@pytest.mark.parametrize(
    ("version", "packages"),
    [
        ("3.9", ("numpy==1.26.4", "onnxruntime==1.19.2")),
        ("3.10", ("numpy==2.2.6", "onnxruntime==1.23.2")),  # what a Jetson with JetPack 6 gets
        ("3.13", ("numpy", "onnxruntime")),
    ],
)
def test_onnxruntime_under_other_pythons(tmp_path: Path, version: str, packages: tuple[str, ...]) -> None:
    python = environment(tmp_path / "env", version, *packages)
    check_onnxruntime(python, tmp_path)
    info = Local(python).bench(small.bundle(tmp_path), min_seconds=0).info
    assert info["versions"]["python"].startswith(version)


def litert(role: str, work: Path) -> tuple[Bundle, np.ndarray]:
    """A LiteRT bundle, and samples."""
    from edgekit.backends import Job
    from edgekit.backends.litert import LiteRT
    from edgekit.testing.subjects import SIZE, bundled, host, quantized, small_network

    target, precision = host("litert"), "fp32" if role == "float" else "int8"
    (work / "build").mkdir(parents=True)
    model = small_network() if role == "float" else quantized(small_network(), work)
    samples = np.random.default_rng(0).normal(size=(4, 3, SIZE, SIZE)).astype(np.float32)
    job = Job(model, role, precision, target, target.backends["litert"], work / "build", (samples,))
    return bundled("litert", LiteRT().build(job), job, work / "lite.edge"), samples


@pytest.mark.parametrize("version", ["3.9", "3.11"])
def test_tflite_runtime_gives_what_ai_edge_litert_gives(tmp_path: Path, version: str) -> None:
    pytest.importorskip("ai_edge_litert")
    python = environment(tmp_path / "env", version, "numpy==1.26.4", "tflite-runtime==2.14.0")
    for role in ("float", "quantized"):
        bundle, samples = litert(role, tmp_path / role)
        seen = all_commands(python, bundle, samples, tmp_path / role)
        Local().run(bundle, tmp_path / role / "in.npy", tmp_path / role / "here.npz")
        with np.load(tmp_path / role / "here.npz") as here:
            expected = here[here.files[0]]
        if role == "float":
            np.testing.assert_allclose(seen, expected, atol=FLOAT_TOLERANCE)
        else:
            step = np.diff(np.unique(np.concatenate([seen.ravel(), expected.ravel()]))).min()
            assert np.abs(seen - expected).max() <= step * 1.01
    if version == "3.11":
        install(python, "--upgrade", "numpy>=2")
        assert "numpy<2" in refused(python, bundle)
