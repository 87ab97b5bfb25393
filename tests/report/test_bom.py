"""Bill of materials and model card of a bundle: valid, the same each time, and from the same facts."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import agent_bundles as small
import pytest
import report_samples
from hypothesis import given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from edgekit.bundle import Bundle, open_bundle
from edgekit.errors import IntegrityError, MissingDependencyError, UsageError
from edgekit.report import bom, card
from edgekit.report.facts import Facts, facts
from edgekit.report.report import Report
from edgekit.report.robust import Condition, Robustness
from edgekit.report.values import Interval

pytest.importorskip("cyclonedx")

MANIFEST = {
    "role": "quantized",
    "precision": "int8",
    "edgekit": "0.1.0",
    "versions": {"onnx": "1.23.2", "onnxruntime": "1.32.0"},
    "data": {"name": "clothes", "sha256": "a" * 64, "task": "classification"},
    "licences": {"model": "Apache-2.0", "data": "CC-BY-4.0", "onnxruntime": "MIT", "edgekit-toolchain": "Apache-2.0"},
    "stages": ({"name": "prune", "config": {}}, {"name": "quantize", "config": {}}),
}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return small.bundle(tmp_path_factory.mktemp("bom"), **MANIFEST)


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory, bundle: Bundle) -> Report:
    """A report in which the bundle's result names it."""
    made = report_samples.realistic(tmp_path_factory.mktemp("report"))
    results = [
        r.model_copy(
            update={"bundle_sha256": bundle.sha256 if r.key == "x86-64/onnxruntime/quantized/int8" else "0" * 64}
        )
        for r in made.results
    ]
    return Report.model_validate(made.model_copy(update={"results": tuple(results)}).model_dump())


@pytest.fixture(scope="module")
def found(bundle: Bundle, told: Report) -> Facts:
    return facts(bundle, told)


def components(text: str) -> dict[str, dict]:
    return {one["bom-ref"]: one for one in json.loads(text)["components"]}


def valid(text: str) -> None:
    """By the library's own validator, against the strict schema."""
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None


def test_the_bill_of_materials_is_valid_with_and_without_a_report(bundle, found):
    for text in (bom.render(found), bom.render(facts(bundle))):
        valid(text)
        document = json.loads(text)
        assert (document["bomFormat"], document["specVersion"]) == ("CycloneDX", "1.6")


def test_the_library_reads_it_back(found):
    from cyclonedx.model.bom import Bom

    read = Bom.from_json(json.loads(bom.render(found)))
    assert {component.name for component in read.components} >= {"small", "clothes", "onnxruntime", "numpy"}
    read.validate()


def test_it_names_model_data_runtime_and_their_licences(found):
    parts = components(bom.render(found))
    assert parts["model"]["type"] == "machine-learning-model"
    assert parts["model"]["licenses"] == [{"license": {"id": "Apache-2.0"}}]
    assert parts["data"]["licenses"] == [{"license": {"id": "CC-BY-4.0"}}]
    assert parts["data"]["hashes"] == [{"alg": "SHA-256", "content": "a" * 64}]
    runtime, converter = parts["pkg:pypi/onnxruntime@1.32.0"], parts["pkg:pypi/onnx@1.23.2"]
    assert (runtime["scope"], runtime["licenses"]) == ("required", [{"license": {"id": "MIT"}}])
    assert converter["scope"] == "excluded" and "licenses" not in converter
    assert parts["file:model/model.onnx"]["hashes"][0]["content"] == found.bundle.manifest.members["model/model.onnx"]
    assert {"pkg:pypi/numpy", "pkg:pypi/edgekit-toolchain@0.1.0"} <= set(parts)


def test_the_bundle_is_named_by_the_hash_of_its_file(found):
    document = json.loads(bom.render(found))
    assert document["metadata"]["component"]["hashes"] == [{"alg": "SHA-256", "content": found.file_sha256}]
    needed = {entry["ref"]: entry.get("dependsOn", []) for entry in document["dependencies"]}
    assert "pkg:pypi/onnxruntime@1.32.0" in needed["bundle"] and "pkg:pypi/onnx@1.23.2" not in needed["bundle"]
    assert "data" in needed["model"]


def test_the_model_card_has_the_figures_of_the_report(found, told):
    model = components(bom.render(found))["model"]["modelCard"]
    assert model["modelParameters"]["task"] == "classification"
    assert model["modelParameters"]["inputs"] == [{"format": "image: float32 [batch, 1, 8, 8]"}]
    metrics = model["quantitativeAnalysis"]["performanceMetrics"]
    accuracy = told.result("x86-64", "onnxruntime", "quantized").metrics.accuracy
    first = metrics[0]
    assert first["type"] == "accuracy [share]" and float(first["value"]) == pytest.approx(accuracy.value)
    assert float(first["confidenceInterval"]["lowerBound"]) == pytest.approx(accuracy.low)
    assert {m["slice"] for m in metrics if "slice" in m} == set(report_samples.CLASSES)
    assert any("latency p50 over that of reference" in m["type"] for m in metrics)
    assert any("Accuracy" in line for line in model["considerations"]["performanceTradeoffs"])


def test_robustness_is_among_the_figures(bundle, told):
    seen = Interval(value=0.7, low=0.68, high=0.72, n=2000)
    condition = Condition(name="gaussian_noise.3", kind="corruption", accuracy=seen)
    robust = Robustness(n=2000, clean=seen, mean=seen, conditions=(condition,))
    results = tuple(r.model_copy(update={"robustness": robust}) for r in told.results)
    found = facts(bundle, told.model_copy(update={"results": results}))
    analysis = components(bom.render(found))["model"]["modelCard"]["quantitativeAnalysis"]
    names = {metric["type"] for metric in analysis["performanceMetrics"]}
    assert {"accuracy on corrupted samples [share]", "accuracy under gaussian_noise.3 [share]"} <= names
    assert "| accuracy on corrupted samples | 70.00 %" in card.render(found)


def test_the_same_bundle_and_report_give_the_same_bytes(bundle, told, monkeypatch):
    first = bom.render(facts(bundle, told))
    assert bom.render(facts(open_bundle(bundle.path), told)) == first
    assert json.loads(first)["metadata"]["timestamp"].startswith(told.created[:10])
    alone = json.loads(bom.render(facts(bundle)))
    assert "timestamp" not in alone["metadata"]
    assert alone["serialNumber"] != json.loads(first)["serialNumber"]
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    assert json.loads(bom.render(facts(bundle)))["metadata"]["timestamp"] == "2023-11-14T22:13:20+00:00"


def test_a_report_on_another_bundle_is_refused(bundle, told):
    other = [r.model_copy(update={"bundle_sha256": "0" * 64}) for r in told.results]
    with pytest.raises(IntegrityError, match="not the bundle that was measured"):
        facts(bundle, told.model_copy(update={"results": tuple(other)}))
    with pytest.raises(UsageError, match="no result for 'x86-64/onnxruntime/quantized/int8'"):
        facts(bundle, told.model_copy(update={"results": ()}))


def test_times_that_do_not_count_are_left_out(bundle, told):
    def with_reason(**why: str) -> list[str]:
        results = tuple(r.model_copy(update=why) for r in told.results)
        return [metric.name for metric in facts(bundle, told.model_copy(update={"results": results})).metrics]

    assert any(name.startswith("latency p50") for name in with_reason())
    assert not any("latency" in name or "load" in name for name in with_reason(invalid="throttled"))
    loaded = with_reason(absolute_invalid="other load")
    assert "latency p50" not in loaded and "latency p50 over that of reference" in loaded


def test_without_the_library_the_pip_command_is_told(found, monkeypatch):
    for package in ("cyclonedx", "jsonschema"):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(MissingDependencyError, match=r"edgekit-toolchain\[bom\]"):
            bom.render(found)


def test_the_card_says_the_same(found):
    text = card.render(found)
    _, front, body = text.split("---\n", 2)
    head = YAML(typ="safe").load(front)
    assert head["license"] == "apache-2.0" and "int8" in head["tags"]
    accuracy = found.result.metrics.accuracy
    assert head["model-index"][0]["results"][0]["metrics"][0] == {"type": "accuracy", "value": accuracy.value}
    assert f"{accuracy.value:.2%}".replace("%", " %") in body
    for word in (
        "# small",
        "| data | clothes |",
        "CC-BY-4.0",
        "| runs with | onnxruntime | 1.32.0 | MIT |",
        "Ankle boot",
    ):
        assert word in body


def test_the_card_without_a_report_says_so(bundle):
    text = card.render(facts(bundle))
    assert "No report was at hand" in text and "## Figures" not in text and "model-index" not in text


NASTY = st.text(st.characters(codec=None), max_size=30) | st.sampled_from(
    [
        "<script>alert(1)</script>",
        "a | b\n---\n# c",
        "\x1b]0;t\x07",
        "\ud800",
        "`x`",
        "---",
        "![a](http://b)",
        "yes",
        "1",
    ]
)


@settings(max_examples=40, deadline=None)
@given(name=NASTY, version=NASTY, licence=NASTY, data=NASTY, digest=NASTY, class_name=NASTY)
def test_nothing_that_others_wrote_breaks_out(found, name, version, licence, data, digest, class_name):
    manifest = found.bundle.manifest.model_copy(
        update={
            "model": name,
            "versions": {"onnxruntime": version, name or "x": version},
            "licences": {"model": licence, "data": licence},
            "data": {"name": data, "sha256": digest},
        }
    )
    bundle = replace(found.bundle, manifest=manifest)
    metrics = [replace(metric, of_class=class_name if metric.of_class else "") for metric in found.metrics[-4:]]
    libraries = [replace(one, version=version, licence=licence) for one in found.libraries]
    nasty = replace(
        found, bundle=bundle, metrics=tuple(metrics), libraries=tuple(libraries), limits=(name,),
        licences={"model": licence, "data": licence}, task=name,
    )  # fmt: skip
    valid(bom.render(nasty))
    text = card.render(nasty)
    assert all(character.isprintable() or character == "\n" for character in text)
    assert "<" not in text.split("---\n", 2)[2]
    _, front, _ = text.split("---\n", 2)
    assert isinstance(YAML(typ="safe").load(front), dict)


def test_a_digest_that_is_none_is_no_hash(bundle):
    manifest = bundle.manifest.model_copy(update={"data": {"name": "x", "sha256": "not hex"}})
    text = bom.render(facts(replace(bundle, manifest=manifest)))
    valid(text)
    assert "hashes" not in components(text)["data"]


def test_the_documents_are_written_by_the_command(bundle, tmp_path: Path):
    import os
    import subprocess

    entry = [sys.executable, "-c", "from edgekit.cli import main; main()", "bundle"]
    for words, file in ((["bom"], "bom.json"), (["card"], "MODEL_CARD.md")):
        done = subprocess.run(
            [*entry, *words, bundle.path, "--out", tmp_path / file], capture_output=True, text=True, env=os.environ
        )
        assert (done.returncode, done.stdout) == (0, ""), done.stderr
        shown = subprocess.run([*entry, *words, bundle.path], capture_output=True, text=True)
        assert shown.stdout == (tmp_path / file).read_text()
    (tmp_path / "report.json").write_text("{}")
    for words in ([bundle.path, "--report", tmp_path / "report.json"], [bundle.path, "--out", tmp_path / "no" / "b"]):
        done = subprocess.run([*entry, "bom", *words], capture_output=True, text=True)
        assert done.returncode == 2 and done.stderr.count("\n") == 1


@pytest.mark.parametrize("name", ["", " ", "/", "//", "a b/..?#@", "@", "%"])
def test_packages_of_any_name_leave_the_bill_valid(bundle, name):
    manifest = bundle.manifest.model_copy(update={"versions": {name: "1", "onnx": "1.23.2"}})
    told = json.loads(bom.render(facts(replace(bundle, manifest=manifest))))
    assert "onnx" in {component["name"] for component in told["components"]}
