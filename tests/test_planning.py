"""`edgekit run --dry-run`: the plan of a pruning, and nothing removed; and a budget in time on this machine."""

import json

import numpy as np
import onnx
import pytest
from quant.quant_graphs import residual_net
from typer.testing import CliRunner

pytest.importorskip("torch")

from edgekit.cli.app import app
from edgekit.errors import UsageError
from edgekit.planning import plan

RECIPE = """
version: 1
model: {source: net.onnx}
data: {source: data.npz, task: none}
stages: [{prune: {macs: 0.6, round_to: 2, samples: 32}}, {quantize: {samples: 32}}]
targets: [{target: x86-64, backends: [onnxruntime], device: local}]
"""


@pytest.fixture
def recipe(tmp_path):
    onnx.save(residual_net(), tmp_path / "net.onnx")
    x = np.random.default_rng(0).standard_normal((48, 3, 12, 12)).astype(np.float32)
    np.savez(tmp_path / "data.npz", train_x=x[:32], test_x=x[32:])
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    return tmp_path / "recipe.yaml"


def test_the_plan_is_shown_and_nothing_is_built(recipe, tmp_path):
    out = tmp_path / "out"
    shown = CliRunner().invoke(app, ["run", str(recipe), "--dry-run", "--out", str(out), "-q"])
    assert shown.exit_code == 0, shown.output
    assert "of the multiply-accumulates" in shown.stdout and "Importance lost" in shown.stdout
    held = json.loads((out / "plan.json").read_text())
    assert held["reached"] and held["left"] <= 0.6 * held["total"]
    assert any(group["kept"] < group["channels"] and group["freed"] > 0 for group in held["groups"])
    assert (out / "plan.html").read_text().count("<tr>") == len(held["groups"]) + 1
    assert not list((out / "bundles").iterdir()) and not (out / "report.json").exists()
    told = CliRunner().invoke(app, ["run", str(recipe), "--dry-run", "--out", str(out), "-q", "--json"])
    assert json.loads(told.stdout) == held


def test_a_recipe_that_does_not_prune_has_no_plan(recipe, tmp_path):
    recipe.write_text(RECIPE.replace("{prune: {macs: 0.6, round_to: 2, samples: 32}}, ", ""))
    with pytest.raises(UsageError, match="no such stage"):
        plan(recipe, out=tmp_path / "out")


@pytest.mark.slow
def test_time_is_measured_as_it_will_ship_and_leaves_nothing_behind(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr("edgekit.prune.survey.RANDOM", 2)
    monkeypatch.setattr("edgekit.prune.timing.TRIES", 1)
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / "cache"))
    recipe.write_text(RECIPE.replace("macs: 0.6", "latency: 99%"))
    out = tmp_path / "out"
    planned = plan(recipe, out=out)
    assert planned.timed is not None
    assert (planned.timed.precision, planned.timed.backend) == ("int8", "onnxruntime")
    assert planned.timed.low <= planned.timed.ratio <= planned.timed.high
    assert planned.total == pytest.approx(planned.timed.seconds * 1e9)
    assert planned.left == pytest.approx(planned.timed.ratio * planned.total, rel=1e-6)
    assert planned.reached == (planned.timed.ratio <= 0.99)
    assert not list((out / "bundles").iterdir()) and not list((out / "work").glob("probe*"))
