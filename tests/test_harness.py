"""The comparison of the agent with bare loops runs and tells what it saw. No time is asserted."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import agent_bundles as small
import pytest

pytestmark = pytest.mark.slow


def test_it_writes_a_row_for_each_bundle(tmp_path: Path, repo_root: Path) -> None:
    bundle = small.bundle(tmp_path)
    script, out = repo_root / "benchmarks" / "harness.py", tmp_path / "harness.md"
    command = [sys.executable, str(script), str(bundle.path), "--rounds=3", f"--out={out}"]
    known = {**os.environ, "PYTHONPATH": str(repo_root)}
    done = subprocess.run(command, capture_output=True, text=True, env=known)
    assert done.returncode == 0, done.stderr
    header, _, row = out.read_text().splitlines()
    assert header.count("|") == row.count("|") == 10 and row.startswith("| small | bare loop | 0.0")
