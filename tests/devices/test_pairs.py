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
    assert len(seen["rounds"]) == 3
    for told in seen["rounds"]:
        turns = told["samples_s"]
        assert len(turns) >= _pairs.LEAST_TURNS and len(turns) % 2 == 1 and all(len(blocks) == 4 for blocks in turns)
        assert all(len(block) >= 3 and min(block) > 0 for blocks in turns for block in blocks)
        assert told["a"]["distinct_inputs"] == told["b"]["distinct_inputs"] == 5


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
    options = ["--threads=3", "--affinity=0"]
    seen = _pairs.pairs(str(tmp_path / "a"), str(tmp_path / "b"), 2, options, timed_s=0)
    told = {"told": ["bench", "--blocks", "--warm-up-seconds=0.1", *options]}
    turns = [[[1.0, 0.01], [2.0, 0.01], [2.0, 0.01], [1.0, 0.01]]] * 5
    assert seen == {"block_s": 0.01, "rounds": [{"a": told, "b": told, "samples_s": turns}] * 2}


def written(root: Path, files: dict[str, str]) -> str:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n")
    return str(root)


SIBLINGS = {f"cpu{n}/topology/thread_siblings_list": f"{n % 4},{n % 4 + 4}" for n in range(8)}
"""As on an x86 with four cores of two threads each."""
BIG = {f"cpu{n}/cpu_capacity": "1024" if 2 <= n < 4 else "430" for n in range(8)}
"""Two fast cores among eight."""
CLOCKS = {f"cpu{n}/cpufreq/cpuinfo_max_freq": "2400000" if n < 4 else "1800000" for n in range(8)}


@pytest.mark.parametrize(
    ("files", "threads", "expected"),
    [
        ({}, 1, [7]),
        ({}, 2, [6, 7]),
        ({}, 8, []),
        ({}, 9, []),
        (SIBLINGS, 2, [2, 3]),
        (SIBLINGS, 5, [0, 1, 2, 3, 7]),
        (BIG, 1, [3]),
        (BIG, 3, [2, 3, 7]),
        (CLOCKS, 2, [2, 3]),
        ({"cpu7/cpu_capacity": "no number"}, 1, [7]),
    ],
)
def test_both_keep_to_the_fastest_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], threads: int, expected: list[int]
) -> None:
    monkeypatch.setattr(_pairs.os, "sched_getaffinity", lambda _: set(range(8)))
    assert _pairs.processors(threads, written(tmp_path, files)) == expected


def test_only_processors_that_this_process_may_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_pairs.os, "sched_getaffinity", lambda _: {1, 2, 5})
    assert _pairs.processors(2, written(tmp_path, BIG)) == [2, 5]
    monkeypatch.delattr(_pairs.os, "sched_getaffinity")
    assert _pairs.processors(1) == []


def test_a_damaged_other_bundle_ends_with_its_code(tmp_path: Path) -> None:
    a = small.bundle(tmp_path / "a")
    (tmp_path / "damaged.edge").write_bytes(small.damaged(a))
    done = pairs(a.path, tmp_path / "damaged.edge")
    assert done.returncode == 8 and done.stdout == "" and "do not match its digest" in done.stderr


def test_no_other_bundle(tmp_path: Path) -> None:
    done = pairs(small.bundle(tmp_path / "a").path, tmp_path / "absent.edge")
    assert done.returncode not in (0, 70) and done.stdout == "" and "absent.edge" in done.stderr
