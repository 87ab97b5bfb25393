"""Ctrl-C ends with 130 in a stage and while measuring, and `--resume` goes on from the last finished stage."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ENTRY = [sys.executable, "-c", "from edgekit.cli import main; main()"]


def started(repo_root: Path, out: Path, *words: str) -> subprocess.Popen[str]:
    recipe = repo_root / "examples" / "fashion_mnist" / "quantize.yaml"
    command = [*ENTRY, "run", str(recipe), "--out", str(out), *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def interrupted(process: subprocess.Popen[str], out: Path, pattern: str) -> str:
    """Send SIGINT once a file that matches exists; the error text."""
    deadline = time.monotonic() + 300
    while not list(out.glob(pattern)) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 130, stderr
    assert stdout == ""
    assert "Traceback" not in stderr
    assert "edgekit: interrupted." in stderr
    assert not (out / "report.json").exists()
    return stderr


def test_ctrl_c_and_resume(repo_root, tmp_path):
    out = tmp_path / "out"
    interrupted(started(repo_root, out), out, "work/*quantize*")
    assert not list(out.glob("work/*quantize*/done.json")), "an unfinished stage does not count as done"
    interrupted(started(repo_root, out), out, "bundles/*.edge")
    process = started(repo_root, out, "--resume")
    stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr
    assert "quantize: kept from the earlier run" in stderr
    assert "Pass" in stdout
    assert (out / "report.json").is_file()
