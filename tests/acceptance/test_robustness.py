"""The demo's network, pruned and trained again: as accurate within a point, and less robust. No time is asserted."""

from __future__ import annotations

import shutil

import pytest

pytestmark = pytest.mark.slow

RECIPE = """
version: 1
model:
  source: model.py:build
  weights: weights.safetensors
  inputs: {{image: {{shape: [batch, 1, 28, 28], dtype: float32}}}}
data: {{source: {data}, task: classification}}
stages:
  - prune:    {{macs: 0.5, importance: taylor}}
  - distill:  {{epochs: 1}}
  - quantize: {{samples: 256}}
targets: [{{target: x86-64, backends: [onnxruntime]}}]
robustness: {{corruptions: [brightness, contrast], severities: [1], adversarial: {{}}, samples: 1000}}
gate:
  - {{metric: accuracy, target: x86-64, vs: reference, max_regression: 1.5pp}}
  - {{metric: robustness.mean, target: x86-64, vs: reference, max_regression: 1.5pp}}
"""


def test_a_pruned_network_that_is_as_accurate_and_less_robust_is_seen(repo_root, tmp_path):
    pytest.importorskip("art", reason="the extra `robustness`")
    import edgekit
    from edgekit.metrics import paired_accuracy
    from edgekit.report.predictions import read_predictions

    for name in ("model.py", "weights.safetensors"):
        shutil.copy(repo_root / "examples/fashion_mnist" / name, tmp_path)
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(data=repo_root / "calibration_data/fashion_mnist"))
    report = edgekit.run(tmp_path / "recipe.yaml", out=tmp_path / "out")
    before, after = (report.result("x86-64", "onnxruntime", role) for role in ("reference", "quantized"))
    kept = [read_predictions(tmp_path / "out" / r.predictions_file).correct() for r in (before, after)]
    clean = paired_accuracy(*kept)
    assert clean.n == 10_000 and clean.high < 0.015, clean
    assert after.robustness.lost.low > 0.02 and after.robustness.lost.value > 2 * clean.value, after.robustness
    assert [judgement.verdict for judgement in report.gate] == ["pass", "fail"] and report.exit_code == 1
    assert any("the quantized int8 bundle is less robust" in line for line in report.warnings)
    assert before.robustness.condition("adversarial.pgd").accuracy.value < before.robustness.clean.value - 0.1
