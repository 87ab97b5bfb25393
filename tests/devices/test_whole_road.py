"""From a board that has nothing to a report: a fresh account, an empty home, a Python without packages, sshd."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from boards import Board, bare_python, fresh_board

from edgekit.report.profiled import Profiles

pytestmark = pytest.mark.slow
ENTRY = [sys.executable, "-c", "from edgekit.cli import main; main()"]
BACKENDS = ("onnxruntime", "openvino", "litert")


@pytest.fixture(scope="module")
def pi() -> Iterator[Board]:
    with fresh_board() as running:
        yield running


@pytest.fixture(scope="module")
def bundles(repo_root: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The demo's model in int8 for each of the runtimes that come as wheels."""
    from edgekit.pipeline import run

    folder = tmp_path_factory.mktemp("road")
    example = repo_root / "examples" / "fashion_mnist"
    text = (example / "quantize.yaml").read_text()
    assert "backends: [onnxruntime]" in text
    text = text.replace("backends: [onnxruntime]", f"backends: [{', '.join(BACKENDS)}]")
    text = text.replace("source: model.py", f"source: {example}/model.py").replace("weights: ", f"weights: {example}/")
    recipe = folder / "recipe.yaml"
    recipe.write_text(text.replace("../../calibration_data", f"{repo_root}/calibration_data"))
    assert run(recipe, out=folder / "out").exit_code == 0
    return [folder / "out" / "bundles" / f"fashion_mnist-x86-64-{name}-quantized-int8.edge" for name in BACKENDS]


def test_from_nothing_to_a_report(pi: Board, bundles: list[Path], tmp_path: Path) -> None:
    changed = {"HOME": str(pi.host_home), "EDGEKIT_CACHE": str(tmp_path / "cache")}
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("SSH_", "XDG_", "EDGEKIT_"))}

    def edgekit(*words: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*ENTRY, *map(str, words)], env={**kept, **changed}, capture_output=True, text=True)

    assert not list(pi.home.iterdir())
    add = ("devices", "add", "pi", f"{pi.account.pw_name}@127.0.0.1", "--port", pi.port, "--python", bare_python())
    refused = edgekit(*add)
    assert refused.returncode == 5 and "is unknown" in refused.stderr, refused.stderr
    (pi.host_home / ".ssh" / "known_hosts").write_text(refused.stderr.splitlines()[-1] + "\n")
    for words in (add, ("devices", "check", "pi")):
        done = edgekit(*words)
        assert done.returncode == 0 and "none, edgekit brings them" in done.stdout, done.stderr
    assert not list(pi.home.iterdir())

    page = tmp_path / "profile.html"
    done = edgekit("profile", *bundles, "--device", "pi", "--percentile", 50, "--html", page, "--json", "--wait")
    if done.returncode == 5 and "package index cannot be reached" in done.stdout:
        pytest.skip("no package index here")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    found = Profiles.model_validate_json(done.stdout).results
    assert [one.backend for one in found] == list(BACKENDS)
    for one in found:
        assert one.device.name == "pi" and one.latency_s.p50.value > 0 and one.peak_rss_bytes > 10e6
        assert {"onnxruntime", "openvino", "ai-edge-litert"} & set(one.device.versions), one.device.versions
    assert "on pi" in page.read_text(encoding="utf-8")
    assert [path.name for path in pi.home.iterdir()] == [".cache"]

    freed = json.loads(edgekit("devices", "clean", "pi", "--json").stdout)["freed_bytes"]
    assert freed > 10e6 and not [path for path in pi.home.rglob("*") if path.is_file()]
