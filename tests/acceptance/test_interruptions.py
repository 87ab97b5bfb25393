"""Ctrl-C in every phase ends with 130 and leaves nothing half-written; `--resume` goes on."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

pytestmark = pytest.mark.slow


@pytest.fixture
def recipe(repo_root, tmp_path):
    """The shortest example with fewer test images, and without its gate: how good int8 is is not the question."""
    folder = repo_root / "examples/fashion_mnist"
    for name in ("model.py", "weights.safetensors"):
        (tmp_path / name).symlink_to(folder / name)
    text = (folder / "quantize.yaml").read_text().partition("gate:")[0]
    path = tmp_path / "recipe.yaml"
    path.write_text(text.replace("../../calibration_data/", ""))
    card = shutil.copytree(repo_root / "calibration_data/fashion_mnist", tmp_path / "fashion_mnist") / "card.yaml"
    card.write_text(card.read_text().replace("test: {file: test.npz}", "test: {file: test.npz, rows: [0, 3000]}"))
    return path


def start(recipe, out, *options):
    return subprocess.Popen(
        [sys.executable, "-m", "edgekit", "run", str(recipe), "--out", str(out), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )


def interrupted_at(process, line):
    """Ctrl-C as soon as a line of progress starts like this; everything that came on stderr."""
    seen = []
    for text in process.stderr:
        seen.append(text)
        if text.startswith(line):
            break
    else:
        pytest.fail(f"{line!r} never came: {''.join(seen)}")
    time.sleep(0.5)
    return "".join(seen) + ended(process)


def interrupted_in(process, out, pattern):
    """Ctrl-C as soon as a file matches; everything that came on stderr."""
    deadline = time.monotonic() + 300
    while not list(out.glob(pattern)) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    return ended(process)


def ended(process):
    process.send_signal(signal.SIGINT)
    said = process.stderr.read()
    assert process.wait(60) == 130, said
    assert process.stdout.read() == ""
    return said


def test_ctrl_c_in_every_phase_and_resume(recipe, tmp_path):
    out = tmp_path / "out"
    said = interrupted_in(start(recipe, out), out, "work/*quantize*")
    nothing_half_written(out, said)
    assert not list(out.glob("work/*quantize*/done.json")), "an unfinished stage does not count as done"
    for phase in ("load data and model", "check quantize", "build bundles", "evaluate"):
        said = interrupted_at(start(recipe, out, "--resume"), phase)
        nothing_half_written(out, said)
        assert ("quantize: kept from the earlier run" in said) == (phase in ("build bundles", "evaluate"))
    stdout, stderr = start(recipe, out, "--resume", "--json").communicate(timeout=600)
    assert json.loads(stdout)["exit_code"] == 0
    assert "quantize: kept from the earlier run" in stderr


def nothing_half_written(out, said):
    assert "Traceback" not in said
    assert "edgekit: interrupted." in said
    assert not (out / "report.json").exists()
    assert not [p for p in out.rglob("*") if p.is_file() and p.name.endswith((".part", ".tmp"))]
