"""`edgekit baseline accept|show|diff|history`, and a gate against what was accepted."""

from __future__ import annotations

import json
from pathlib import Path

import accepted_runs as runs
import pytest
from typer.testing import CliRunner

from edgekit.cli.app import app
from edgekit.report.verdicts import read_gate


def said(*words: object) -> str:
    answer = CliRunner().invoke(app, ["baseline", *map(str, words)])
    assert answer.exit_code == 0, answer.output
    return answer.output


@pytest.fixture
def accepted(tmp_path: Path) -> Path:
    said("accept", runs.run(tmp_path / "run"), "--baselines", tmp_path / "baselines", "--reason", "first")
    return tmp_path / "baselines"


def test_accept_show_and_history(accepted, tmp_path):
    shown = said("show", accepted, "--check")
    for text in ("net on pc", "first", "1.00 MB", "93.00 %", "onnxruntime 1.23", "2 objects of the stores are intact"):
        assert text in shown
    new = runs.run(tmp_path / "new", content=b"new", wrong=150)
    (row,) = json.loads(said("accept", new, "--baselines", accepted, "--json"))["accepted"]
    assert (row["what"], row["store"]) == ("changed", "store")
    assert said("history", accepted).count("2026-01-01") == 2
    (history,) = json.loads(said("history", accepted, "--json"))["histories"]
    assert history["entries"][0]["accuracy_change"] == pytest.approx(-0.005)
    (value,) = json.loads(said("show", accepted, "--json"))["baselines"]
    assert value["backends"]["onnxruntime"]["size_bytes"] == 1_000_000


def test_diff_writes_nothing_and_says_what_would_change(accepted, tmp_path):
    before = {path: path.read_bytes() for path in accepted.rglob("*") if path.is_file()}
    assert "the same bundle, nothing changes" in said("diff", accepted, tmp_path / "run")
    new = runs.run(tmp_path / "new", content=b"new", wrong=150, device=runs.device(threads=4))
    text = said("diff", accepted, new)
    assert "threads was 1, now it is 4" in text
    assert "93.00 % [91.88, 94.12], n = " not in text
    assert "accuracy           93.00 % [91.88, 94.12]  ->  92.50 %" in text
    (difference,) = json.loads(said("diff", accepted, new, "--json"))["differences"]
    names = {change["name"] for change in difference["changes"]}
    assert "accuracy" in names
    assert "size" not in names
    assert {path: path.read_bytes() for path in accepted.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("clause", "changes", "verdict", "code"),
    [
        ("{metric: accuracy, vs: baseline, max_regression: 1pp}", {"wrong": 142}, "pass", 0),
        ("{metric: accuracy, vs: baseline, max_regression: 1pp}", {"wrong": 240}, "fail", 1),
        ("{metric: accuracy, vs: baseline, max_regression: 1pp}", {"device": runs.device(threads=2)}, "missing", 1),
        ("{metric: accuracy, vs: baseline, max_regression: 1pp}", {"data": "cd" * 32}, "missing", 1),
        ("{metric: size, vs: baseline, max_ratio: 1.0}", {}, "pass", 0),
        ("{metric: size, vs: baseline, max_ratio: 1.0}", {"size_bytes": 1_000_001}, "fail", 1),
        ("{metric: size, vs: baseline, max_ratio: 1.0}", {"target": "phone"}, "missing", 1),
        ("{metric: latency.p50, vs: baseline, max_ratio: 1.0}", {"content": b"new"}, "missing", 1),
    ],
)
def test_a_gate_against_the_baseline(accepted, tmp_path, clause, changes, verdict, code):
    now = runs.run(tmp_path / "now", **changes)
    (now / "gate.yaml").write_text(f"version: 1\ngate:\n  - {clause}\n")
    words = ["gate", str(now), "--clauses", str(now / "gate.yaml"), "--baselines", str(accepted)]
    answer = CliRunner().invoke(app, words)
    (judgement,) = read_gate(now / "gate.json").judgements
    assert (judgement.verdict, answer.exit_code) == (verdict, code), answer.output


def test_credentials_reach_neither_file_nor_message(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # fsspec takes a user in a file URL for a folder
    pytest.importorskip("fsspec")
    run = runs.run(tmp_path / "run")
    text = said("accept", run, "--baselines", tmp_path / "b", "--store", f"file://me:hunter2@/{tmp_path}/s?key=hunter2")
    assert "hunter2" not in text + "".join(path.read_text() for path in (tmp_path / "b").glob("*.yaml"))


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["show", "absent"], 2),
        (["accept", "absent"], 2),
        (["accept", "run", "--target", "phone"], 2),
        (["accept", "run", "--store", "oci://127.0.0.1:9/x"], 5),
        (["accept", "run", "--baselines", "run/report.json"], 2),
        (["show", "--check"], 8),
        (["diff", "baselines", "absent"], 2),
    ],
)
def test_exit_codes(accepted, tmp_path, monkeypatch, words, code):
    monkeypatch.chdir(tmp_path)
    for kept in (accepted / "store").rglob("*"):
        if kept.is_file() and "--check" in words:
            kept.unlink()
    answer = CliRunner().invoke(app, ["baseline", *words])
    assert answer.exit_code == code, answer.output
    assert "Traceback" not in answer.output
