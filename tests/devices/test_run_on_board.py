"""A recipe whose device is a board: everything that is measured comes from there; Ctrl-C leaves it or ends it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import agent_bundles as small
import pytest
from boards import Board, agents, board, running, until

from edgekit.devices import _wheels
from edgekit.devices.inventory import register
from edgekit.devices.local import Local
from edgekit.report.report import read_report

pytestmark = pytest.mark.slow
MAIN = (
    "from edgekit.devices import _wheels; _wheels.PACKAGES = {}\n"  # the board's Python is the one that runs the tests
    "from edgekit.cli import main; main()"
)


@pytest.fixture(scope="module")
def pi() -> Iterator[Board]:
    with board() as running_board:
        running_board.trust()
        yield running_board


@pytest.fixture(autouse=True)
def host(pi: Board, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pi.reached_from(tmp_path, monkeypatch)
    monkeypatch.setattr(_wheels, "PACKAGES", {})
    for name in ("pi", "second"):
        register(name, pi.entry(wait=True, folder=f"~/.cache/edgekit-{name if name != 'pi' else 'board'}"))


@pytest.fixture
def recipe(repo_root: Path, tmp_path: Path) -> Path:
    """The demo's model in int8 for ONNX Runtime, timed on the board."""
    example = repo_root / "examples" / "fashion_mnist"
    text = (example / "quantize.yaml").read_text()
    for old, new in (
        ("source: model.py", f"source: {example}/model.py"),
        ("weights: ", f"weights: {example}/"),
        ("../../calibration_data", f"{repo_root}/calibration_data"),
        ("backends: [onnxruntime]", "backends: [onnxruntime], device: pi"),
        ("gate:\n", "measure: {rounds: 8}\ngate:\n  - {metric: latency.p50, vs: reference, max_ratio: 50.0}\n"),
    ):
        assert old in text
        text = text.replace(old, new)
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    return path


def started(*words: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", MAIN, *map(str, words)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def measuring(pi: Board, work: str) -> Path:
    """The folder of a job on the board that does `work`, once its agent runs."""

    def seen() -> list[Path]:
        return [job for job in running(pi) if agents(job) and work in (job / "spec.json").read_text()]

    return until(seen, f"{work} on the board", 300)[0]


def test_all_comes_from_the_board(pi: Board, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgekit.pipeline import run

    def never(*_: object, **__: object) -> None:
        raise AssertionError("something was measured here")

    monkeypatch.setattr(Local, "_start", never)
    report = run(recipe, out=tmp_path / "out")
    assert report.exit_code in (0, 3), [judged.reason for judged in report.gate]
    assert [result.role for result in report.results] == ["reference", "float", "quantized"]
    for result in report.results:
        assert result.status == "measured" and result.measured_on == "pi" and result.device.name == "pi"
        assert result.latency_s.p50.value > 0 and result.accuracy.value > 0.9
    paired = {(result.role, pair.vs) for result in report.results for pair in result.paired}
    assert paired == {("float", "reference"), ("quantized", "reference"), ("quantized", "float")}
    assert next(judged for judged in report.gate if "latency" in judged.clause).verdict == "pass"
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "(pi)" in page and read_report(tmp_path / "out" / "report.json") == report


@pytest.mark.parametrize("how", ["leave", "kill"])
def test_ctrl_c_of_a_run(pi: Board, recipe: Path, tmp_path: Path, how: str) -> None:
    """The job goes on, and the same command with --resume takes it up; or it is ended with the command."""
    words = ["run", recipe, "--out", tmp_path / "out"]
    process = started(*words, *(["--kill-on-interrupt"] if how == "kill" else []))
    job = measuring(pi, '"bench"')
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130 and "edgekit: interrupted.\n" in told, told
    assert "The same command with --resume goes on from the last finished stage." in told
    if how == "kill":
        assert "What ran on pi was ended." in told and not job.exists()
        return
    assert "A job that runs on pi goes on; asking for the same again takes up its result." in told and job.exists()
    again = started(*words, "--resume")
    _, told = again.communicate(timeout=300)
    assert again.returncode in (0, 3), told
    assert "quantize: kept from the earlier run" in told
    assert not job.exists(), "its result was fetched, and it was forgotten"


def test_ctrl_c_of_a_profile_on_several_boards(pi: Board, tmp_path: Path) -> None:
    """Every device is let go of, and told of: two boards and this machine."""
    bundle = small.bundle(tmp_path)
    devices = [word for name in ("pi", "second", "local") for word in ("--device", name)]
    process = started("profile", bundle.path, *devices, "--percentile", 99.9, "--kill-on-interrupt")
    job = measuring(pi, '"bench"')
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130, told
    assert "edgekit: interrupted.\n" in told and "--resume" not in told and "Traceback" not in told
    assert "What ran on pi was ended." in told and "What ran on second was ended." in told and not job.exists()
    ours = [path for path in Path("/proc").glob("[0-9]*/cmdline") if os.fsencode(bundle.path) in _read(path)]
    assert not ours, "nothing of it runs here any more"


def _read(path: Path) -> bytes:
    for _ in range(20):
        try:
            text = path.read_bytes()
        except OSError:
            return b""
        if b"--watch" not in text:
            return text
        time.sleep(0.1)  # who watches ends by itself when the one that it watches for is gone
    return text
