"""`edgekit gate` on evidence that is wrong, too little or of something else: never a pass, never a traceback."""

from __future__ import annotations

import json
from pathlib import Path

import gate_reports as made
import numpy as np
import pytest
from typer.testing import CliRunner

from edgekit.cli.app import app
from edgekit.report.predictions import write_predictions
from edgekit.report.verdicts import read_gate


def judged(folder: Path, clause: str, *options: str):
    """The exit code, what went to stderr, and the one judgement."""
    gate, out = folder / "gate.yaml", folder / "gate.json"
    gate.write_text(f"version: 1\ngate:\n  - {clause}\n")
    done = CliRunner().invoke(app, ["gate", str(folder), "--clauses", str(gate), "--quiet", *options])
    return done.exit_code, done.stderr, read_gate(out).judgements[0] if out.exists() else None


def metrics(**more):
    return lambda ships: ships["metrics"].update(more)


BAD_NUMBERS = [
    (metrics(precision=95.0), "{metric: precision, min: 90%}", "metrics.precision"),
    (metrics(calibration_error=-0.5), "{metric: calibration_error, max: 1%}", "metrics.calibration_error"),
    (lambda s: s["metrics"]["accuracy"].update(value=95.0, high=96.0), "{metric: accuracy, min: 90%}", "92 % is 0.92"),
    (lambda s: s["metrics"]["accuracy"].update(n=10**400), "{metric: accuracy, min: 90%}", "accuracy.n"),
    (lambda s: s["metrics"]["intervals"].update(f1=[0.95, 0.91]), "{metric: f1, min: 90%}", "low 0.95 is above high"),
    (lambda s: s["robustness"]["mean"].update(value=9.0, high=9.5), "{metric: robustness.mean, min: 90%}", "no share"),
    (lambda s: s.update(agreement=98.0), "{metric: agreement, min: 90%}", "agreement"),
    (lambda s: s.update(float_nodes=-20), "{metric: int8_share, min: 90%}", "float_nodes"),
    (lambda s: s["paired"][0].update(ratio=-1.0, low=-1.0, high=-1.0),
     "{metric: latency.p50, vs: reference, max_ratio: 0.1}", "paired.0.ratio"),
    (lambda s: s["paired"][0].update(ratio=5.0),
     "{metric: latency.p50, vs: reference, max_ratio: 0.6}", "does not hold the ratio 5"),
    (lambda s: s["paired"][0].update(ratio=5.0, low=4.0, high=6.0, rounds=0),
     "{metric: latency.p50, vs: reference, max_ratio: 1.0}", "from no rounds"),
    (lambda s: s["latency_s"]["p50"].update(value=5.0), "{metric: latency.p50, max: 1 s}", "does not hold the value 5"),
    (lambda s: s["user"]["drift"].update(value=9.0), "{metric: user.drift, max: 0.7}", "does not hold the value 9"),
    (lambda s: s.update(status="failed"), "{metric: size, max: 2 MB}", "what ships was not built"),
    (lambda s: s.update(bundle="a\0b"), "{metric: size, max: 2 MB}", "the name of no file"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "clause", "message"), BAD_NUMBERS, ids=[row[2] for row in BAD_NUMBERS])
def test_numbers_that_cannot_be_are_refused(tmp_path, change, clause, message):
    made.write(tmp_path)
    file = tmp_path / "report.json"
    value = json.loads(file.read_text())
    change(value["results"][0])
    file.write_text(json.dumps(value))
    code, said, judgement = judged(tmp_path, clause)
    assert (code, judgement) == (2, None)
    assert message in said and "report.json" in said


def test_two_bundles_that_ship_are_refused(tmp_path):
    small = made.result(size_bytes=5)
    made.write(tmp_path, made.report(small, made.result("reference", ships=True)))
    code, said, _ = judged(tmp_path, "{metric: size, max: 1 kB}")
    assert code == 2 and "two bundles ship for pc with onnxruntime" in said


TIMES = made.samples()


@pytest.mark.parametrize(
    ("samples", "clause", "reason"),
    [
        (np.where(np.arange(2000) < 900, np.nan, TIMES), "{metric: latency.p50, max: 11 ms}", "a time is not above 0"),
        (-TIMES, "{metric: latency.p50, max: 1 us}", "a time is not above 0"),
        (TIMES * 0, "{metric: throughput, min: 1}", "a time is not above 0"),
        (TIMES * np.inf, "{metric: throughput, min: 1}", "a time is not above 0"),
        (TIMES.astype(complex), "{metric: latency.p50, max: 11 ms}", "no real numbers"),
        (np.stack([TIMES] * 4, 1), "{metric: latency.p50, max: 11 ms}", "no list of times"),
        (TIMES[:5], "{metric: throughput, min: 1}", "has 5 samples, the report says 2000"),
    ],
)
def test_times_that_cannot_be_are_missing_whatever_the_clause_wishes(tmp_path, samples, clause, reason):
    made.write(tmp_path)
    np.save(tmp_path / "samples" / "quantized.npy", samples)
    for wish in ("fail", "pass"):
        code, _, judgement = judged(tmp_path, clause.replace("}", f", on_missing: {wish}}}"))
        assert (judgement.verdict, code) == ("missing", 1)
        assert reason in judgement.reason


@pytest.mark.parametrize(
    ("n", "clause", "needs"),
    [
        (1, "{metric: throughput, min: 1}", 11),
        (11, "{metric: latency.p50, max: 1 s, confidence: 0.99999}", 22),
    ],
)
def test_too_few_times_for_the_confidence_are_missing(tmp_path, n, clause, needs):
    few = made.Latency(n=n, samples_file="samples/quantized.npy")
    made.write(tmp_path, made.report(made.result(latency_s=few)))
    np.save(tmp_path / "samples" / "quantized.npy", TIMES[:n])
    code, _, judgement = judged(tmp_path, clause)
    assert (judgement.verdict, code) == ("missing", 1)
    assert f"{n} samples are too few" in judgement.reason and f"it needs {needs}" in judgement.reason


def both(folder: Path, **more) -> None:
    for role in ("quantized", "reference"):
        write_predictions(made.predictions(0, **more), folder / "predictions" / f"{role}.npz")


def test_damaged_predictions_do_not_pass_but_absent_ones_may(tmp_path):
    made.write(tmp_path)
    clause = "{metric: accuracy, vs: reference, max_regression: 1pp, on_missing: pass}"
    file = tmp_path / "predictions" / "quantized.npz"
    file.write_bytes(file.read_bytes()[:200])
    assert judged(tmp_path, clause)[0] == 1
    assert judged(tmp_path, clause.replace("on_missing: pass", "severity: warn"))[0] == 0
    file.unlink()
    code, _, judgement = judged(tmp_path, clause)
    assert (judgement.verdict, code) == ("missing", 0)
    assert "does not lie beside the report" in judgement.reason


@pytest.mark.parametrize("odd", [np.nan, np.inf])
def test_a_loss_that_is_no_number_does_not_pass(tmp_path, odd):
    made.write(tmp_path)
    loss = np.full(made.N, 0.1, np.float32)
    loss[0] = odd
    write_predictions(made.predictions(0, loss=loss), tmp_path / "predictions" / "quantized.npz")
    code, _, judgement = judged(tmp_path, "{metric: loss, vs: reference, max_regression: 1, on_missing: pass}")
    assert (judgement.verdict, code) == ("missing", 1)
    assert "not finite" in judgement.reason


@pytest.mark.parametrize("metric", ["accuracy", "precision", "recall", "f1"])
def test_a_few_samples_that_agree_prove_nothing(tmp_path, metric):
    made.write(tmp_path)
    both(tmp_path, n=8)
    code, _, judgement = judged(tmp_path, f"{{metric: {metric}, vs: reference, max_regression: 1pp}}")
    assert (judgement.verdict, code) == ("inconclusive", 4), judgement.reason


def test_class_numbers_beyond_any_network_are_refused_and_large_ones_take_no_memory(tmp_path):
    made.write(tmp_path)
    clause = "{metric: f1, vs: reference, max_regression: 2pp}"
    labels = np.arange(made.N, dtype=np.int64) % 4 + 2_000_000_000
    both(tmp_path, labels=labels, top=labels[:, None].astype(np.int32))
    assert judged(tmp_path, clause)[0] == 0
    both(tmp_path, labels=labels * 1000)
    code, _, judgement = judged(tmp_path, clause)
    assert code == 1 and "a label is not within" in judgement.reason


def test_a_class_of_few_samples_is_named_where_it_is_not_judged(tmp_path):
    made.write(tmp_path)
    labels = np.arange(made.N, dtype=np.int64) % 3
    labels[:20] = 3
    both(tmp_path, labels=labels, top=labels[:, None].astype(np.int32))
    for clause in ("{metric: worst_class, vs: reference, max_regression: 5pp}", "{metric: worst_class, min: 80%}"):
        code, _, judgement = judged(tmp_path, clause)
        assert code == 0
        assert judgement.reason.endswith("; not judged, for want of samples: d")


def test_a_metric_of_yours_from_another_device_is_not_comparable(tmp_path):
    now, then = tmp_path / "now", tmp_path / "then"
    made.write(now)
    clause = "{metric: user.drift, vs: previous, max_ratio: 2}"
    for device, why in (
        (made.result().device.model_copy(update={"fingerprint": "e" * 64}), "its device was local (eeeeeeeeeeee)"),
        (None, "it was scored on local, now on local (ffffffffffff)"),
    ):
        made.write(then, made.report(made.result(device=device)))
        code, _, judgement = judged(now, clause, "--previous", str(then))
        assert (judgement.verdict, code) == ("missing", 1)
        assert f"no comparable previous: {why}" in judgement.reason


@pytest.mark.parametrize("written", ["5", "1.0", "'5'", "-100%"])
@pytest.mark.parametrize("metric", ["latency.p50", "size"])
def test_a_bare_number_is_no_percentage(tmp_path, metric, written):
    made.write(tmp_path)
    code, said, judgement = judged(tmp_path, f"{{metric: {metric}, vs: reference, max_regression: {written}}}")
    assert (code, judgement) == (2, None)
    assert "gate.yaml:3: gate[0]: " in said and "Write it like '5%'" in said
