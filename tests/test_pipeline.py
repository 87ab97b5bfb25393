"""Whole runs on a network and data small enough for every day."""

from __future__ import annotations

import json
import platform
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import edgekit
from edgekit.agent.state import WANTED_FEATURES, machine
from edgekit.assess import did_not_help
from edgekit.bundle import open_bundle, read_golden
from edgekit.model import Step
from edgekit.workspace import Workspace

RECIPE = """
version: 1
model: {{source: net.onnx}}
data: {{source: data.npz, task: classification, preprocess: {{scale: [0.00392157], layout: NHW, to: NCHW}}}}
stages:
  - quantize: {{samples: 64}}
targets:
  - {{target: x86-64, backends: [{backends}]}}
gate:
  - {{metric: size, target: x86-64, max: 100 kB}}
"""


def network(batch: int | str = "batch", *, last: str = "") -> onnx.ModelProto:
    """Images `[batch, 1, 8, 8]` to the four brightest quarters' logits; `last` is an operator to end with."""
    quarters = np.zeros((4, 1, 8, 8), np.float32)
    for i in range(4):
        quarters[i, 0, i // 2 * 4 : i // 2 * 4 + 4, i % 2 * 4 : i % 2 * 4 + 4] = 1 / 16
    nodes = [
        helper.make_node("Conv", ["image", "quarters"], ["seen"], name="conv"),
        helper.make_node("Flatten", ["seen"], ["flat"], name="flatten"),
        helper.make_node("Gemm", ["flat", "mix", "bias"], ["logits" if not last else "mixed"], name="mix"),
    ]
    if last:
        nodes.append(helper.make_node(last, ["mixed"], ["logits"], name="the_last_one"))
    graph = helper.make_graph(
        nodes,
        "quarters",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [batch, 1, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, 4])],
        [
            numpy_helper.from_array(quarters, "quarters"),
            numpy_helper.from_array(4 * np.eye(4, dtype=np.float32), "mix"),
            numpy_helper.from_array(np.zeros(4, np.float32), "bias"),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


@pytest.fixture
def folder(tmp_path):
    """A recipe's folder with `data.npz`: noise with one bright quarter, which is the label."""
    rng = np.random.default_rng(0)

    def images(n):
        labels = np.arange(n) % 4
        x = rng.integers(0, 60, (n, 8, 8), dtype=np.uint8)
        for image, label in zip(x, labels, strict=True):
            image[label // 2 * 4 : label // 2 * 4 + 4, label % 2 * 4 : label % 2 * 4 + 4] += 120
        return x, labels

    train, test = images(96), images(60)
    np.savez(tmp_path / "data.npz", train_x=train[0], train_y=train[1], test_x=test[0], test_y=test[1])
    return tmp_path


def run(folder, proto, backends="onnxruntime", **options):
    onnx.save(proto, folder / "net.onnx")
    (folder / "recipe.yaml").write_text(RECIPE.format(backends=backends))
    return edgekit.run(folder / "recipe.yaml", out=folder / "out", **options)


class Lines:
    """A `Progress` that remembers what was said."""

    def __init__(self):
        self.lines = []

    def task(self, description, total=None):
        from edgekit.context import Silent

        return Silent().task(description, total)

    def say(self, line):
        self.lines.append(line)


def test_a_run_leaves_bundles_models_predictions_and_a_report(folder):
    report = run(folder, network())
    assert report.exit_code == 0
    assert report.source.metrics.accuracy.value == 1.0
    shipped = report.shipped("x86-64", "onnxruntime")
    assert (shipped.role, shipped.status, shipped.measured_on) == ("quantized", "built", "local")
    assert shipped.accuracy.value == 1.0 and shipped.accuracy.n == 60
    bundle = open_bundle(folder / "out" / shipped.bundle)
    assert bundle.manifest.preprocess.to == "NCHW"
    assert read_golden(bundle, "inputs")[0].shape == (4, 1, 8, 8)
    assert (folder / "out/models" / bundle.path.stem / "model.onnx").stat().st_size == shipped.size_bytes
    assert json.loads((folder / "out/report.json").read_text())["gate"][0]["verdict"] == "pass"
    assert "<html" in (folder / "out/report.html").read_text()


@pytest.mark.parametrize("batch", [1, 3])
def test_a_fixed_batch_stays_fixed(folder, batch):
    report = run(folder, network(batch))
    assert report.exit_code == 0
    bundle = open_bundle(folder / "out" / report.shipped("x86-64", "onnxruntime").bundle)
    assert bundle.manifest.inputs[0].shape == (batch, 1, 8, 8)
    assert len(read_golden(bundle, "outputs")[0]) % batch == 0


def test_a_backend_that_lacks_an_operator_fails_alone_and_names_the_node(folder):
    report = run(folder, network(last="Hardmax"), "onnxruntime, litert")
    assert report.exit_code == 7
    failed = [r for r in report.results if r.status == "failed"]
    assert {r.backend for r in failed} == {"litert"}
    assert all("the_last_one" in r.reason and "Hardmax" in r.reason for r in failed)
    assert report.shipped("x86-64", "onnxruntime") is not None
    assert report.shipped("x86-64", "litert") is None


def test_resume_keeps_what_is_the_same_and_nothing_else(folder):
    run(folder, network())
    said = Lines()
    run(folder, network(), resume=True, progress=said)
    assert said.lines == ["quantize: kept from the earlier run"]
    other = network()
    other.graph.initializer[2].CopyFrom(numpy_helper.from_array(np.float32([0, 0, 0, 0.1]), "bias"))
    said = Lines()
    run(folder, other, resume=True, progress=said)
    assert said.lines == ["quantize: done again, the earlier run had other settings or is damaged"]
    said = Lines()
    run(folder, other, progress=said)
    assert said.lines == []


@pytest.mark.parametrize(
    ("before", "after", "again"),
    [
        ("samples: 64", "samples: 32", "done again, the earlier run had other settings or is damaged"),
        ("target: x86-64,", "target: x86-64-no-vnni,", "done again, the earlier run had other settings or is damaged"),
        ("max: 100 kB", "max: 200 kB", "kept from the earlier run"),
    ],
)
def test_resume_keeps_a_stage_by_its_settings_and_by_the_grids_of_the_targets(folder, before, after, again):
    run(folder, network())
    text, said = (folder / "recipe.yaml").read_text(), Lines()
    assert before in text
    (folder / "recipe.yaml").write_text(text.replace(before, after))
    edgekit.run(folder / "recipe.yaml", out=folder / "out", resume=True, progress=said)
    assert said.lines[0] == f"quantize: {again}"


def test_resuming_with_other_data_measures_on_the_other_data(folder):
    run(folder, network())
    with np.load(folder / "data.npz") as data:
        arrays = dict(data)
    arrays["test_x"], arrays["test_y"] = arrays["test_x"][:0:-1], arrays["test_y"][:0:-1]
    np.savez(folder / "data.npz", **arrays)
    report = run(folder, network(), resume=True)
    assert report.shipped("x86-64", "onnxruntime").accuracy.n == 59
    assert report.shipped("x86-64", "onnxruntime").accuracy.value == 1.0


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("done.json", b"{"),
        ("done.json", b"[]"),
        ("done.json", b"{}"),
        ("model/graph.onnx", b""),
        ("model/quant.json", b"{}"),
        ("model/quant.json", None),
    ],
)
def test_a_damaged_result_of_a_stage_is_made_again(folder, file, content):
    run(folder, network())
    path = folder / "out/work/1-quantize" / file
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    said = Lines()
    assert run(folder, network(), resume=True, progress=said).exit_code == 0
    assert said.lines == ["quantize: done again, the earlier run had other settings or is damaged"]


def test_a_stage_that_is_killed_while_it_is_kept_does_not_count_as_done(folder, monkeypatch):
    from edgekit.graph import io

    run(folder, network())

    def killed(proto, path):
        raise KeyboardInterrupt

    monkeypatch.setattr(io, "save_onnx", killed)
    with pytest.raises(KeyboardInterrupt):
        run(folder, network(last="Relu"), resume=True)
    assert not list((folder / "out/work").glob("*/done.json"))
    assert not (folder / "out/report.json").exists(), "it would tell of bundles that are being replaced"


def test_a_second_run_into_the_same_folder_is_refused(folder):
    run(folder, network())
    held = Workspace.open(folder / "out", resume=True)
    try:
        with pytest.raises(edgekit.UsageError, match="another run is writing there"):
            run(folder, network())
    finally:
        held.close()
    assert run(folder, network()).exit_code == 0


def test_a_work_folder_of_the_users_own_is_never_removed(folder):
    (folder / "out/work").mkdir(parents=True)
    (folder / "out/work/thesis.txt").write_text("years")
    with pytest.raises(edgekit.UsageError, match="its folder 'work' is not of an earlier run"):
        run(folder, network())
    assert (folder / "out/work/thesis.txt").read_text() == "years"


def test_a_model_that_gives_nan_is_refused(folder):
    broken = network()
    broken.graph.initializer[2].CopyFrom(numpy_helper.from_array(np.float32([0, np.nan, 0, 0]), "bias"))
    with pytest.raises(edgekit.UsageError, match="'net' gives NaN or infinity at 'logits' for sample test/0"):
        run(folder, broken)
    assert not (folder / "out").exists()


def test_a_model_that_no_runtime_takes_is_refused(folder):
    other = network()
    other.graph.initializer[1].CopyFrom(numpy_helper.from_array(np.eye(5, 4, dtype=np.float32), "mix"))
    with pytest.raises(edgekit.UsageError, match="'net' cannot be run on the data: "):
        run(folder, other)
    assert not (folder / "out").exists()


def test_bad_data_leaves_no_output_folder(folder):
    np.savez(folder / "data.npz", train_x=np.zeros((4, 5, 5), np.uint8), train_y=np.arange(4))
    with pytest.raises(edgekit.UsageError, match=r"wants \[1, 8, 8\]"):
        run(folder, network())
    assert not (folder / "out").exists()


def test_an_output_folder_that_is_a_file_is_refused_before_anything_runs(folder):
    (folder / "out").write_text("")
    with pytest.raises(edgekit.UsageError, match="cannot be written"):
        run(folder, network())


def test_a_device_of_another_architecture_cannot_stand_for_a_target(folder):
    onnx.save(network(), folder / "net.onnx")
    other = "raspberry-pi-5" if platform.machine() == "x86_64" else "x86-64"
    text = RECIPE.format(backends="onnxruntime").replace(
        "target: x86-64, backends", f"target: {other}, device: local, backends"
    )
    (folder / "recipe.yaml").write_text(text.partition("gate:")[0])
    with pytest.raises(edgekit.UsageError, match=f"{other}.* its device 'local' is {platform.machine()}"):
        edgekit.run(folder / "recipe.yaml", out=folder / "out")
    assert not (folder / "out").exists()


def test_a_device_that_lacks_a_feature_of_the_target_is_said(folder):
    from edgekit.measuring import fitted
    from edgekit.recipe import load_recipe

    onnx.save(network(), folder / "net.onnx")
    arch = platform.machine()
    absent = next(f for f in WANTED_FEATURES if f not in machine()["features"])
    (folder / "mine.yaml").write_text(
        f"name: mine\narch: {arch}\ncpu: {{model: mine, cores: 1, features: [{absent}]}}\n"
        "backends: {onnxruntime: {}}\nsources: [measured]\n"
    )
    text = RECIPE.format(backends="onnxruntime").partition("targets:")[0]
    (folder / "recipe.yaml").write_text(text + "targets:\n  - {target: mine.yaml, device: local}\n")
    (planned,) = load_recipe(folder / "recipe.yaml").targets
    same, said = fitted(planned)
    assert same == planned
    assert f"lacks {absent}" in said


class Described:
    """A device that says what it is, and no more."""

    def __init__(self, features: tuple[str, ...]) -> None:
        self.seen = {"arch": "x86_64", "features": features}

    def open(self, name: str) -> Described:
        return self

    def describe(self) -> dict[str, object]:
        return self.seen


def test_weights_keep_to_what_the_device_can_add_up():
    from edgekit.measuring import fitted
    from edgekit.recipe import PlannedTarget
    from edgekit.target import load_target

    planned = PlannedTarget(load_target("x86-64"), ("onnxruntime",), "local", 1)
    changed, said = fitted(planned, Described(("avx2", "fma")))
    assert "lacks avx_vnni|avx512_vnni, which the target has: 8-bit sums would overflow there" in said
    assert "so weights keep to 7 bits on onnxruntime and openvino" in said
    other = load_target("x86-64-no-vnni")
    assert {name: facts.grid for name, facts in changed.target.backends.items()} == {
        name: facts.grid for name, facts in other.backends.items()
    }
    assert changed.target.name == "x86-64"
    assert fitted(planned, Described(("avx2", "fma", "avx_vnni"))) == (planned, None)
    assert fitted(planned, Described(("sse4_2",)))[0] == changed
    bare = planned.target.model_copy(update={"cpu": planned.target.cpu.model_copy(update={"features": ()})})
    assert fitted(replace(planned, target=bare), Described(("avx2",)))[0].target.backends == changed.target.backends
    mine = replace(planned, target=other.model_copy(update={"backends": planned.target.backends}))
    assert fitted(mine, Described(("avx2", "fma"))) == (mine, None), "whoever says 8 bits without VNNI gets them"
    alone = replace(planned, device=None)
    assert fitted(alone, Described(("avx2", "fma"))) == (alone, None)


@pytest.mark.parametrize(
    ("before", "after", "line"),
    [
        (Step("source", {}, 0, macs=100), Step("prune", {}, 0, macs=100), "prune did not help"),
        (Step("source", {}, 0, macs=100), Step("prune", {}, 0, macs=50), None),
        (
            Step("prune", {}, 0, metrics={"accuracy": 0.9}),
            Step("distill", {}, 0, metrics={"accuracy": 0.9004}),
            "distill did not help: accuracy 90.04 % after it, 90.00 % before.",
        ),
        (Step("prune", {}, 0, metrics={"accuracy": 0.9}), Step("distill", {}, 0, metrics={"accuracy": 0.92}), None),
        (Step("prune", {}, 0, snr_db=12.0), Step("distill", {}, 0, snr_db=11.0), "distill did not help: output 11.0"),
        (Step("source", {}, 0), Step("distill", {}, 0, snr_db=11.0), None),
        (
            Step("quantize", {}, 0, metrics={"accuracy": 0.88}),
            Step("qat", {"grid": "affine"}, 0, metrics={"accuracy": 0.88}),
            "qat did not help: accuracy 88.00 % after it, 88.00 % before.",
        ),
        # What is assessed is the affine grid: a stage that trained in another one speaks for itself.
        (
            Step("quantize", {}, 0, metrics={"accuracy": 0.88}),
            Step("qat", {"grid": "symmetric"}, 0, metrics={"accuracy": 0.87}),
            None,
        ),
        (
            Step("quantize", {}, 0, metrics={"accuracy": 0.88}),
            Step("qat", {"grid": "symmetric"}, 0, ("did not help: no epoch was better",), metrics={"accuracy": 0.9}),
            "qat did not help: no epoch was better.",
        ),
    ],
)
def test_a_stage_that_did_not_help_is_one_line(before, after, line):
    said = did_not_help(before, after)
    assert (said is None) if line is None else said.startswith(line)
