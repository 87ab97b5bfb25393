"""The demo, whole: what its README promises, from the bundles that ship. No time is asserted."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys

import numpy as np
import pytest

pytestmark = pytest.mark.slow
RUNTIMES = ("onnxruntime", "openvino", "litert")


def top(report, out, backend, role="quantized"):
    from edgekit.report.predictions import read_predictions

    return read_predictions(out / report.result("x86-64", backend, role).predictions_file).top[:, 0]


def test_every_bundle_is_there(demo):
    report, out = demo
    status = {(r.target, r.backend): set() for r in report.results}
    for result in report.results:
        status[result.target, result.backend].add(result.status)
        assert (out / result.bundle).is_file(), result.key
    assert status == {
        **{("x86-64", backend): {"measured"} for backend in RUNTIMES},
        ("raspberry-pi-5", "onnxruntime"): {"built"},
        ("raspberry-pi-5", "litert"): {"built"},
        ("rtx-ampere", "tensorrt"): {"built"},
        ("jetson-orin-nano", "tensorrt"): {"emitted"},
    }


@pytest.mark.parametrize("backend", RUNTIMES)
def test_int8_is_five_times_smaller_and_loses_at_most_one_point(demo, backend):
    report, _ = demo
    reference, quantized = (report.result("x86-64", backend, role) for role in ("reference", "quantized"))
    assert quantized.size_bytes * 5 <= reference.size_bytes
    assert reference.accuracy.n == quantized.accuracy.n == 10_000
    assert reference.accuracy.value >= 0.925
    assert reference.accuracy.value - quantized.accuracy.value <= 0.010
    # OpenVINO adds and averages faster in float than between conversions: what multiplies is in integers.
    assert quantized.float_nodes <= (4 if backend == "openvino" else 0), quantized.float_reasons


def test_the_three_runtimes_agree(demo):
    report, out = demo
    for first, second in itertools.combinations(RUNTIMES, 2):
        assert np.mean(top(report, out, first) == top(report, out, second)) >= 0.99, (first, second)


def test_every_stage_was_held_against_the_reference(demo):
    report, _ = demo
    prune, distill, quantize = report.stages
    assert [s.name for s in report.stages] == ["prune", "distill", "quantize"]
    assert 0.4 * report.source.macs <= prune.macs <= 0.5 * report.source.macs
    assert distill.metrics["accuracy"] > prune.metrics["accuracy"]
    assert len(distill.curve) >= 1
    assert quantize.snr_db > 10


@pytest.mark.parametrize("target", ["rtx-ampere", "jetson-orin-nano"])
def test_the_graph_for_tensorrt_is_symmetric(demo, target):
    import onnx
    from onnx import numpy_helper

    _, out = demo
    (path,) = (out / "models").glob(f"*-{target}-tensorrt-quantized-int8/*.onnx")
    graph = onnx.load(path).graph
    held = {i.name: numpy_helper.to_array(i) for i in graph.initializer}
    made = {name: node for node in graph.node for name in node.output}
    quantizers = [n for n in graph.node if n.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert quantizers
    for node in quantizers:
        assert not held[node.input[2]].any(), f"{node.name} has a zero point"
        assert node.op_type == "DequantizeLinear" or held[node.input[1]].size == 1, f"{node.name} is per channel"
    for node in graph.node:
        if node.op_type in ("Conv", "Gemm", "ConvTranspose") and len(node.input) > 2:
            assert node.input[2] not in made, f"{node.name} has a quantized bias"


def test_report_json_holds_what_its_schema_says(demo):
    _, out = demo
    report = json.loads((out / "report.json").read_text())
    assert {"schema_version", "source", "stages", "results", "gate", "exit_code"} <= set(report)
    assert {"size_bytes", "macs", "parameters", "metrics"} <= set(report["source"])
    wanted = {
        "target", "backend", "precision", "role", "status", "reason", "measured_on", "device", "bundle", "size_bytes",
        "bundle_bytes", "predictions_file", "metrics", "latency_s", "paired", "load_s", "first_inference_s",
        "peak_rss_bytes", "int8_nodes", "float_nodes", "agreement", "snr_db", "ships",
    }  # fmt: skip
    for result in report["results"]:
        assert wanted <= set(result)
    shipped = [r for r in report["results"] if r["ships"]]
    assert len(shipped) == 7
    timed = [r for r in report["results"] if r["status"] == "measured"]
    assert all({"p50", "p90", "n", "samples_file"} <= set(r["latency_s"]) for r in timed)
    assert all((out / r["latency_s"]["samples_file"]).is_file() for r in timed)
    assert {"clause", "target", "backend", "verdict", "observed", "limit", "reason"} <= set(report["gate"][0])


@pytest.mark.parametrize("backend", RUNTIMES)
def test_the_shipped_bundle_passes_its_selftest(demo, backend):
    report, out = demo
    path = out / report.result("x86-64", backend, "quantized").bundle
    done = subprocess.run([sys.executable, str(path), "selftest"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_same_recipe_from_the_onnx_file(demo, repo_root, tmp_path):
    """One epoch is within a point of the four that the PyTorch source had, and within 3 % of its size."""
    import edgekit
    from edgekit.graph.io import save_onnx
    from edgekit.recipe import load_recipe
    from edgekit.sources import load_model

    recipe = load_recipe(repo_root / "examples/fashion_mnist/recipe.yaml")
    source = load_model("model.py:build", weights=recipe.weights, inputs=recipe.model.specs(), base=recipe.base)
    save_onnx(source.reference.proto, tmp_path / "fashion_mnist.onnx")
    text = recipe.path.read_text()
    head, _, tail = text.partition("model:")
    tail = tail[tail.index("data:") :].replace("../../calibration_data", str(repo_root / "calibration_data"))
    assert "epochs: 4" in tail
    tail = tail.replace("epochs: 4", "epochs: 1")
    (tmp_path / "recipe.yaml").write_text(f"{head}model: {{source: fashion_mnist.onnx}}\n{tail}")
    board = "raspberry-pi-5"  # is scored here and not timed, which would take as long as all the rest
    again = edgekit.run(tmp_path / "recipe.yaml", out=tmp_path / "out", targets=[board])
    for backend in ("onnxruntime", "litert"):
        mine, theirs = again.result(board, backend, "quantized"), demo[0].result(board, backend, "quantized")
        assert theirs.accuracy.value - mine.accuracy.value <= 0.01, backend
        assert abs(again.result(board, backend, "float").accuracy.value - mine.accuracy.value) <= 0.003, backend
        assert abs(mine.size_bytes / theirs.size_bytes - 1) <= 0.03, backend


def test_the_page_on_using_the_plain_models_does_what_was_measured(demo, repo_root, monkeypatch):
    """Runs the Python of `docs/use-in-your-app.md` on the first test images."""
    report, out = demo
    page = (repo_root / "docs" / "use-in-your-app.md").read_text(encoding="utf-8")
    snippets = page.partition("```python\n")[2].partition("```")[0].split("\n\n")
    images = np.load(next((out / "work").glob("inputs-*.npy")))[:20]
    monkeypatch.chdir(out)
    assert len(snippets) == len(RUNTIMES)
    for raw, *expected in zip(images, *(top(report, out, backend) for backend in RUNTIMES), strict=False):
        names = {"raw": raw}
        for snippet, answer in zip(snippets, expected, strict=True):
            exec(snippet, names)
            assert names["logits"].argmax() == answer, snippet


def test_the_benchmark_of_gates_judges_each_candidate_and_goes_on(demo, tmp_path, repo_root):
    """It runs, goes on where it ended, and tells what it saw. No time is asserted."""
    report, out = demo
    if report.shipped("x86-64", "onnxruntime").role != "quantized":
        pytest.skip("int8 was not shown faster on this machine just now, so nothing of it ships")

    def python(*arguments: str) -> None:
        known = {**os.environ, "PYTHONPATH": str(repo_root)}
        done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=known)
        assert done.returncode == 0, done.stderr

    options = ["--times=1", "--slow-times=1", "--true-rounds=1", "--load=0", f"--work={tmp_path / 'work'}"]
    command = [str(repo_root / "benchmarks" / "gate_power.py"), str(out), *options, f"--out={tmp_path}"]
    for batch, kinds in (
        ("--batch=2", ["stored", "same"]),
        ("--batch=9", ["stored", "same", "slowed", "worse", "truth"]),
        ("--batch=9", ["stored", "same", "slowed", "worse", "truth"]),
    ):
        python(*command, batch)
        records = json.loads((tmp_path / "gate_power.json").read_text())
        assert [one["kind"] for one in records] == kinds
    same, slow, worse = records[1:4]
    assert (same["verdicts"]["accuracy"], same["verdicts"]["size"]) == ("pass", "pass")
    assert slow["verdicts"]["accuracy"] == "pass"
    assert (worse["code"], worse["verdicts"]) == (1, {"accuracy": "fail", "size": "pass"})
    lines = (tmp_path / "gate_power.md").read_text().splitlines()
    assert [line.split("|")[1].strip() for line in lines[-3:]] == ["same", "slowed", "worse"]
    assert len({line.count("|") for line in lines[2:]}) == 1
