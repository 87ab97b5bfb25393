"""`--until emit`: graphs and the QuantSpec, the same as those of a whole run, and nothing else."""

import json
import platform
import subprocess
import sys

import numpy as np
import onnx
import pytest
from quant.quant_graphs import residual_net

from edgekit import QuantSpec
from edgekit.devices.local import Local
from edgekit.pipeline import emit, run

RECIPE = """
version: 1
model: {source: net.onnx}
data: {source: data.npz, task: none}
stages: [{quantize: {samples: 32}}]
targets:
  - {target: x86-64, backends: [onnxruntime, openvino]}
  - {target: jetson-orin-nano, backends: [tensorrt]}
"""


@pytest.fixture
def recipe(tmp_path):
    onnx.save(residual_net(), tmp_path / "net.onnx")
    x = np.random.default_rng(0).standard_normal((48, 3, 12, 12)).astype(np.float32)
    np.savez(tmp_path / "data.npz", calibration_x=x[:32], test_x=x[32:])
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    return tmp_path / "recipe.yaml"


def test_the_graphs_are_those_of_a_whole_run(recipe, tmp_path):
    seen = emit(recipe, out=tmp_path / "emitted")
    run(recipe, out=tmp_path / "whole")
    assert [(g.target, g.backend, g.precision, g.reason) for g in seen.graphs] == [
        ("x86-64", "onnxruntime", "int8", ""),
        ("x86-64", "openvino", "int8", ""),
        ("jetson-orin-nano", "tensorrt", "int8", ""),
    ]
    for backend in ("onnxruntime", "tensorrt"):
        (file,) = next(g.files for g in seen.graphs if g.backend == backend)
        assert (tmp_path / "emitted" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
    spec = QuantSpec.from_json((tmp_path / "emitted" / seen.quant).read_text())
    assert spec.nodes and spec.source["samples"] == "32"
    left = {path.name for path in (tmp_path / "emitted").iterdir() if path.is_file()}
    assert not {"report.json", "report.html"} & left
    assert not list((tmp_path / "emitted" / "bundles").iterdir())


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the device is this machine, in the place of one like it")
def test_a_device_that_overflows_gets_the_graphs_of_the_target_that_is_made_for_it(recipe, tmp_path, monkeypatch):
    whole, text = Local.describe, recipe.read_text()
    monkeypatch.setattr(Local, "describe", lambda self: {**whole(self), "features": ["avx2", "fma"]})
    recipe.write_text(text.replace("x86-64, back", "x86-64, device: local, back"))
    fitted = emit(recipe, out=tmp_path / "fitted")
    assert [line for line in fitted.warnings if "weights keep to 7 bits" in line]
    recipe.write_text(text.replace("x86-64, back", "x86-64-no-vnni, device: local, back"))
    made_for_it = emit(recipe, out=tmp_path / "made")
    assert not made_for_it.warnings
    for one, other in zip(fitted.graphs, made_for_it.graphs, strict=True):
        for mine, theirs in zip(one.files, other.files, strict=True):
            assert (tmp_path / "fitted" / mine).read_bytes() == (tmp_path / "made" / theirs).read_bytes()
    stored = onnx.load(tmp_path / "fitted" / fitted.graphs[0].files[0]).graph.initializer
    weights = [onnx.numpy_helper.to_array(t) for t in stored if t.data_type == onnx.TensorProto.INT8 and t.dims]
    assert weights and max(np.abs(weight.astype(int)).max() for weight in weights) <= 64


def test_the_command_names_what_it_wrote_and_imports_no_torch(recipe, tmp_path):
    code = (
        "import sys; from edgekit.cli.app import app\n"
        f"try: app(['run', {str(recipe)!r}, '--until', 'emit', '--out', {str(tmp_path / 'out')!r}, '--json', '-q'])\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "print('torch' in sys.modules, file=sys.stderr)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seen = json.loads(ran.stdout)
    assert seen["exit_code"] == 0 and len(seen["graphs"]) == 3
    assert all((tmp_path / "out" / file).stat().st_size for graph in seen["graphs"] for file in graph["files"])
    assert ran.stderr.strip() == "False"


def test_another_stop_is_refused(recipe):
    ran = subprocess.run(
        [sys.executable, "-m", "edgekit", "run", str(recipe), "--until", "lunch"], capture_output=True, text=True
    )
    assert ran.returncode == 2
    assert "--until 'lunch': a run can stop after 'emit' alone." in ran.stderr


def test_a_backend_that_cannot_emit_fails_alone(recipe, tmp_path):
    text = recipe.read_text().replace("backends: [onnxruntime, openvino]", "backends: [onnxruntime]")
    target = tmp_path / "odd.yaml"
    target.write_text(
        "name: odd\narch: x86_64\ncpu: {model: x, cores: 1}\nsources: [here]\n"
        "backends: {tensorrt: {grid: affine}, onnxruntime: {}}\n"
    )
    recipe.write_text(
        text.replace("jetson-orin-nano, backends: [tensorrt]", "odd.yaml, backends: [tensorrt, onnxruntime]")
    )
    seen = emit(recipe, out=tmp_path / "out")
    assert seen.exit_code == 7
    assert [bool(graph.reason) for graph in seen.graphs] == [False, True, False]
