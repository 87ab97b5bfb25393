from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import agent_bundles as small
import pytest

from edgekit.bundle import Bundle


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return small.bundle(tmp_path / "bundle")


def selftest(bundle: Bundle, cache: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(bundle.path), "selftest"],
        env={**os.environ, "EDGEKIT_CACHE": str(cache)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_the_model_is_unpacked_once_under_the_bundles_digest(bundle: Bundle, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    assert selftest(bundle, cache).wait() == 0
    model = cache / "bundles" / bundle.sha256 / "model.onnx"
    before = model.stat()
    assert selftest(bundle, cache).wait() == 0
    assert model.stat().st_mtime_ns == before.st_mtime_ns and model.stat().st_ino == before.st_ino
    assert [path.name for path in (cache / "bundles").iterdir()] == [bundle.sha256]


@pytest.mark.parametrize("damage", [lambda p: p.write_bytes(b"bad"), lambda p: p.unlink()])
def test_a_damaged_cache_is_replaced(bundle: Bundle, tmp_path: Path, damage) -> None:
    cache = tmp_path / "cache"
    assert selftest(bundle, cache).wait() == 0
    model = cache / "bundles" / bundle.sha256 / "model.onnx"
    good = model.read_bytes()
    damage(model)
    assert selftest(bundle, cache).wait() == 0
    assert model.read_bytes() == good
    assert [path.name for path in (cache / "bundles").iterdir()] == [bundle.sha256]


def test_many_at_once_unpack_to_one(bundle: Bundle, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    together = [selftest(bundle, cache) for _ in range(6)]
    assert [process.wait() for process in together] == [0] * 6
    assert [path.name for path in (cache / "bundles").iterdir()] == [bundle.sha256]


def test_a_cache_that_cannot_be_written_says_what_to_set(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    process = selftest(bundle, tmp_path / "file")
    _, told = process.communicate()
    assert process.returncode == 2 and "EDGEKIT_CACHE" in told


def test_what_nobody_used_for_a_month_is_forgotten(bundle: Bundle, tmp_path: Path) -> None:
    home = tmp_path / "cache" / "bundles"
    for name, days in (("0" * 64, 31), ("1" * 64, 1), (".new-killed", 31)):
        (home / name).mkdir(parents=True)
        (home / name / "model.onnx").write_bytes(b"old")
        os.utime(home / name, (time.time() - days * 86400,) * 2)
    assert selftest(bundle, tmp_path / "cache").wait() == 0
    assert sorted(path.name for path in home.iterdir()) == sorted(["1" * 64, bundle.sha256])
