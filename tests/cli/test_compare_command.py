"""`edgekit compare`: what it prints, and that its exit code is its verdict. The verdicts themselves are timings."""

from __future__ import annotations

import json
from pathlib import Path

import agent_bundles as small
import pytest
from typer.testing import CliRunner

from edgekit.cli.app import app
from edgekit.compare import judge, paired_ratio
from edgekit.devices.inventory import Entry, Noise, register

CODES = {"no difference": 0, "a is faster": 1, "b is faster": 1, "inconclusive": 4}


@pytest.fixture(autouse=True)
def own_inventory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEKIT_DEVICES", str(tmp_path / "devices.yaml"))


def compare(*words: object):
    return CliRunner().invoke(app, ["compare", *map(str, words), "--quiet"])


@pytest.mark.slow
def test_two_bundles_are_timed_in_turns_and_judged(tmp_path: Path) -> None:
    one, other = small.bundle(tmp_path, "one.edge"), small.bundle(tmp_path, "other.edge", batch=1)
    ended = compare(one.path, other.path, "--json", "--tolerance", "5%")
    found = json.loads(ended.stdout)
    ratio = found["ratio"]
    assert (found["a"]["sha256"], found["b"]["sha256"]) == (one.sha256, other.sha256)
    assert ratio["low"] <= ratio["value"] <= ratio["high"]
    assert ratio["value"] == pytest.approx(paired_ratio(found["rounds_s"])[0])
    assert found["verdict"] == judge(ratio["low"], ratio["high"], 0.05)
    assert ended.exit_code == CODES[found["verdict"]]
    assert len(found["rounds_s"]) in (6, 12, 24)


def test_any_ratio_is_within_a_tolerance_that_is_wide_enough(tmp_path: Path) -> None:
    one = small.bundle(tmp_path, "one.edge")
    ended = compare(one.path, one.path, "--tolerance", "99%")
    assert ended.exit_code == 0 and "no difference beyond 99.0%" in ended.stdout
    assert "one.edge takes" in ended.stdout and "on local, 6 rounds" in ended.stdout


@pytest.mark.parametrize("tolerance", ["0", "100%", "-5%", "narrow"])
def test_a_tolerance_that_is_none_is_2(tmp_path: Path, tolerance: str) -> None:
    one = small.bundle(tmp_path, "one.edge")
    ended = compare(one.path, one.path, f"--tolerance={tolerance}")
    assert ended.exit_code == 2 and ("tolerance" in ended.stderr or "'5%'" in ended.stderr)


def test_a_tolerance_below_the_board_s_noise_is_2(tmp_path: Path) -> None:
    noise = Noise(half_width=0.03, rounds=40, bundle="0" * 64, measured="2026-01-01T00:00:00Z")
    register("pi", Entry(host="127.0.0.1", noise=noise))
    one = small.bundle(tmp_path, "one.edge")
    ended = compare(one.path, one.path, "--device", "pi", "--tolerance", "5%")
    assert ended.exit_code == 2 and "6.00%" in ended.stderr


def test_what_is_no_bundle_is_8_and_no_device_2(tmp_path: Path) -> None:
    one = small.bundle(tmp_path, "one.edge")
    (tmp_path / "text.edge").write_text("no bundle")
    assert compare(one.path, tmp_path / "text.edge").exit_code == 8
    ended = compare(one.path, one.path, "--device", "locale")
    assert ended.exit_code == 2 and "'local'" in ended.stderr
