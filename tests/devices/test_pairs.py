"""Interleaved rounds, driven by a script on the device itself."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import agent_bundles as small
import numpy as np
import pytest

from edgekit.devices import _pairs

PAIRS = Path(_pairs.__file__)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / "cache"))


def pairs(a: Path, b: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(PAIRS), "3", "0.02", str(a), str(b), *options]
    return subprocess.run(command, capture_output=True, text=True)


def test_rounds_hold_four_blocks_of_raw_samples(tmp_path: Path) -> None:
    a, b = small.bundle(tmp_path / "a"), small.bundle(tmp_path / "b")
    np.save(tmp_path / "in.npy", small.samples(5))
    done = pairs(a.path, b.path, f"--inputs={tmp_path / 'in.npy'}")
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert len(seen["samples_s"]) == 3 and all(len(blocks) == 4 for blocks in seen["samples_s"])
    assert all(second > 0 for blocks in seen["samples_s"] for block in blocks for second in block)
    assert seen["a"]["distinct_inputs"] == seen["b"]["distinct_inputs"] == 5


SCRIPT = """
import json, sys
print(json.dumps({{"ready": True}}), flush=True)
for line in sys.stdin:
    print(json.dumps({{"samples_s": [{answer}, float(line)]}}), flush=True)
print(json.dumps({{"told": sys.argv[1:]}}), flush=True)
"""


def test_the_blocks_are_in_the_order_a_b_b_a(tmp_path: Path) -> None:
    """Two scripts in the place of bundles, whose answers tell which is which."""
    for name, answer in (("a", 1.0), ("b", 2.0)):
        (tmp_path / name).write_text(SCRIPT.format(answer=answer))
    seen = _pairs.pairs(str(tmp_path / "a"), str(tmp_path / "b"), 2, 0.25, ["--threads=3"])
    assert seen["samples_s"] == [[[1.0, 0.25], [2.0, 0.25], [2.0, 0.25], [1.0, 0.25]]] * 2
    assert seen["a"] == seen["b"] == {"told": ["bench", "--blocks", "--threads=3"]}


def test_a_damaged_other_bundle_ends_with_its_code(tmp_path: Path) -> None:
    a = small.bundle(tmp_path / "a")
    content = bytearray(a.path.read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "damaged.edge").write_bytes(content)
    done = pairs(a.path, tmp_path / "damaged.edge")
    assert done.returncode == 8 and done.stdout == "" and "do not match its digest" in done.stderr


def test_no_other_bundle(tmp_path: Path) -> None:
    done = pairs(small.bundle(tmp_path / "a").path, tmp_path / "absent.edge")
    assert done.returncode not in (0, 70) and done.stdout == "" and "absent.edge" in done.stderr
