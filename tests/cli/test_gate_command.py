"""`edgekit gate`: one row a kind of clause, verdict and exit code; and what a bad report or clause answers."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import agent_bundles as small
import gate_reports as made
import numpy as np
import pytest
from typer.testing import CliRunner

from edgekit import gating, remeasure
from edgekit.bundle import extract_model, read_golden, write_bundle
from edgekit.cli.app import app
from edgekit.devices.local import Local
from edgekit.report.report import is_special, write_text
from edgekit.report.verdicts import read_gate

SLOW = {"absolute_invalid": "other processes used 0.90 processors meanwhile"}
HOT = {"invalid": "the board reported: under-voltage"}

ROWS = [
    # absolute limits, one metric of each kind
    ("{metric: accuracy, min: 91%}", "pass", 0),
    ("{metric: accuracy, min: 93%}", "inconclusive", 4),
    ("{metric: accuracy, min: 95%}", "fail", 1),
    ("{metric: precision, min: 91%}", "pass", 0),
    ("{metric: recall, min: 93.5%}", "inconclusive", 4),
    ("{metric: f1, min: 95%}", "fail", 1),
    ("{metric: loss, max: 0.3}", "pass", 0),
    ("{metric: loss, max: 0.25}", "inconclusive", 4),
    ("{metric: loss, max: 0.2}", "fail", 1),
    ("{metric: calibration_error, max: 5%}", "pass", 0),
    ("{metric: calibration_error, max: 1%}", "fail", 1),
    ("{metric: worst_class, min: 85%}", "pass", 0),
    ("{metric: worst_class, min: 99%}", "fail", 1),
    ("{metric: worst_slice, min: 80%}", "pass", 0),
    ("{metric: worst_slice, min: 86%}", "inconclusive", 4),
    ("{metric: worst_slice, min: 95%}", "fail", 1),
    ("{metric: agreement, min: 97%}", "pass", 0),
    ("{metric: agreement, min: 99.5%}", "fail", 1),
    ("{metric: int8_share, min: 90%}", "pass", 0),
    ("{metric: int8_share, min: 99%}", "fail", 1),
    ("{metric: snr, min: 20}", "pass", 0),
    ("{metric: snr, min: 26}", "fail", 1),
    ("{metric: latency.p50, max: 11 ms}", "pass", 0),
    ("{metric: latency.p50, max: 10.0 ms}", "inconclusive", 4),
    ("{metric: latency.p50, max: 9 ms}", "fail", 1),
    ("{metric: latency, percentile: 90, max: 11 ms}", "pass", 0),
    ("{metric: latency.p99, max: 12 ms}", "pass", 0),
    ("{metric: latency.p99, max: 10 ms}", "fail", 1),
    ("{metric: latency.p99.9, max: 1 s}", "missing", 1),
    ("{metric: throughput, min: 90}", "pass", 0),
    ("{metric: throughput, min: 120 /s}", "fail", 1),
    ("{metric: load, max: 0.5 s}", "pass", 0),
    ("{metric: first_inference, max: 50 ms}", "fail", 1),
    ("{metric: cold_start, max: 0.5 s}", "pass", 0),
    ("{metric: cold_start, max: 0.49 s}", "fail", 1),
    ("{metric: size, max: 1 MB}", "pass", 0),
    ("{metric: size, max: 999 kB}", "fail", 1),
    ("{metric: bundle_size, max: 5 MB}", "pass", 0),
    ("{metric: memory, max: 100 MB}", "pass", 0),
    ("{metric: memory, max: 80 MB}", "fail", 1),
    ("{metric: energy, max: 30 mJ}", "pass", 0),
    ("{metric: energy, max: 10 mJ}", "fail", 1),
    ("{metric: robustness.blur.3, min: 85%}", "pass", 0),
    ("{metric: robustness.blur.3, min: 88%}", "inconclusive", 4),
    ("{metric: robustness.mean, min: 95%}", "fail", 1),
    ("{metric: robustness.fog.3, min: 5%}", "missing", 1),
    ("{metric: user.drift, max: 1 mm}", "pass", 0),
    ("{metric: user.drift, max: 0.5}", "inconclusive", 4),
    ("{metric: user.drift, min: 0.7 mm}", "fail", 1),
    ("{metric: user.absent, min: 0.7}", "missing", 1),
    # against another bundle
    ("{metric: accuracy, vs: reference, max_regression: 2pp}", "pass", 0),
    ("{metric: accuracy, vs: reference, max_regression: 1pp}", "inconclusive", 4),
    ("{metric: accuracy, vs: reference, max_regression: 0pp}", "fail", 1),
    ("{metric: loss, vs: reference, max_regression: 0.05}", "pass", 0),
    ("{metric: loss, vs: reference, max_regression: 0.001}", "fail", 1),
    ("{metric: f1, vs: reference, max_regression: 2pp}", "pass", 0),
    ("{metric: calibration_error, vs: reference, max_regression: 3pp}", "pass", 0),
    ("{metric: worst_class, vs: reference, max_regression: 5pp}", "pass", 0),
    ("{metric: worst_class, vs: reference, max_regression: 1pp}", "inconclusive", 4),
    ("{metric: worst_slice, vs: reference, max_regression: 5pp}", "pass", 0),
    ("{metric: worst_slice, vs: reference, max_regression: 0.1pp}", "fail", 1),
    ("{metric: int8_share, vs: reference, max_regression: 0pp}", "pass", 0),
    ("{metric: robustness.mean, vs: reference, max_regression: 2pp}", "pass", 0),
    ("{metric: robustness.blur.3, vs: reference, max_regression: 0.1pp}", "fail", 1),
    ("{metric: size, vs: reference, max_ratio: 0.25}", "pass", 0),
    ("{metric: size, vs: reference, max_ratio: 0.2}", "fail", 1),
    ("{metric: memory, vs: reference, max_ratio: 1.1}", "pass", 0),
    ("{metric: latency.p50, vs: reference, max_ratio: 0.6}", "pass", 0),
    ("{metric: latency.p90, vs: reference, max_ratio: 0.5}", "inconclusive", 4),
    ("{metric: latency.p50, vs: reference, max_ratio: 0.4}", "fail", 1),
    ("{metric: latency.p50, vs: float, max_ratio: 1.0}", "missing", 1),
    ("{metric: user.drift, vs: reference, max_ratio: 2.0}", "pass", 0),
    ("{metric: size, vs: baseline, max_ratio: 1.0}", "missing", 1),
    ("{metric: size, vs: previous, max_ratio: 1.0}", "missing", 1),
    # what the clause wishes
    ("{metric: size, max: 999 kB, severity: warn}", "warn", 0),
    ("{metric: size, vs: baseline, max_ratio: 1.0, on_missing: warn}", "missing", 0),
    ("{metric: size, vs: baseline, max_ratio: 1.0, on_missing: pass}", "missing", 0),
    ("{metric: size, vs: baseline, max_ratio: 1.0, severity: warn}", "missing", 0),
    ("{metric: accuracy, min: 93%, on_inconclusive: fail}", "inconclusive", 1),
    ("{metric: accuracy, min: 93%, on_inconclusive: warn}", "inconclusive", 0),
    ("{metric: accuracy, min: 93%, on_inconclusive: pass}", "inconclusive", 0),
    ("{metric: accuracy, min: 93%, severity: warn}", "inconclusive", 0),
    ("{metric: accuracy, min: 92%, confidence: 0.999}", "inconclusive", 4),
    ("{metric: size, target: jetson, max: 2 MB}", "missing", 1),
    ("{metric: size, backend: openvino, max: 2 MB}", "missing", 1),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return made.write(tmp_path_factory.mktemp("run"))


def judged(folder: Path, clauses: str, *options: str):
    """The exit code, what was said, and gate.json."""
    gate = folder / "gate.yaml"
    gate.write_text(clauses if clauses.startswith("version") else f"version: 1\ngate:\n  - {clauses}\n")
    out = folder / "gate.json"
    out.unlink(missing_ok=True)
    done = CliRunner().invoke(app, ["gate", str(folder), "--clauses", str(gate), "--quiet", *options])
    return done, read_gate(out) if out.exists() else None


@pytest.mark.parametrize(("clause", "verdict", "code"), ROWS, ids=[row[0] for row in ROWS])
def test_every_kind_of_clause(folder, clause, verdict, code):
    done, gate = judged(folder, clause)
    assert gate is not None, done.output
    (one,) = gate.judgements
    assert (one.verdict, done.exit_code, one.exit_code, gate.exit_code) == (verdict, code, code, code), one.reason
    assert one.line == 3
    assert Path(one.file) == folder / "gate.yaml"
    assert one.reason
    if verdict in ("pass", "fail", "warn", "inconclusive"):
        seen = one.observed
        assert seen.low <= seen.value <= seen.high
        assert one.limit is not None


@pytest.mark.parametrize(
    ("clause", "state", "verdict", "code"),
    [
        ("{metric: latency.p50, max: 11 ms}", HOT, "invalid", 3),
        ("{metric: throughput, min: 1}", HOT, "invalid", 3),
        ("{metric: cold_start, max: 9 s}", HOT, "invalid", 3),
        ("{metric: latency.p50, vs: reference, max_ratio: 1}", HOT, "invalid", 3),
        ("{metric: size, max: 2 MB}", HOT, "pass", 0),
        ("{metric: accuracy, min: 90%}", HOT, "pass", 0),
        ("{metric: latency.p50, max: 11 ms}", SLOW, "invalid", 3),
        ("{metric: latency.p50, vs: reference, max_ratio: 1}", SLOW, "pass", 0),
    ],
)
def test_a_bad_state_of_the_device_is_no_failure(tmp_path, clause, state, verdict, code):
    made.write(tmp_path, made.report(made.result(**state), made.result("reference")))
    done, gate = judged(tmp_path, clause)
    assert (gate.judgements[0].verdict, done.exit_code) == (verdict, code), gate.judgements[0].reason


def test_all_clauses_are_judged_and_the_worst_code_wins(folder):
    clauses = "version: 1\ngate:\n" + "".join(
        f"  - {clause}\n"
        for clause in (
            "{metric: accuracy, min: 93%}",
            "{metric: size, max: 999 kB}",
            "{metric: memory, max: 100 MB}",
            "{metric: size, vs: previous, max_ratio: 1.0}",
        )
    )
    done, gate = judged(folder, clauses)
    assert [one.verdict for one in gate.judgements] == ["inconclusive", "fail", "pass", "missing"]
    assert done.exit_code == 1
    assert [one.line for one in gate.judgements] == [3, 4, 5, 6]


def test_clauses_of_the_recipe_are_judged_without_a_file(folder):
    done = CliRunner().invoke(app, ["gate", str(folder / "report.json"), "--json"])
    assert done.exit_code == 0, done.output
    (one,) = json.loads(done.stdout)["judgements"]
    assert (one["metric"], one["kind"], one["verdict"], one["file"], one["line"]) == (
        "size", "max", "pass", "recipe.yaml", 3,
    )  # fmt: skip


def test_an_inconclusive_accuracy_says_how_many_samples_would_tell(folder):
    _, gate = judged(folder, "{metric: accuracy, vs: reference, max_regression: 1.2pp}")
    (one,) = gate.judgements
    assert one.verdict == "inconclusive"
    seen = one.observed
    assert one.samples_needed == pytest.approx(made.N * ((seen.high - seen.value) / (0.012 - seen.value)) ** 2, abs=1)
    assert f"about {one.samples_needed:,} samples would tell" in one.reason


def test_p99_of_twenty_runs_is_no_number(tmp_path):
    few = made.result(latency_s=made.Latency(p50=made.Bounds(value=0.01, low=0.009, high=0.011), n=20))
    made.write(tmp_path, made.report(few))
    done, gate = judged(tmp_path, "{metric: latency.p99, max: 1 s}")
    assert (gate.judgements[0].verdict, done.exit_code) == ("missing", 1)
    assert "20 samples are too few for p99" in gate.judgements[0].reason


def test_samples_that_are_not_the_report_s_are_not_judged(tmp_path):
    made.write(tmp_path)
    np.save(tmp_path / "samples" / "quantized.npy", made.samples(n=50))
    done, gate = judged(tmp_path, "{metric: latency.p50, max: 1 s}")
    assert (gate.judgements[0].verdict, done.exit_code) == ("missing", 1)
    assert "has 50 samples, the report says 2000" in gate.judgements[0].reason


def test_without_the_samples_the_stored_interval_is_judged(tmp_path):
    made.write(tmp_path)
    (tmp_path / "samples" / "quantized.npy").unlink()
    _, gate = judged(tmp_path, "{metric: latency.p90, max: 11 ms}")
    seen = gate.judgements[0].observed
    assert (seen.value, seen.low, seen.high) == (0.0107, 0.0106, 0.0108)
    _, gate = judged(tmp_path, "{metric: throughput, min: 1}")
    assert gate.judgements[0].verdict == "missing"


def test_previous_is_another_report(tmp_path):
    now, then = tmp_path / "now", tmp_path / "then"
    made.write(now)
    made.write(then, wrong={"quantized": 80})
    clauses = (
        "version: 1\ngate:\n  - {metric: size, vs: previous, max_ratio: 1.0}\n"
        "  - {metric: accuracy, vs: previous, max_regression: 1pp}\n"
        "  - {metric: latency.p50, vs: previous, max_regression: 5%}\n"
    )
    done, gate = judged(now, clauses, "--previous", str(then))
    assert [one.verdict for one in gate.judgements] == ["pass", "fail", "missing"]
    assert "two sessions' times do not compare" in gate.judgements[2].reason
    assert gate.previous.path == str(then / "report.json")
    assert done.exit_code == 1


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"fingerprint": "e" * 64}, "its device was local (eeeeeeeeeeee), now it is local (ffffffffffff)"),
        ({"threads": 4}, "its threads was 4, now it is 1"),
        ({"versions": {"onnxruntime": "1.22"}}, "its onnxruntime was 1.22, now it is 1.23"),
    ],
)
def test_another_device_or_version_is_not_comparable(tmp_path, change, reason):
    now, then = tmp_path / "now", tmp_path / "then"
    made.write(now)
    device = made.result().device.model_copy(update=change)
    made.write(then, made.report(made.result(device=device)))
    done, gate = judged(now, "{metric: accuracy, vs: previous, max_regression: 1pp}", "--previous", str(then))
    assert (gate.judgements[0].verdict, done.exit_code) == ("missing", 1)
    assert gate.judgements[0].reason == f"no comparable previous: {reason}"


BAD_CLAUSES = [
    ("{metric: acuracy, min: 90%}", "gate.yaml:3: gate[0]: Unknown gate metric 'acuracy'. Did you mean 'accuracy'?"),
    ("{metric: size, max: 10 ms}", "gate.yaml:3: gate[0]: '10 ms' is not a size."),
    ("{metric: latency.p50, max: 2 MB}", "gate.yaml:3: gate[0]: '2 MB' is not a duration."),
    ("{metric: accuracy, max: 2 MB}", "gate.yaml:3: gate[0]: '2 MB' is not a share."),
    ("{metric: energy, max: 2 MB}", "gate.yaml:3: gate[0]: '2 MB' is not an energy."),
    ("{metric: user.drift, max: 2 kg}", "gate.yaml:3: user.drift: max: '2 kg' is not a number of mm."),
    ("{metric: size}", "gate.yaml:3: gate[0]: the gate clause on 'size' without 'vs' needs min or max, got no limit."),
    ("{metric: size, max_ratio: 1}", "without 'vs' needs min or max, got max_ratio"),
    ("{metric: size, min: 3 MB, max: 2 MB}", "nothing could pass"),
    ("{metric: size, max: .nan}", "gate.yaml:3"),
    ("{metric: size, max: -1 MB}", "size is never negative"),
    ("{metric: latency, max: 2 ms}", "needs a percentile"),
    ("{metric: latency, percentile: 80, max: 2 ms}", "percentile 80 is not measured"),
    ("{metric: size, percentile: 90, max: 2 MB}", "only the metric 'latency' has a percentile"),
    ("{metric: throughput, vs: reference, max_ratio: 1}", "'throughput' is not compared between bundles"),
    ("{metric: user.x, vs: reference, max_regression: 1%}", "does not know whether more of 'user.x' is better"),
    ("{metric: accuracy, confidence: 1.5, min: 0.5}", "gate.yaml:3: gate[0].confidence"),
    ("version: 1\ngate:\n  - {metric: size, max: 2 MB}\n  - {metric: size, max: 3 MB}\n",
     "gate.yaml:4: gate[1]: max of 'size' is limited twice, first in line 3. Keep one."),
    ("version: 1\ngate:\n  - {metric: size, max: 2 MB}\n  - {metric: size, min: 3 MB}\n",
     "gate.yaml:4: gate[1]: no 'size' is at least 3e+06 and at most 2e+06."),
    ("version: 2\ngate: []\n", "gate.yaml:1: version"),
    ("version: 1\ngate: []\n", "there is no clause under `gate`"),
    ("version: 1\nclauses: []\n", "gate.yaml:2: clauses"),
]  # fmt: skip


@pytest.mark.parametrize(("clauses", "message"), BAD_CLAUSES, ids=[row[1] for row in BAD_CLAUSES])
def test_a_bad_clause_is_one_message(folder, clauses, message):
    done, gate = judged(folder, clauses)
    assert done.exit_code == 2, done.output
    assert gate is None
    assert message in done.stderr
    assert "Traceback" not in done.output


def spoil(text: str, old: str, new: str) -> str:
    assert old in text
    return text.replace(old, new, 1)


BAD_REPORTS = [
    (lambda t: t[: len(t) // 2], "not valid JSON"),
    (lambda t: "", "not valid JSON"),
    (lambda t: "[" * 100_000, "not valid JSON"),
    (lambda t: "[]", "schema_version is None"),
    (lambda t: spoil(t, '"schema_version": 1', '"schema_version": 7'), "schema_version is 7, this edgekit reads 1"),
    (lambda t: spoil(t, '"value": 0.01,', '"value": NaN,'), "latency_s.p50.value"),
    (lambda t: spoil(t, '"value": 0.01,', '"value": 1e999,'), "latency_s.p50.value"),
    (lambda t: spoil(t, '"low": 0.0099', '"low": -0.0099'), "negative"),
    (lambda t: spoil(t, '"low": 0.0099', '"low": 0.5'), "low 0.5 is above high"),
    (lambda t: spoil(t, '"size_bytes": 1000000', '"size_bytes": -1'), "size_bytes"),
    (lambda t: spoil(t, '"role": "quantized"', '"role": "best"'), "role"),
    (lambda t: spoil(t, '"targets"', '"tragets"'), "tragets"),
]


@pytest.mark.parametrize(("change", "message"), BAD_REPORTS, ids=[row[1] for row in BAD_REPORTS])
def test_a_bad_report_is_one_message(tmp_path, change, message):
    made.write(tmp_path)
    file = tmp_path / "report.json"
    file.write_text(change(file.read_text()))
    done, gate = judged(tmp_path, "{metric: size, max: 2 MB}")
    assert (done.exit_code, gate) == (2, None), done.output
    assert message in done.stderr and "report.json" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_files_outside_of_the_report_s_folder_are_not_read(tmp_path):
    made.write(tmp_path / "run", made.report(made.result(predictions_file="../other.npz"), made.result("reference")))
    (tmp_path / "run" / "predictions" / "quantized.npz").rename(tmp_path / "other.npz")
    done, gate = judged(tmp_path / "run", "{metric: accuracy, vs: reference, max_regression: 2pp}")
    assert (gate.judgements[0].verdict, done.exit_code) == ("missing", 1)
    assert "lies outside of the report's folder" in gate.judgements[0].reason


def test_a_broken_predictions_file_is_missing_and_the_others_are_judged(tmp_path):
    made.write(tmp_path)
    (tmp_path / "predictions" / "reference.npz").write_bytes(b"PK\3\4 not a zip")
    clauses = (
        "version: 1\ngate:\n  - {metric: accuracy, vs: reference, max_regression: 2pp}\n  - {metric: size, max: 2 MB}\n"
    )
    done, gate = judged(tmp_path, clauses)
    assert [one.verdict for one in gate.judgements] == ["missing", "pass"]
    assert "not a predictions file" in gate.judgements[0].reason
    assert done.exit_code == 1


def test_outputs_that_cannot_be_written_are_refused_first(folder):
    for options, message in (
        (("--out", str(folder)), "is a folder"),
        (("--out", "/nowhere/gate.json"), "there is no folder"),
        (("--badge", str(folder / "x.png")), "a badge is an .svg"),
        (("--annotations", "gitlab"), "use auto, github or none"),
        (("--junit", str(folder / "x"), "--markdown", str(folder / "x")), "written to the same file"),
    ):
        done = CliRunner().invoke(app, ["gate", str(folder), *options])
        assert done.exit_code == 2 and message in done.stderr, done.output


def test_names_cannot_act_on_the_terminal(tmp_path):
    evil = "net\x1b]0;pwned\x07\x1b[2J"
    value = made.report(made.result(target=evil), made.result("reference", target=evil))
    entry = value.targets[0].model_copy(update={"target": evil})
    made.write(tmp_path, value.model_copy(update={"targets": (entry,)}))
    done, _ = judged(tmp_path, "{metric: size, max: 2 MB}")
    assert done.exit_code == 0
    assert "\x1b" not in done.output and "\x07" not in done.output


def test_what_is_read_is_not_written_over(tmp_path):
    made.write(tmp_path)
    report, clauses = tmp_path / "report.json", tmp_path / "gate.yaml"
    clauses.write_text("version: 1\ngate: [{metric: size, max: 1 MB}]\n")
    (tmp_path / "link.json").symlink_to(report)
    before = report.read_bytes(), clauses.read_bytes()
    for option, path in (("--out", report), ("--out", tmp_path / "link.json"), ("--junit", clauses)):
        done = CliRunner().invoke(app, ["gate", str(tmp_path), "--clauses", str(clauses), option, str(path)])
        assert done.exit_code == 2 and "it is read, and would be written over" in done.stderr, done.output
    spelt = tmp_path / ".." / tmp_path.name / "x"
    same = ["--junit", str(spelt), "--markdown", str(tmp_path / "x")]
    done = CliRunner().invoke(app, ["gate", str(tmp_path), "--clauses", str(clauses), *same])
    assert done.exit_code == 2 and "written to the same file" in done.stderr
    assert (report.read_bytes(), clauses.read_bytes()) == before


def test_a_pipe_or_a_device_is_not_replaced_by_a_file(folder, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for option in ("--out", "--junit", "--history"):
        done = CliRunner().invoke(app, ["gate", str(folder), option, str(tmp_path / "pipe")])
        assert done.exit_code == 2 and "no plain file" in done.stderr, done.output
    with pytest.raises(OSError, match="no plain file"):
        write_text(tmp_path / "pipe", "x")
    assert (tmp_path / "pipe").is_fifo()
    assert is_special(Path("/dev/stdout")) and is_special(Path("/dev/null"))


def test_a_summary_that_cannot_be_written_is_refused_first(folder, tmp_path, monkeypatch):
    clauses, out = tmp_path / "gate.yaml", tmp_path / "gate.json"
    clauses.write_text("version: 1\ngate: [{metric: size, max: 1 MB}]\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", "/nowhere/summary.md")
    done = CliRunner().invoke(app, ["gate", str(folder), "--clauses", str(clauses), "--out", str(out)])
    assert done.exit_code == 2 and "GITHUB_STEP_SUMMARY: /nowhere/summary.md" in done.stderr
    assert not out.exists()


COMMANDS = ("::set-output name=verdict::pass", "##[set-output name=verdict]pass", "a\n::stop-commands::x")
"""What GitHub's runner obeys: at the beginning of a line after blanks, or anywhere in one."""


def obeyed(log: str) -> list[str]:
    """Lines that the runner takes for commands (ActionCommand.cs of actions/runner)."""
    return [line for line in log.splitlines() if line.lstrip().startswith("::") or "##[" in line]


@pytest.mark.parametrize("name", COMMANDS)
def test_names_are_no_commands_in_a_job_s_log(tmp_path, name):
    value = made.report(made.result(target=name), made.result("reference", target=name))
    value = value.model_copy(update={"targets": (value.targets[0].model_copy(update={"target": name}),)})
    made.write(tmp_path, value)
    quoted = json.dumps(name)
    done, gate = judged(tmp_path, f"{{metric: size, max: 2 MB, target: {quoted}}}")
    assert gate.judgements[0].target == name and done.exit_code == 0 and not obeyed(done.output)
    done, _ = judged(tmp_path, f"{{metric: user.{'x' * 80}, target: {quoted}, max: 1}}")
    assert done.exit_code == 1 and not obeyed(done.output)
    done, _ = judged(tmp_path, "{metric: size, max: 2 MB}", "--json")
    assert json.loads(done.stdout)["judgements"][0]["target"] == name and not obeyed(done.output)
    done = CliRunner().invoke(app, ["gate", str(tmp_path), "--clauses", str(unknown_key(tmp_path, quoted))])
    assert done.exit_code == 2 and "unknown key" in done.output and not obeyed(done.output)


def unknown_key(folder: Path, quoted: str) -> Path:
    path = folder / "unknown.yaml"
    path.write_text(f"version: 1\n{quoted}: 1\ngate: []\n")
    return path


def test_a_gate_imports_nothing_heavy_and_stays_small(folder):
    code = (
        "import re, sys\n"
        "from edgekit.cli import main\n"
        "sys.argv = ['edgekit', 'gate', sys.argv[1], '--quiet']\n"
        "try:\n    main()\nexcept SystemExit as end:\n    code = end.code\n"
        "heavy = {'torch', 'onnx', 'onnxruntime', 'openvino', 'ai_edge_litert', 'tensorrt', 'scipy', 'PIL'}\n"
        "peak = re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1]\n"
        "print(code, sorted(heavy & set(sys.modules)), peak)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True)
    code, heavy, kilobytes = done.stdout.splitlines()[-1].replace("[]", "none").split()
    assert (code, heavy) == ("0", "none"), done.stdout
    assert int(kilobytes) < 100_000


def with_bundle(folder: Path, bundle, **more) -> Path:
    """A run whose bundle lies beside its report."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(bundle.path, folder / "x.edge")
    facts = {"bundle": "x.edge", "bundle_sha256": bundle.sha256, "target": "x86-64", **more}
    target = made.report().targets[0].model_copy(update={"target": "x86-64"})
    value = made.report(made.result(**facts), made.result("reference", target="x86-64"), targets=(target,))
    return made.write(folder, value)


def other_file(bundle, path: Path):
    """The same model in another bundle."""
    with tempfile.TemporaryDirectory() as temporary:
        files = {file.name: file for file in extract_model(bundle, Path(temporary))}
        manifest = bundle.manifest.model_copy(update={"members": {}})
        golden = read_golden(bundle, "inputs"), read_golden(bundle, "outputs")
        return write_bundle(path, manifest, files, *golden, extra={"note.txt": b"another"})


def test_a_bundle_that_is_not_the_one_that_was_measured(tmp_path):
    bundle = small.bundle(tmp_path)
    run = with_bundle(tmp_path / "run", bundle)
    assert judged(run, "{metric: size, max: 2 MB}")[0].exit_code == 0
    shutil.copy(other_file(bundle, tmp_path / "other.edge").path, run / "x.edge")
    done, gate = judged(run, "{metric: size, max: 2 MB}")
    assert (done.exit_code, gate) == (8, None)
    assert "it is not the bundle that was measured" in done.stderr
    (run / "x.edge").write_bytes(b"PK")
    assert judged(run, "{metric: size, max: 2 MB}")[0].exit_code == 8


def test_a_signature_can_be_demanded(tmp_path):
    pytest.importorskip("cryptography", reason="the extra `sign`")
    from edgekit.signing import generate, load_private, sign

    run = with_bundle(tmp_path / "run", small.bundle(tmp_path))
    keys = {}
    for name in ("ours", "theirs"):
        keys[name] = tmp_path / f"{name}.pem", tmp_path / f"{name}.pub"
        generate(*keys[name])
    demand = "--require-signature", str(keys["ours"][1])
    done, _ = judged(run, "{metric: size, max: 2 MB}", *demand)
    assert done.exit_code == 8 and "it is not signed" in done.stderr
    sign(run / "x.edge", load_private(keys["theirs"][0]))
    assert judged(run, "{metric: size, max: 2 MB}", *demand)[0].exit_code == 8
    assert (
        judged(run, "{metric: size, max: 2 MB}", *demand, "--require-signature", str(keys["theirs"][1]))[0].exit_code
        == 0
    )
    (run / "x.edge").unlink()
    done, _ = judged(run, "{metric: size, max: 2 MB}", *demand)
    assert done.exit_code == 8 and "a signature is demanded" in done.stderr


@pytest.mark.slow
def test_relative_latency_is_measured_again_side_by_side(tmp_path):
    bundle = small.bundle(tmp_path)
    now, then = with_bundle(tmp_path / "now", bundle), tmp_path / "then"
    other = other_file(bundle, tmp_path / "other.edge")
    with_bundle(then, other)
    clauses = (
        "version: 1\ngate:\n  - {metric: latency.p50, vs: previous, max_ratio: 50}\n"
        "  - {metric: latency.p50, vs: previous, max_ratio: 0.02}\n"
        "  - {metric: latency.p50, vs: reference, max_ratio: 1}\n"
    ).replace("max_ratio: 0.02", "max_ratio: 0.02, severity: warn")
    done, gate = judged(now, clauses, "--previous", str(then), "--device", "local")
    assert [one.verdict for one in gate.judgements] == ["pass", "warn", "missing"], done.output
    seen = gate.judgements[0].observed
    assert seen == gate.judgements[1].observed  # the same rounds
    assert (seen.n, seen.unit, gate.device) == (6, "ratio", "local")
    assert "does not lie beside the report" in gate.judgements[2].reason
    _, gate = judged(
        now, "{metric: latency.p50, vs: previous, max_ratio: 50}", "--previous", str(now), "--device=local"
    )
    assert (gate.judgements[0].observed.value, gate.judgements[0].observed.n) == (1.0, 1)  # the same file


def test_devices_that_are_not_timed_or_unknown(tmp_path):
    run = with_bundle(tmp_path / "run", small.bundle(tmp_path))
    clause = "{metric: latency.p50, vs: previous, max_ratio: 50}"
    done, gate = judged(run, clause, "--previous", str(run), "--device", "nowhere")
    assert (done.exit_code, gate) == (2, None) and "Unknown device 'nowhere'" in done.stderr
    done, gate = judged(run, clause, "--previous", str(run), "--device", "emulated-cortex-a72")
    assert (done.exit_code, gate) == (3, None) and "is emulated" in done.stderr


class Throttling(Local):
    """This machine, whose first measurements say what a board says that was short of power; all else is real."""

    bad = 1

    def pairs(self, *args, **kwargs):
        taken = super().pairs(*args, **kwargs)
        if type(self).bad == 0:
            return taken
        type(self).bad -= 1
        state = {"before": {}, "after": {"throttled": {"now": ["under-voltage"]}}}
        return replace(taken, info=tuple({**info, "a": {**info["a"], "state": state}} for info in taken.info))


@pytest.mark.slow
@pytest.mark.parametrize(("retries", "verdict", "code", "attempts"), [(0, "invalid", 3, 1), (2, "pass", 0, 2)])
def test_what_was_measured_in_a_bad_state_is_measured_again(tmp_path, monkeypatch, retries, verdict, code, attempts):
    bundle = small.bundle(tmp_path)
    now, then = with_bundle(tmp_path / "now", bundle), tmp_path / "then"
    with_bundle(then, other_file(bundle, tmp_path / "other.edge"))
    monkeypatch.setattr(Throttling, "bad", 1)
    monkeypatch.setattr(remeasure, "open_device", lambda name, **_: Throttling())
    monkeypatch.setattr(gating, "RETRY_AFTER_S", 0)
    clause = "{metric: latency.p50, vs: previous, max_ratio: 50}"
    options = "--previous", str(then), "--device", "local", "--retry-invalid", str(retries)
    done, gate = judged(now, clause, *options)
    assert (gate.judgements[0].verdict, done.exit_code, gate.attempts) == (verdict, code, attempts), done.output
    if verdict == "invalid":
        assert "under-voltage" in gate.judgements[0].reason
