"""Ctrl-C in every phase ends with 130 and leaves nothing half-written; `--resume` goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest

pytestmark = pytest.mark.slow


def start(recipe, out, *options):
    return subprocess.Popen(
        [sys.executable, "-m", "edgekit", "run", str(recipe), "--out", str(out), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )


def interrupt_after(process, line):
    """Ctrl-C as soon as a line of progress starts like this; everything that came on stderr."""
    seen = []
    for text in process.stderr:
        seen.append(text)
        if text.startswith(line):
            break
    else:
        pytest.fail(f"{line!r} never came: {''.join(seen)}")
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    rest = process.stderr.read()
    process.wait(60)
    return "".join(seen) + rest


@pytest.mark.parametrize("phase", ["load data and model", "check quantize", "build bundles", "evaluate"])
def test_ctrl_c_and_resume(repo_root, tmp_path, phase):
    recipe, out = repo_root / "examples/fashion_mnist/quantize.yaml", tmp_path / "out"
    process = start(recipe, out)
    said = interrupt_after(process, phase)
    assert process.returncode == 130, said
    assert "Traceback" not in said
    assert not (out / "report.json").exists()
    assert not [p for p in out.rglob("*") if p.is_file() and p.name.endswith((".part", ".tmp"))]
    again = start(recipe, out, "--resume", "--json")
    stdout, stderr = again.communicate(timeout=600)
    assert again.returncode == 0, stderr
    assert json.loads(stdout)["exit_code"] == 0
    assert ("kept from the earlier run" in stderr) == (phase not in ("load data and model",))


def test_a_changed_recipe_is_not_resumed(repo_root, tmp_path):
    folder = repo_root / "examples/fashion_mnist"
    text = (folder / "quantize.yaml").read_text()
    for name in ("model.py", "weights.safetensors"):
        (tmp_path / name).symlink_to(folder / name)
    text = text.replace("../../calibration_data", str(repo_root / "calibration_data"))
    (tmp_path / "a.yaml").write_text(text)
    (tmp_path / "b.yaml").write_text(text.replace("samples: 256", "samples: 128"))
    for recipe, options in (("a.yaml", ()), ("b.yaml", ("--resume",))):
        process = start(tmp_path / recipe, tmp_path / "out", *options)
        _, stderr = process.communicate(timeout=600)
        assert process.returncode == 0, stderr
    assert "kept from the earlier run" not in stderr
