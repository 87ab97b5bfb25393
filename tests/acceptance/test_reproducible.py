"""The same inputs give the same bytes, in another process, folder and order of hashes."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ENTRY = [sys.executable, "-c", "from edgekit.cli import main; main()"]
BACKENDS = {"onnxruntime": "onnxruntime", "openvino": "openvino", "litert": "litert_torch"}


def build(repo_root: Path, home: Path, seed: str) -> dict[str, str]:
    """Name and sha256 of every bundle of the smallest example, built for all runtimes in a copy of it under `home`."""
    example = home / "example"
    shutil.copytree(repo_root / "examples" / "ci", example)
    present = [name for name, package in BACKENDS.items() if find(package)]
    text = (example / "recipe.yaml").read_text()
    assert "{target: x86-64, backends: [onnxruntime], device: local}" in text
    target = f"{{target: x86-64, backends: [{', '.join(present)}]}}"
    text = text.replace("{target: x86-64, backends: [onnxruntime], device: local}", target)
    (example / "all.yaml").write_text(text)
    environment = {"PYTHONHASHSEED": seed, "EDGEKIT_CACHE": str(home / "cache"), "TMPDIR": str(home)}
    words = ["run", str(example / "all.yaml"), "--out", str(home / "out"), "--quiet"]
    done = subprocess.run([*ENTRY, *words], env={**os.environ, **environment}, capture_output=True, text=True, cwd=home)
    assert done.returncode in (0, 1), done.stderr  # the gate is not what is asked here
    bundles = sorted((home / "out" / "bundles").glob("*.edge"))
    assert len(bundles) == 3 * len(present)
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in bundles}


def find(package: str) -> bool:
    from importlib.util import find_spec

    return find_spec(package) is not None


def test_two_builds_give_the_same_bundles(repo_root, tmp_path):
    homes = [tmp_path / "a", tmp_path / "somewhere" / "else"]
    for home in homes:
        home.mkdir(parents=True)
    first, second = (build(repo_root, home, seed) for home, seed in zip(homes, ("1", "2"), strict=True))
    assert first == second
