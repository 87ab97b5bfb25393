"""Whole runs with a robustness block on a network and data small enough for every day."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from test_pipeline import network

import edgekit
from edgekit.context import Silent
from edgekit.errors import UsageError
from edgekit.report.predictions import read_predictions
from edgekit.report.report import read_report
from edgekit.robust.statistics import paired_mean

pytest.importorskip("PIL")
pytest.importorskip("onnxruntime")

RECIPE = """\
version: 1
model: {{source: net.onnx}}
data: {{source: data.npz, {data}}}
stages: [quantize: {{samples: 64}}]
targets: [{{target: x86-64, backends: [onnxruntime]}}]
robustness: {robustness}
"""
IMAGES = "preprocess: {scale: [0.00392157], layout: NHW, to: NCHW}"
SOME = "{corruptions: [gaussian_noise, jpeg], severities: [5, 1], samples: 50}"


class Heard(Silent):
    """A progress that remembers the names of its tasks."""

    def __init__(self):
        self.tasks: list[str] = []

    def task(self, description, total=None):
        self.tasks.append(description)
        return super().task(description, total)


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    images = rng.integers(60, 150, (200, 8, 8), dtype=np.uint8)
    labels = np.arange(200) % 4
    for image, label in zip(images, labels, strict=True):
        image[label // 2 * 4 : label // 2 * 4 + 4, label % 2 * 4 : label % 2 * 4 + 4] += 20
    onnx.save(network(), tmp_path / "net.onnx")
    light = np.array(["day", "night"] * 100)
    arrays = {"train_x": images[:100], "train_y": labels[:100], "test_x": images[100:], "test_y": labels[100:]}
    np.savez(tmp_path / "data.npz", **arrays, **{"test_slice.light": light[100:]})
    return tmp_path


def run(folder, robustness=SOME, data=IMAGES, **options):
    heard = Heard()
    (folder / "recipe.yaml").write_text(RECIPE.format(robustness=robustness, data=data))
    report = edgekit.run(folder / "recipe.yaml", out=folder / "out", progress=heard, **options)
    return report, heard.tasks


def test_every_bundle_is_scored_on_the_same_changed_samples(folder):
    report, _ = run(folder)
    names = ["gaussian_noise.1", "gaussian_noise.5", "jpeg.1", "jpeg.5"]
    kept = {}
    assert {r.role for r in report.results} == {"reference", "float", "quantized"}
    for result in report.results:
        seen = result.robustness
        assert [c.name for c in seen.conditions] == names
        assert (seen.n, seen.clean.n, seen.mean.n) == (50, 50, 50)
        kept[result.role] = [read_predictions(folder / "out" / c.predictions_file) for c in seen.conditions]
        assert [k.correct().mean() for k in kept[result.role]] == pytest.approx(
            [c.accuracy.value for c in seen.conditions]
        )
        assert seen.mean.value == pytest.approx(np.mean([c.accuracy.value for c in seen.conditions]))
        assert seen.condition("gaussian_noise.5").accuracy.value < seen.clean.value
        clean = read_predictions(folder / "out" / result.predictions_file)
        assert not clean.same_samples(kept[result.role][0])
        rows = [clean.ids.index(name) for name in kept[result.role][0].ids]
        assert seen.clean.value == pytest.approx(clean.correct()[rows].mean())
        assert list(kept[result.role][0].slices["light"]) == list(clean.slices["light"][rows])
    assert all(a.same_samples(b) for a, b in zip(kept["reference"], kept["quantized"], strict=True))
    assert not kept["reference"][0].same_samples(kept["reference"][1])
    assert abs(paired_mean(kept["reference"], kept["quantized"]).value) < 0.05
    assert read_report(folder / "out" / "report.json") == report
    assert not list((folder / "out" / "work").glob("changed-*"))


def test_resuming_asks_only_for_what_is_new(folder):
    first, tasks = run(folder)
    assert [t for t in tasks if t.startswith("make")] == [
        f"make {c.name}" for c in first.results[0].robustness.conditions
    ]
    again, tasks = run(folder, resume=True)
    assert not [t for t in tasks if t.startswith("make")]
    assert [r.robustness for r in again.results] == [r.robustness for r in first.results]
    _, tasks = run(folder, SOME.replace("[5, 1]", "[5, 1, 3]"), resume=True)
    assert [t for t in tasks if t.startswith("make")] == ["make gaussian_noise.3", "make jpeg.3"]
    for path in (folder / "out" / "work" / "robust").iterdir():
        path.write_bytes(path.read_bytes()[:100])
    damaged, _ = run(folder, resume=True)
    assert [r.robustness for r in damaged.results] == [r.robustness for r in first.results]
    fewer, tasks = run(folder, SOME.replace("50", "20"), resume=True)
    assert len([t for t in tasks if t.startswith("make")]) == 4 and fewer.results[0].robustness.n == 20


def test_adversarial_inputs_are_those_of_the_reference_for_all(folder):
    pytest.importorskip("torch")
    pytest.importorskip("art")
    report, tasks = run(folder, "{corruptions: [], adversarial: {epsilon: 8/255}}")
    assert tasks.count("make adversarial.pgd") == 1
    kept = []
    for result in report.results:
        seen = result.robustness
        assert seen.mean is None and seen.n == 100
        assert [(c.name, c.kind) for c in seen.conditions] == [("adversarial.pgd", "adversarial")]
        assert seen.conditions[0].accuracy.high < seen.clean.low
        kept.append(read_predictions(folder / "out" / seen.conditions[0].predictions_file))
    assert kept[0].same_samples(kept[1]) and kept[0].same_samples(kept[2])


def test_without_the_block_nothing_is_measured(folder):
    report, tasks = run(folder, "null")
    assert all(r.robustness is None for r in report.results)
    assert "robustness" not in tasks


@pytest.mark.parametrize(
    ("robustness", "data", "said"),
    [
        ("{corruptions: [gain]}", IMAGES, "robustness: 'gain' is no corruption of this data (image). There are: "),
        ("{modality: features}", IMAGES, "robustness: `modality: features` does not fit"),
        ("{}", f"task: none, {IMAGES}", "robustness: needs a classifier and labelled samples"),
        ("{corruptions: []}", IMAGES, "names no corruption and no adversarial attack"),
        ("{severities: [6]}", IMAGES, "robustness.severities[0]: must be at most 5, got 6"),
        ("{severities: [1, 1]}", IMAGES, "robustness.severities: "),
        ("{corruptions: [rain]}", IMAGES, "robustness.corruptions"),
        ("{adversarial: {epsilon: 3/2}}", IMAGES, "robustness.adversarial.epsilon: "),
        ("{adversarial: {attack: cw}}", IMAGES, "robustness.adversarial.attack: must be one of 'pgd' or 'fgsm', got"),
        ("{samples: 0}", IMAGES, "robustness.samples: must be in [1, 1000000], got 0"),
        ("{sample: 1}", IMAGES, "robustness.sample: unknown key. Did you mean 'samples'?"),
    ],
)
def test_a_block_that_does_not_fit_is_refused_before_anything_long(folder, robustness, data, said):
    with pytest.raises(UsageError) as caught:
        run(folder, robustness, data)
    assert "recipe.yaml:6: robustness" in str(caught.value)
    assert said in str(caught.value)
    assert not (folder / "out" / "bundles").exists()


def test_one_of_several_inputs_is_changed(tmp_path):
    from onnx import TensorProto, helper

    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["mask"], ["weights"], to=TensorProto.FLOAT, name="cast"),
            helper.make_node("Mul", ["signal", "weights"], ["logits"], name="mul"),
        ],
        "masked",
        [
            helper.make_tensor_value_info("signal", TensorProto.FLOAT, ["batch", 6]),
            helper.make_tensor_value_info("mask", TensorProto.INT64, ["batch", 6]),
        ],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 6])],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), tmp_path / "net.onnx"
    )
    values = np.random.default_rng(0).random((100, 6)).astype(np.float32)
    np.savez(
        tmp_path / "data.npz", **{"x.signal": values, "x.mask": np.ones((100, 6), np.int64), "y": values.argmax(1)}
    )
    recipe = RECIPE.format(robustness="{samples: 20}", data="task: classification").replace(
        "stages: [quantize: {samples: 64}]\n", ""
    )
    (tmp_path / "recipe.yaml").write_text(recipe)
    report = edgekit.run(tmp_path / "recipe.yaml", out=tmp_path / "out")
    seen = report.results[0].robustness
    assert [c.name for c in seen.conditions][::3] == ["noise.1", "missing.1"]
    assert seen.clean.value == 1.0 and seen.condition("noise.5").accuracy.value < 1.0
    settings = json.loads((tmp_path / "out" / "report.json").read_text())["results"][0]["robustness"]["settings"]
    assert settings["severities"] == [1, 3, 5]


def test_an_int8_network_that_is_as_accurate_and_saturates_in_bright_light_is_seen(tmp_path):
    """Calibrated on dim pictures alone: int8 has no numbers for brighter ones, and float has."""
    rng = np.random.default_rng(0)
    images = rng.integers(90, 120, (400, 8, 8), dtype=np.uint8)
    labels = np.arange(400) % 4
    for image, label in zip(images, labels, strict=True):
        image[label // 2 * 4 : label // 2 * 4 + 4, label % 2 * 4 : label % 2 * 4 + 4] += 12
    onnx.save(network(), tmp_path / "net.onnx")
    arrays = {"train_x": images[:200], "train_y": labels[:200], "test_x": images[200:], "test_y": labels[200:]}
    np.savez(tmp_path / "data.npz", **arrays)
    gate = """
gate:
  - {metric: accuracy, target: x86-64, vs: reference, max_regression: 3pp}
  - {metric: worst_class, target: x86-64, vs: reference, max_regression: 25pp}
  - {metric: robustness.mean, target: x86-64, vs: reference, max_regression: 3pp}
  - {metric: robustness.brightness.5, target: x86-64, min: 80%}
"""
    report, _ = run(tmp_path, "{corruptions: [brightness, jpeg], severities: [1, 5]}" + gate)
    assert [j.verdict for j in report.gate] == ["pass", "pass", "fail", "fail"], report.gate
    assert report.exit_code == 1
    of = {r.role: r for r in report.results}
    clean = [of[role].accuracy for role in ("reference", "quantized")]
    assert clean[0].value - clean[1].value <= 0.01, "as accurate"
    seen = of["quantized"].robustness
    assert seen.condition("brightness.5").lost.low > 0.3 and seen.lost.low > 0.05
    assert of["float"].robustness.lost.value == 0 and of["reference"].robustness.lost is None
    (line,) = [line for line in report.warnings if "less robust" in line]
    assert line.startswith("x86-64 onnxruntime: the quantized int8 bundle is less robust: it loses ")
    kept = {
        role: [read_predictions(tmp_path / "out" / c.predictions_file) for c in of[role].robustness.corruptions]
        for role in ("reference", "quantized")
    }
    gap = paired_mean(kept["reference"], kept["quantized"])
    assert (gap.value, gap.low, gap.high) == (seen.lost.value, seen.lost.low, seen.lost.high)
