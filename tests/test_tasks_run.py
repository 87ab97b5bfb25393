"""Whole runs on data of every task: what the report tells, and what a gate says of it by name."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import onnx
import onnx.reference
import pytest
from onnx import TensorProto, helper, numpy_helper

import edgekit
from edgekit.baseline import accept
from edgekit.data import DataSet, Split
from edgekit.datasource import load_data
from edgekit.errors import MissingDependencyError, UsageError
from edgekit.gating import run_gate
from edgekit.report.report import read_report
from edgekit.scoring import Asked
from edgekit.scoring import score as score_task
from edgekit.tasks import TASKS

RECIPE = """
version: 1
model: {{source: net.onnx}}
data: {{source: data.npz, task: {task}{more}}}
stages: [{{quantize: {{samples: 32}}}}]
targets: [{{target: x86-64, backends: [onnxruntime]}}]
gate:
{gate}
"""
N = 48


def network(nodes, outputs, weights):
    """A network of `x` `[batch, 2, 8, 8]`."""
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 2, 8, 8])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *shape]) for name, shape in outputs.items()],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def mixing(channels, seed=0):
    """`[batch, channels, 8, 8]`: a convolution of 1 x 1, near to the identity."""
    weights = np.random.default_rng(seed).normal(size=(channels, 2, 1, 1)).astype(np.float32) * 0.1
    weights[np.arange(channels), np.arange(channels) % 2] += 1
    return network([helper.make_node("Conv", ["x", "w"], ["y"], "conv")], {"y": [channels, 8, 8]}, {"w": weights})


def pooled(width, seed=0):
    """`[batch, width]`: a convolution, mean over pixels, a matrix."""
    rng = np.random.default_rng(seed)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["seen"], "conv"),
        helper.make_node("GlobalAveragePool", ["seen"], ["mean"], "pool"),
        helper.make_node("Flatten", ["mean"], ["flat"], "flatten"),
        helper.make_node("MatMul", ["flat", "m"], ["y"], "mix"),
    ]
    w, m = rng.normal(size=(8, 2, 3, 3)).astype(np.float32), rng.normal(size=(8, width)).astype(np.float32)
    return network(nodes, {"y": [width]}, {"w": w, "m": m})


def answers(proto, x):
    return np.asarray(onnx.reference.ReferenceEvaluator(proto).run(None, {"x": x})[0])


def samples(seed=1):
    return np.random.default_rng(seed).normal(size=(N, 2, 8, 8)).astype(np.float32)


def ready(task):
    """A network, samples `[N, 2, 8, 8]` and labels that it gets mostly right."""
    rng, x = np.random.default_rng(2), samples()
    if task == "segmentation":
        proto = mixing(2)
        return proto, x, answers(proto, x + 0.1 * rng.normal(size=x.shape).astype(np.float32)).argmax(1)
    if task == "restoration":
        proto = mixing(2)
        return proto, x, (answers(proto, x) + 0.05 * rng.normal(size=x.shape)).astype(np.float32)
    if task == "anomaly":
        proto, truth = mixing(2), np.arange(N) % 2
        return proto, x * (1 + truth)[:, None, None, None].astype(np.float32), truth
    proto = pooled(3)
    seen = answers(proto, x)
    if task == "regression":
        return proto, x, (seen + rng.normal(scale=0.1, size=seen.shape)).astype(np.float32)
    return proto, x, seen.argmax(1)  # embedding


GATES = {
    "regression": ("mae, max: 0.2", "rmse, vs: reference, max_regression: 0.05", "rmse, max: 0.01"),
    "segmentation": (
        "miou, min: 70%",
        "pixel_accuracy, vs: reference, max_regression: 5pp",
        "pixel_accuracy, max: 1%",
    ),
    "embedding": ("cosine, min: 0.95", "recall_at_1, vs: float, max_regression: 30pp", "retrieval_map, min: 99.9%"),
    "restoration": ("psnr, min: 20 dB", "ssim, vs: reference, max_regression: 0.1", "ssim, min: 0.99999"),
    "anomaly": ("auc, min: 80%", "auc, vs: reference, max_regression: 5pp", "auc, vs: float, max_regression: -50pp"),
}
"""The first two clauses hold, the last one does not."""


def run(folder, task, proto, x, truth, gate=(), more=""):
    onnx.save(proto, folder / "net.onnx")
    halves = {"train_x": x, "test_x": x} | ({} if truth is None else {"train_y": truth, "test_y": truth})
    np.savez(folder / "data.npz", **halves)
    lines = "\n".join(f"  - {{metric: {line}, target: x86-64}}" for line in gate) or "  []"
    (folder / "recipe.yaml").write_text(RECIPE.format(task=task, more=more, gate=lines))
    return edgekit.run(folder / "recipe.yaml", out=folder / "out")


@pytest.mark.parametrize("task", GATES)
def test_a_run_tells_the_metrics_of_the_task_and_a_gate_takes_them_by_name(tmp_path, task):
    for library in ("skimage", "sklearn"):
        pytest.importorskip(library)
    proto, x, truth = ready(task)
    report = run(tmp_path, task, proto, x, truth, GATES[task])
    assert report.data.task == task
    shipped = report.shipped("x86-64", "onnxruntime")
    for scored in (report.source.metrics, shipped.metrics):
        assert set(scored.scores) == set(TASKS[task])
        assert all(seen.low <= seen.value <= seen.high for seen in scored.scores.values())
    assert [entry.verdict for entry in report.gate] == ["pass", "pass", "fail"], [e.reason for e in report.gate]
    assert set(report.stages[0].metrics) == set(TASKS[task])
    assert read_report(tmp_path / "out" / "report.json") == report
    name = next(iter(scored.scores)).replace("_", " ")
    assert name in (tmp_path / "out" / "report.html").read_text()
    again = subprocess.run(
        [sys.executable, "-c", JUDGE, str(tmp_path / "out")], capture_output=True, text=True, check=True
    )
    assert again.stdout.split() == ["pass", "pass", "fail"], again.stdout


JUDGE = """
import sys
from pathlib import Path
from edgekit.gating import run_gate
print(*[entry.verdict for entry in run_gate(Path(sys.argv[1])).judgements])
heavy = {"skimage", "sklearn", "scipy", "pycocotools", "onnx", "torch", "onnxruntime"} & set(sys.modules)
assert not heavy, heavy
"""


def test_detection_by_a_function_of_the_users_own(tmp_path):
    pytest.importorskip("pycocotools")
    x = samples()
    proto = pooled(4)
    (tmp_path / "own.py").write_text(
        "import numpy as np\n"
        "def decode(outputs):\n"
        "    corner = np.abs(outputs[0][:, :2]) * 10\n"
        "    sure, kind = np.ones((len(corner), 1)), np.zeros((len(corner), 1))\n"
        "    box = np.concatenate([corner, corner + 8, sure, kind], axis=1)\n"
        "    return box[:, None]\n"
        "def farthest(outputs, labels):\n"
        "    return np.abs(np.abs(outputs[0][:, 0]) * 10 - labels[:, 0, 1])\n"
        "def count(outputs, labels):\n"
        "    return len(labels)\n"
    )
    corner = np.abs(answers(proto, x)[:, :2]) * 10
    truth = np.concatenate([np.zeros((N, 1)), corner, corner + 8], axis=1)[:, None].astype(np.float32)
    gate = ["map50, min: 90%", "map, vs: reference, max_regression: 20pp", "user.count, min: 48"]
    more = ", decode: own.py:decode, metrics: {farthest: own.py:farthest, count: own.py:count}"
    report = run(tmp_path, "detection", proto, x, truth, gate, more)
    assert report.source.metrics.scores["map"].value == pytest.approx(1)
    assert [entry.verdict for entry in report.gate] == ["pass", "pass", "pass"], [e.reason for e in report.gate]
    own = report.shipped("x86-64", "onnxruntime").user
    assert own["farthest"].low < own["farthest"].value < own["farthest"].high
    assert (own["count"].value, own["count"].low, own["count"].high) == (N, N, N)


def test_top5_is_told_of_more_than_five_classes(tmp_path):
    x, proto = samples(), pooled(9)
    truth = np.argsort(-answers(proto, x), axis=1)[:, 4]
    gate = ["top5, min: 80%", "top5, vs: reference, max_regression: 20pp"]
    report = run(tmp_path, "classification", proto, x, truth, gate)
    assert report.source.metrics.scores["top5"].value == 1
    assert report.source.metrics.accuracy.value == 0
    assert report.gate[0].observed.value > 0.8 and report.gate[1].observed.unit == "points"


def test_an_embedding_without_labels_has_its_cosine_alone(tmp_path):
    report = run(tmp_path, "embedding", pooled(6), samples(), None, ["recall_at_1, min: 50%"])
    assert set(report.source.metrics.scores) == {"cosine"}
    assert report.gate[0].verdict == "missing"


def test_one_class_alone_ends_a_run_before_anything_is_done(tmp_path):
    pytest.importorskip("sklearn")
    with pytest.raises(UsageError, match="undefined with one class only"):
        run(tmp_path, "anomaly", mixing(2), samples(), np.zeros(N, int))
    assert not (tmp_path / "out" / "stages").exists()


BAD = [
    ("regression", np.zeros(3), "need labels \\[N\\] or"),
    ("regression", np.array(["a"] * N), "labels are of type <U1; task 'regression' needs numbers"),
    ("regression", np.full(N, np.nan), "the label of sample 0 holds NaN or infinity"),
    ("segmentation", np.zeros((N, 4, 4), np.float32), "needs whole numbers"),
    ("segmentation", np.zeros(N, int), "need labels \\[N, H, W\\], got \\[48\\]"),
    ("detection", np.zeros((N, 2, 4)), "need labels \\[N, boxes, 5\\]"),
    ("detection", np.tile([0, 5, 5, 5, 9.0], (N, 1, 1)), "box 0 of sample 0 is .*xmin < xmax"),
    ("embedding", np.zeros(N), "task 'embedding' needs whole numbers"),
    ("restoration", np.zeros((N, 4)), "need labels \\[N, H, W\\], \\[N, C, H, W\\]"),
    ("anomaly", np.arange(N), "an anomaly is 1, anything else 0"),
    ("nothing", np.zeros(N), "Unknown task 'nothing'"),
]


@pytest.mark.parametrize(("task", "labels", "message"), BAD)
def test_labels_that_do_not_fit_the_task_are_refused_when_they_are_read(tmp_path, task, labels, message):
    np.savez(tmp_path / "data.npz", train_x=samples(), train_y=labels, test_x=samples(), test_y=labels)
    with pytest.raises(UsageError, match=message):
        load_data(tmp_path / "data.npz", task=task)


@pytest.mark.parametrize(
    ("body", "message"),
    [("return outputs[0][:3]", "`decode` gave float32 \\[3, 3\\] for 48 samples"),
     ("return None", "`decode` gave object"),
     ("return outputs[0] / 0", "`decode` made NaN or infinity of 48"), ("return x", "own.py:decode raised NameError")],
)  # fmt: skip
def test_a_function_that_gives_something_else_is_named(tmp_path, body, message):
    (tmp_path / "own.py").write_text(f"def decode(outputs):\n    {body}\n")
    with pytest.raises(UsageError, match=message), np.errstate(all="ignore"):
        run(tmp_path, "regression", pooled(3), samples(), np.zeros((N, 3)), more=", decode: own.py:decode")


def test_few_samples_have_no_interval_to_judge_by_but_for_shares_of_hits(tmp_path):
    proto, x, truth = ready("embedding")
    report = run(tmp_path, "embedding", proto, x[:20], truth[:20], ["cosine, min: 0.5", "recall_at_1, min: 1%"])
    assert [entry.verdict for entry in report.gate] == ["missing", "pass"]
    assert report.gate[0].reason == "cosine of 20 samples has no interval to judge by: it needs 30"


def test_answers_that_are_not_finite_are_not_scored_and_said_so():
    from edgekit.scoring.evaluated import evaluate_task

    data = DataSet("d", {}, task="regression")
    output = np.zeros((4, 2), np.float32)
    output[1, 0] = np.nan
    seen = evaluate_task(data, Asked([output], [np.zeros((4, 2))], np.zeros((4, 2)), list))
    assert seen.notes == ("1 of 4 answers hold NaN or infinity: not scored",)
    assert not seen.metrics.scores and not seen.evidence


def test_labels_of_a_task_go_through_splits_derived_and_are_part_of_the_digest(tmp_path):
    x, y = samples(), np.arange(N, dtype=np.float32)
    for name, labels in (("a", y), ("b", y + 1)):
        np.savez(tmp_path / f"{name}.npz", x=x, y=labels)
    a, b = (load_data(tmp_path / f"{name}.npz", task="regression") for name in "ab")
    assert a.sha256 != b.sha256
    for split in a.splits.values():
        assert split.labels is None
        assert [f"all/{int(label)}" for label in split.truth] == list(split.ids)
    assert isinstance(a.split("test").take(np.array([0])), Split)


@pytest.mark.parametrize(
    ("task", "package"), [("anomaly", "sklearn"), ("restoration", "skimage"), ("detection", "pycocotools")]
)
def test_a_library_that_is_missing_is_one_line_with_what_to_type(monkeypatch, task, package):
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    truth = np.zeros((4, 1, 5)) if task == "detection" else np.zeros((4, 8, 8))
    with pytest.raises(MissingDependencyError, match=rf"needs the package '{package}'.*pip install '.*\[metrics\]'"):
        score_task(task, Asked([truth], [truth], truth, list))


def test_a_task_is_compared_with_what_was_measured_before(tmp_path):
    pytest.importorskip("sklearn")
    proto, x, truth = ready("anomaly")
    run(tmp_path, "anomaly", proto, x, truth)
    (tmp_path / "out").rename(tmp_path / "before")
    run(tmp_path, "anomaly", proto, x, truth, ["auc, vs: previous, max_regression: 1pp"])
    judged = run_gate(tmp_path / "out", previous=tmp_path / "before").judgements
    assert [(entry.verdict, entry.observed.value) for entry in judged] == [("pass", 0)], judged[0].reason
    clauses = tmp_path / "gate.yaml"
    clauses.write_text("version: 1\ngate: [{metric: auc, vs: baseline, max_regression: 1pp, target: x86-64}]\n")
    accept(tmp_path / "before", tmp_path / "baselines", store=str(tmp_path / "store"))
    judged = run_gate(tmp_path / "out", clauses=clauses, baselines=tmp_path / "baselines").judgements
    assert [(entry.verdict, entry.observed.value) for entry in judged] == [("pass", 0)], judged[0].reason


def test_a_network_without_classes_is_distilled_by_its_outputs(tmp_path, monkeypatch):
    proto, x, truth = ready("segmentation")
    stages = "[{{distill: {{epochs: 1}}}}, {{quantize: {{samples: 32}}}}]"
    monkeypatch.setitem(globals(), "RECIPE", RECIPE.replace("[{{quantize: {{samples: 32}}}}]", stages))
    report = run(tmp_path, "segmentation", proto, x, truth)
    assert any("learned from the teacher's outputs alone" in note for note in report.stages[0].notes)
    assert report.stages[0].metrics["miou"] > 0.7
