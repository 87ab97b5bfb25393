import json
import re
from dataclasses import replace

import numpy as np
import pytest
from report_samples import N, realistic, robust

from edgekit.errors import UsageError
from edgekit.report import html, markdown, terminal, words
from edgekit.report.predictions import Predictions, read_predictions, read_samples, write_predictions, write_samples
from edgekit.report.report import DeviceInfo, Report, Result, SourceInfo, StageInfo, read_report, write_report
from edgekit.report.values import IDENTICAL_DB, Metrics


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("report")


@pytest.fixture(scope="module")
def report(folder):
    return realistic(folder)


def test_round_trip(report, tmp_path):
    path = tmp_path / "report.json"
    write_report(report, path)
    assert read_report(path) == report
    assert [p.name for p in tmp_path.iterdir()] == ["report.json"]


def test_a_report_checks_the_results_it_takes_in(report):
    result = report.results[0].model_copy(update={"snr_db": float("inf")})
    taken = Report(edgekit="0", created="now", source=report.source, results=(result,))
    assert taken.results[0].snr_db == IDENTICAL_DB


def test_json_holds_what_is_promised(report):
    data = json.loads(json.dumps(report.model_dump(mode="json"), allow_nan=False))
    assert data["schema_version"] == 1
    assert {"size_bytes", "macs", "parameters", "metrics"} <= data["source"].keys()
    assert {"name", "config", "seconds", "snr_db", "metrics"} <= data["stages"][0].keys()
    promised = (
        "target backend precision role status reason measured_on device bundle size_bytes bundle_bytes "
        "predictions_file metrics latency_s paired load_s first_inference_s peak_rss_bytes int8_nodes float_nodes "
        "agreement snr_db ships"
    )
    result = data["results"][2]
    assert set(promised.split()) <= result.keys()
    assert {"name", "fingerprint", "threads"} <= result["device"].keys()
    assert result["metrics"]["accuracy"].keys() == {"value", "low", "high", "n"}
    assert {"precision", "recall", "f1", "loss"} <= result["metrics"].keys()
    assert {"p50", "p90", "n", "samples_file"} <= result["latency_s"].keys()
    assert result["latency_s"]["p50"].keys() == {"value", "low", "high"}
    assert result["paired"][0].keys() == {"vs", "statistic", "ratio", "low", "high", "rounds", "samples_file"}
    assert {"clause", "target", "backend", "verdict", "observed", "limit", "reason"} <= data["gate"][0].keys()
    assert data["gate"][0]["observed"].keys() == {"value", "low", "high", "unit", "n", "of", "left_out"}
    assert data["exit_code"] == 7


def test_no_number_is_ever_nan(tmp_path):
    odd = Report(
        edgekit="0",
        created="now",
        source=SourceInfo(name="net", size_bytes=1, metrics=Metrics(loss=float("nan"))),
        stages=(
            StageInfo(name="prune", seconds=1.0, snr_db=float("inf"), metrics={"loss": float("nan"), "top1": 1.0}),
        ),
    )
    assert odd.source.metrics.loss is None
    assert odd.stages[0].snr_db == IDENTICAL_DB
    assert odd.stages[0].metrics == {"top1": 1.0}
    write_report(odd, tmp_path / "report.json")
    assert not re.search("NaN|Infinity", (tmp_path / "report.json").read_text())
    updated = odd.model_copy(update={"seconds": float("nan")})
    write_report(updated, tmp_path / "report.json")
    assert read_report(tmp_path / "report.json").seconds is None
    with pytest.raises(ValueError, match="finite number"):
        StageInfo(name="prune", seconds=float("nan"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot be read: No such file"),
        ("{", "not valid JSON"),
        ("[]", "schema_version is None"),
        ('{"schema_version": 99}', "schema_version is 99, this edgekit reads 1"),
        ('{"schema_version": 1}', "edgekit: Field required"),
        (b"\xff\xfe", "not valid JSON"),
    ],
)
def test_a_broken_report_is_one_clear_error(tmp_path, text, message):
    path = tmp_path / "report.json"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UsageError, match=message):
        read_report(path)


def test_nothing_is_left_behind_where_writing_fails(report, tmp_path):
    (tmp_path / "report.json").mkdir()
    with pytest.raises(OSError, match="directory"):
        write_report(report, tmp_path / "report.json")
    assert [p.name for p in tmp_path.iterdir()] == ["report.json"]


def test_device_details_are_kept():
    device = DeviceInfo.of({"name": "local", "fingerprint": "f", "cores": 2}, threads=1)
    assert (device.name, device.threads, device.details) == ("local", 1, {"cores": 2})


def test_predictions_round_trip(folder, tmp_path):
    kept = read_predictions(folder / "x86-64-openvino-float.npz")
    assert len(kept) == N
    write_predictions(kept, tmp_path / "again.npz")
    again = read_predictions(tmp_path / "again.npz")
    assert again.same_samples(kept)
    np.testing.assert_array_equal(again.top, kept.top)
    np.testing.assert_array_equal(again.loss, kept.loss)
    np.testing.assert_array_equal(again.labels, kept.labels)


def test_confidence_and_slices_round_trip_and_may_be_absent(folder, tmp_path):
    kept = read_predictions(folder / "x86-64-openvino-float.npz")
    write_predictions(replace(kept, confidence=None), tmp_path / "old.npz")
    old = read_predictions(tmp_path / "old.npz")
    assert old.confidence is None and old.slices == {}
    slices = {"light": np.array(["day", "night"] * (N // 2)), "a/b.c": np.array([""] * N)}
    write_predictions(
        replace(old, confidence=np.linspace(0, 1, N, dtype=np.float32), slices=slices), tmp_path / "p.npz"
    )
    again = read_predictions(tmp_path / "p.npz")
    np.testing.assert_array_equal(again.confidence, np.linspace(0, 1, N, dtype=np.float32))
    assert {name: list(values) for name, values in again.slices.items()} == {k: list(v) for k, v in slices.items()}


def test_unlabelled_predictions_round_trip(tmp_path):
    bare = Predictions(("a", "b"), None, np.zeros((2, 1), np.int32), None, "d", "test")
    write_predictions(bare, tmp_path / "p.npz")
    again = read_predictions(tmp_path / "p.npz")
    assert again.labels is None
    assert again.loss is None
    with pytest.raises(UsageError, match="no labels"):
        again.correct()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 not a zip", b"text"])
def test_broken_files_are_usage_errors(tmp_path, content):
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(UsageError, match="not a predictions file"):
        read_predictions(path)
    with pytest.raises(UsageError, match="not a samples file"):
        read_samples(path)


def test_pickled_files_are_never_loaded(tmp_path):
    np.save(tmp_path / "bad.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(UsageError, match="not a samples file"):
        read_samples(tmp_path / "bad.npy")


def test_samples_round_trip(tmp_path):
    rounds = np.random.default_rng(0).random((20, 4))
    write_samples(rounds, tmp_path / "pairs.npy")
    np.testing.assert_array_equal(read_samples(tmp_path / "pairs.npy"), rounds)


@pytest.mark.parametrize("width", [80, 100])
def test_the_terminal_table_fits_without_colour(report, width):
    shown = terminal.text(report, width)
    assert max(map(len, shown.splitlines())) <= width
    assert "\x1b" not in shown
    assert "…" not in shown
    assert re.search(r"\* quantized int8  571 kB 93\.\d\d ±0\.49 .* 41/45", shown)
    assert "x raspberry-pi-5, litert quantized int8 failed: LiteRT has no operator" in shown
    assert "! x86-64, litert: float fp32 ships: int8 is not shown faster than float" in shown
    assert "\nBuild failed: 13 of 15 judgements pass, 1 fail, 1 warn; 6 bundles" in shown


def test_the_terminal_names_the_layers_that_stay_float(report):
    said = " ".join(terminal.text(report, 200).split())
    assert "quantize, affine grid: 2 of 60 layers kept float (/features/2/conv1 14.2 dB, /features/10/conv1" in said
    none = [layer.model_copy(update={"kept": False}) for layer in report.stages[-1].sensitivity]
    stage = report.stages[-1].model_copy(update={"sensitivity": tuple(none)})
    said = " ".join(terminal.text(report.model_copy(update={"stages": (stage,)}), 200).split())
    assert "none of 60 layers kept float (worst alone: /features/2/conv1 14.2 dB" in said


def test_markup_of_the_terminal_in_names_is_shown_as_it_is(report):
    hostile = report.model_copy(update={"warnings": ("[bold red]not markup[/]",)})
    assert "! [bold red]not markup[/]" in terminal.text(hostile)


def test_markdown_has_a_row_a_bundle_and_leaves_no_markup_in_names(report):
    source = report.source.model_copy(update={"name": "<b>|x*"})
    shown = markdown.render(report.model_copy(update={"source": source}))
    assert shown.startswith("## &lt;b&gt;\\|x\\*: Build failed\n")
    assert sum(line.startswith("| x86-64 |") for line in shown.splitlines()) == 3


def test_a_report_of_almost_nothing_renders(report):
    bare = Report(edgekit="0", created="now", source=SourceInfo(name="net", size_bytes=10))
    assert words.outcome(bare) == "Done"
    assert "net as it came: 0.01 kB" in terminal.text(bare)
    assert "## net: Done" in markdown.render(bare)
    failed = Result(target="t", backend="b", precision="fp32", role="float", status="failed", reason="why")
    assert "t, b float fp32 failed: why" in terminal.text(bare.model_copy(update={"results": (failed,)}))


def stressed(report):
    """The report with robustness of the bundles for one runtime, which the quantized one lost."""
    of = {"reference": robust(vs=False), "float": robust(), "quantized": robust(0.1)}
    results = [
        r.model_copy(update={"robustness": of[r.role]}) if r.backend == "openvino" and r.target == "x86-64" else r
        for r in report.results
    ]
    return report.model_copy(update={"results": tuple(results)})


def test_robustness_is_a_table_of_corruption_by_bundle_and_a_line_a_bundle(report):
    assert "changed samples" not in terminal.text(report) and "<h2>Robustness" not in html.render(report)
    shown = terminal.text(stressed(report), width=80)
    assert "On 1,000 changed samples" in shown
    (line,) = [line for line in shown.splitlines() if "quantized int8" in line and "gaussian_noise.5" in line]
    assert line.split() == ["quantized", "int8", "93.00", "69.00", "-10.00", "±0.50", "gaussian_noise.5", "-4.00"]
    page = html.render(stressed(report))
    for text in ("<h2>Robustness", "adversarial.pgd", "-10.00 [-10.50, -9.50]", "as it is, 1,000 samples"):
        assert text in page


def test_robustness_that_was_tampered_with_is_text(report):
    evil = "[red]<script>alert(1)</script>"
    seen = robust(0.1)
    seen = seen.model_copy(update={"conditions": tuple(c.model_copy(update={"name": evil}) for c in seen.conditions)})
    results = tuple(r.model_copy(update={"robustness": seen}) for r in report.results if r.status != "failed")
    changed = report.model_copy(update={"results": results})
    assert "[red]<script>" in terminal.text(changed)
    assert "<script>alert" not in html.render(changed)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"top": np.zeros((3, 1), np.int32)}, "`top` is int32 [3, 1] for 4 samples"),
        ({"top": np.zeros((4, 0), np.int32)}, "`top`"),
        ({"top": np.zeros((4, 1), np.float32)}, "`top` is float32"),
        ({"labels": np.zeros(3, np.int64)}, "`labels` is int64 [3]"),
        ({"labels": np.array([0, 0, 0, -1])}, "a label is not within"),
        ({"loss": np.zeros((4, 2), np.float32)}, "`loss`"),
        ({"confidence": np.array([0, 1, np.nan, 0.5], np.float32)}, "a confidence is not within 0 and 1"),
        ({"confidence": np.array([0, 1, 2, 0.5], np.float32)}, "a confidence is not within 0 and 1"),
        ({"slice.light": np.array(["day"] * 3)}, "`slice.light`"),
        ({"slice.light": np.array([None] * 4)}, "pickle"),
    ],
)
def test_predictions_that_were_edited_by_hand_are_refused(tmp_path, changed, said):
    arrays = {
        "ids": np.array(list("abcd")), "top": np.zeros((4, 2), np.int32), "labels": np.zeros(4, np.int64),
        "data_sha256": np.array("d"), "split": np.array("test"),
    }  # fmt: skip
    np.savez(tmp_path / "p.npz", **{**arrays, **changed})
    with pytest.raises(UsageError, match=re.escape(said)):
        read_predictions(tmp_path / "p.npz")


def test_no_damage_to_a_predictions_file_is_more_than_a_usage_error(tmp_path):
    top = np.arange(40, dtype=np.int32).reshape(20, 2) % 3
    slices = {"light": np.array(["day", "night"] * 10)}
    kept = Predictions(tuple(map(str, range(20))), np.zeros(20, np.int64), top, None, "d", "test", None, slices)
    path = tmp_path / "p.npz"
    write_predictions(kept, path)
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    refused = 0
    for _ in range(600):
        broken = bytearray(whole[: rng.integers(1, len(whole) + 1)] if rng.random() < 0.3 else whole)
        for at in rng.integers(0, len(broken), rng.integers(1, 4)):
            broken[at] = rng.integers(0, 256)
        path.write_bytes(broken)
        try:
            read_predictions(path)
        except UsageError:
            refused += 1
    assert refused > 300
