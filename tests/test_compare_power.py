"""The benchmark of comparisons runs, goes on where it ended, and tells what it saw. No time is asserted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import agent_bundles as small
import pytest

pytestmark = pytest.mark.slow


def test_it_writes_a_row_for_each_kind_and_goes_on(tmp_path: Path, repo_root: Path) -> None:
    bundle = small.bundle(tmp_path)
    command = [sys.executable, str(repo_root / "benchmarks" / "compare_power.py"), str(bundle.path), "--times=1"]
    command += ["--true-rounds=1", f"--work={tmp_path / 'work'}", f"--out={tmp_path}"]
    known = {**os.environ, "PYTHONPATH": str(repo_root)}
    for options, kinds in (
        (["--batch=1"], ["against itself"]),
        ([], ["against itself", "slowed", "truth"]),
        ([], ["against itself", "slowed", "truth"]),
    ):
        done = subprocess.run([*command, *options], capture_output=True, text=True, env=known)
        assert done.returncode == 0, done.stderr
        assert [one["kind"] for one in json.loads((tmp_path / "compare_power.json").read_text())] == kinds
    lines = (tmp_path / "compare_power.md").read_text().splitlines()
    assert lines[-2].startswith("| small | itself | 1 | 1 |") and lines[-1].startswith("| small | itself with more")
    assert len({line.count("|") for line in lines[2:]}) == 1
