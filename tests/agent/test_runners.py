"""Every runner with a real model of its runtime; what needs hardware that is absent, up to where it is missed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import agent_bundles as small
import numpy as np
import pytest

from edgekit.agent.failures import MISSING_RUNTIME, Failure
from edgekit.agent.infer import make_runner
from edgekit.bundle import Bundle, TensorEntry, open_bundle, write_bundle


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / "cache"))


def ran(bundle: Bundle, inputs: np.ndarray, folder: Path, *options: str) -> tuple[np.ndarray, dict]:
    np.save(folder / "in.npy", inputs)
    command = [sys.executable, str(bundle.path), "run", f"--inputs={folder}/in.npy", f"--outputs={folder}/out.npy"]
    done = subprocess.run([*command, *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return np.load(folder / "out.npy"), json.loads(done.stdout)


def openvino_bundle(folder: Path, hints: dict[str, str]) -> tuple[Bundle, Path]:
    ov = pytest.importorskip("openvino")
    file = small.model(folder / "m.onnx")
    ov.save_model(ov.convert_model(file), folder / "model.xml", compress_to_fp16=False)
    files = {"model.xml": folder / "model.xml", "model.bin": folder / "model.bin"}
    manifest = small.manifest(backend="openvino", entry="model.xml", runner={"device": "CPU", "hints": hints})
    golden = small.samples(3)
    bundle = write_bundle(folder / "ov.edge", manifest, files, [golden], [small.expected(file, golden)])
    return bundle, file


@pytest.mark.parametrize("batch", ["1", "8"])
def test_openvino_in_any_batch(tmp_path: Path, batch: str) -> None:
    bundle, file = openvino_bundle(tmp_path, {"INFERENCE_PRECISION_HINT": "f32"})
    inputs = small.samples(11, seed=4)
    outputs, info = ran(bundle, inputs, tmp_path, f"--batch={batch}", "--threads=2")
    np.testing.assert_allclose(outputs, small.expected(file, inputs), atol=1e-5)
    assert info["batch"] == int(batch) and "openvino" in info["versions"]


def test_openvino_sees_what_is_written_to_the_same_array(tmp_path: Path) -> None:
    """One that it takes as it is, one that must be copied, and another one in between."""
    bundle, _ = openvino_bundle(tmp_path, {"INFERENCE_PRECISION_HINT": "f32"})
    runner = make_runner(tmp_path, bundle.manifest.model_dump(), 1, 1)
    images = small.samples(4)
    own, wide = images[:1].copy(), np.zeros((1, 1, 8, 16), np.float32)
    narrow = wide[..., ::2]
    assert not narrow.flags["C_CONTIGUOUS"]
    for image, place in zip(np.repeat(images, 3, axis=0), [own, own, narrow] * 4, strict=True):
        place[...] = image
        (seen,) = runner.infer([place])
        (expected,) = make_runner(tmp_path, bundle.manifest.model_dump(), 1, 1).infer([image[None].copy()])
        np.testing.assert_array_equal(seen, expected)


def test_openvino_takes_its_hints_from_the_manifest(tmp_path: Path) -> None:
    bundle, _ = openvino_bundle(tmp_path, {"INFERENCE_PRECISION_HINT": "f32", "NO_SUCH_HINT": "1"})
    done = subprocess.run([sys.executable, str(bundle.path), "selftest"], capture_output=True, text=True)
    assert done.returncode == 2 and "NO_SUCH_HINT" in done.stderr


def test_threads_are_given_to_the_runtime(tmp_path: Path) -> None:
    file = small.model(tmp_path / "model.onnx")
    runner = make_runner(tmp_path, small.manifest().model_dump(mode="json"), 3, 1)
    assert runner.session.get_session_options().intra_op_num_threads == 3
    np.testing.assert_allclose(runner.infer([small.samples(2)])[0], small.expected(file, small.samples(2)), atol=1e-5)


@pytest.mark.slow
def test_litert_takes_a_batch_sample_by_sample(tmp_path: Path) -> None:
    pytest.importorskip("ai_edge_litert")
    from edgekit.backends import Job
    from edgekit.backends.litert import LiteRT
    from edgekit.graph.execute import run_onnx
    from edgekit.testing.subjects import SIZE, bundled, host, small_network

    target, samples = host("litert"), np.random.default_rng(0).normal(size=(4, 3, SIZE, SIZE)).astype(np.float32)
    (tmp_path / "work").mkdir()
    job = Job(small_network(), "float", "fp32", target, target.backends["litert"], tmp_path / "work", (samples,))
    bundle = bundled("litert", LiteRT().build(job), job, tmp_path / "lite.edge")
    outputs, info = ran(bundle, samples, tmp_path, "--batch=3", "--threads=2")
    np.testing.assert_allclose(outputs, run_onnx(job.model.proto, [samples])[0], atol=1e-4)
    assert "ai-edge-litert" in info["versions"]


def test_litert_refuses_the_package_that_the_bundle_was_found_wrong_for(tmp_path: Path) -> None:
    pytest.importorskip("ai_edge_litert")
    manifest = {"entry": "model.tflite", "runner": {"refused": {"ai-edge-litert": "the MUL that makes 'x'"}}}
    with pytest.raises(Failure, match=r"ai-edge-litert .* would run this model wrongly: the MUL that makes 'x'"):
        make_runner(tmp_path, {"backend": "litert", **manifest}, 1, 1)


def tensorrt_manifest(package: str) -> dict:
    entry = (TensorEntry(name="image", dtype="float32", shape=("batch", 1, 8, 8)),)
    runner = {"package": package, "shapes": {"image": [[1, 1, 8, 8], [1, 1, 8, 8], [8, 1, 8, 8]]}}
    return small.manifest(backend="tensorrt", status="emitted", inputs=entry, runner=runner).model_dump(mode="json")


def test_tensorrt_that_is_missing_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(Failure, match=r"needs no_such_tensorrt .*pip install no_such_tensorrt") as caught:
        make_runner(tmp_path, tensorrt_manifest("no_such_tensorrt"), 1, 1)
    assert caught.value.code == MISSING_RUNTIME


def test_tensorrt_without_a_gpu_fails_as_a_device(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    if Path("/dev/nvidia0").exists():
        pytest.skip("there is a GPU here")
    small.model(tmp_path / "model.onnx")
    with pytest.raises(Failure) as caught:
        make_runner(tmp_path, tensorrt_manifest("tensorrt_rtx"), 1, 1)
    assert caught.value.code in (5, MISSING_RUNTIME)
    assert "CUDA" in str(caught.value)


def test_tensorrt_builds_the_emitted_graph(tmp_path: Path) -> None:
    """The agent's own builder, with the package that can build for a GPU that is not here."""
    trt = pytest.importorskip("tensorrt_rtx")
    from edgekit.agent.runners.tensorrt_build import build

    graph = small.model(tmp_path / "model.onnx").read_bytes()
    shapes = tensorrt_manifest("tensorrt_rtx")["runner"]["shapes"]
    log = trt.Logger(trt.Logger.ERROR)
    assert len(bytes(build(trt, log, graph, shapes))) > 1000
    with pytest.raises(Failure, match="cannot parse the model"):
        build(trt, log, b"rubbish", shapes)


FULL = """
import resource, sys
from pathlib import Path
from edgekit.agent.runners import tensorrt_build
class trt:
    __version__ = "11.1"
tensorrt_build.build = lambda *_: b"x" * 100_000
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
tensorrt_build.engine(trt, None, "gpu", Path(sys.argv[1]), {"runner": {"shapes": {}}})
"""


def test_an_engine_that_does_not_fit_on_the_disk_leaves_nothing(tmp_path: Path) -> None:
    file, cache = small.model(tmp_path / "model.onnx"), tmp_path / "cache"
    kept = {**os.environ, "EDGEKIT_CACHE": str(cache)}
    ended = subprocess.run([sys.executable, "-c", FULL, file], env=kept, capture_output=True, text=True)
    assert "OSError" in ended.stderr and list((cache / "engines").iterdir()) == []


OWN = """
import {package}
import numpy as np


class Runner:
    def __init__(self, folder, manifest, threads, batch):
        self.versions = {{"own": "1"}}

    def infer(self, arrays):
        return [arrays[0].sum(axis=(1, 2, 3))[:, None] * np.ones(3, np.float32)]
"""


def own_bundle(folder: Path, package: str) -> Bundle:
    (folder / "own.py").write_text(OWN.format(package=package))
    model = small.model(folder / "m.onnx")
    files = {"model.onnx": model, "own.py": folder / "own.py"}
    golden = small.samples(2)
    outputs = golden.sum(axis=(1, 2, 3))[:, None] * np.ones(3, np.float32)
    manifest = small.manifest(backend="own", runner={"module": "own.py"})
    bundle = write_bundle(folder / "own.edge", manifest, files, [golden], [outputs])
    assert bundle.model_bytes == model.stat().st_size
    return bundle


def test_a_runner_from_elsewhere_travels_with_the_model(tmp_path: Path) -> None:
    bundle = own_bundle(tmp_path, "os")
    done = subprocess.run([sys.executable, str(bundle.path), "selftest"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert open_bundle(bundle.path) == bundle


def test_a_runner_from_elsewhere_whose_runtime_is_missing_is_6(tmp_path: Path) -> None:
    bundle = own_bundle(tmp_path, "no_such_runtime")
    done = subprocess.run([sys.executable, str(bundle.path), "selftest"], capture_output=True, text=True)
    assert done.returncode == 6 and "pip install no_such_runtime" in done.stderr


def test_openvino_tells_the_times_of_its_layers(tmp_path: Path) -> None:
    bundle, _ = openvino_bundle(tmp_path, {"INFERENCE_PRECISION_HINT": "f32"})
    command = [sys.executable, str(bundle.path), "layers", "--json", "--repeat=5"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    info = json.loads(done.stdout)
    assert info["inferences"] == 5 and any("Conv" in layer["type"] for layer in info["layers"])
    assert sum(layer["share"] for layer in info["layers"]) == pytest.approx(1)


def test_litert_says_why_it_tells_no_times_of_layers(tmp_path: Path) -> None:
    pytest.importorskip("ai_edge_litert")
    manifest = small.manifest(backend="litert", entry="m.tflite")
    (tmp_path / "m.tflite").write_bytes(b"never loaded")
    golden = [small.samples(1)], [np.zeros((1, 3), np.float32)]
    bundle = write_bundle(tmp_path / "l.edge", manifest, {"m.tflite": tmp_path / "m.tflite"}, *golden)
    done = subprocess.run([sys.executable, str(bundle.path), "layers", "--json"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["layers"] is None and "no profiler" in json.loads(done.stdout)["reason"]


def test_tensorrts_profiler_keeps_what_it_is_told() -> None:
    """With TensorRT's own base class: whether an engine calls it can only be seen with a GPU."""
    trt = pytest.importorskip("tensorrt_rtx")
    from edgekit.agent.runners.tensorrt import profiler

    kept = profiler(trt)
    for name, ms in (("conv", 1.5), ("gemm", 0.5), ("conv", 2.5)):
        kept.report_layer_time(name, ms)
    assert kept.seconds == {"conv": [1.5e-3, 2.5e-3], "gemm": [0.5e-3]} and isinstance(kept, trt.IProfiler)
