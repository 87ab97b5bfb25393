"""The benchmark of gates runs, goes on where it ended, and tells what it saw. No time is asserted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


def test_it_judges_each_candidate_and_goes_on(demo, tmp_path: Path, repo_root: Path) -> None:
    report, out = demo
    if report.shipped("x86-64", "onnxruntime").role != "quantized":
        pytest.skip("int8 was not shown faster on this machine just now, so nothing of it ships")

    def python(*arguments: str) -> None:
        known = {**os.environ, "PYTHONPATH": str(repo_root)}
        done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=known)
        assert done.returncode == 0, done.stderr

    options = ["--times=1", "--slow-times=1", "--true-rounds=1", "--load=0", f"--work={tmp_path / 'work'}"]
    command = [str(repo_root / "benchmarks" / "gate_power.py"), str(out), *options, f"--out={tmp_path}"]
    for batch, kinds in (
        ("--batch=2", ["stored", "same"]),
        ("--batch=9", ["stored", "same", "slowed", "worse", "truth"]),
        ("--batch=9", ["stored", "same", "slowed", "worse", "truth"]),
    ):
        python(*command, batch)
        records = json.loads((tmp_path / "gate_power.json").read_text())
        assert [one["kind"] for one in records] == kinds
    same, slow, worse = records[1:4]
    assert (same["verdicts"]["accuracy"], same["verdicts"]["size"]) == ("pass", "pass")
    assert slow["verdicts"]["accuracy"] == "pass"
    assert (worse["code"], worse["verdicts"]) == (1, {"accuracy": "fail", "size": "pass"})
    lines = (tmp_path / "gate_power.md").read_text().splitlines()
    assert [line.split("|")[1].strip() for line in lines[-3:]] == ["same", "slowed", "worse"]
    assert len({line.count("|") for line in lines[2:]}) == 1
