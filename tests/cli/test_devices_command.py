"""`edgekit devices` against a real sshd: what it prints, and how it ends."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import agent_bundles as small
import pytest
from boards import Board, board
from typer.testing import CliRunner

from edgekit.cli.app import app
from edgekit.devices import _wheels, inventory


@pytest.fixture(scope="module")
def pi() -> Iterator[Board]:
    with board() as running:
        running.trust()
        yield running


@pytest.fixture(autouse=True)
def host(pi: Board, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    pi.reached_from(tmp_path, monkeypatch)
    monkeypatch.setattr(_wheels, "PACKAGES", {})
    yield
    subprocess.run(["rm", "-rf", str(pi.home / ".cache")], check=True)


def devices(*words: object):
    return CliRunner().invoke(app, ["devices", *map(str, words)])


def add(pi: Board, *more: object):
    entry = pi.entry()
    return devices("add", "pi", f"{entry.user}@{entry.host}", "--port", pi.port, "--python", entry.python, *more)


def test_from_nothing_to_nothing(pi: Board, tmp_path: Path) -> None:
    assert "devices add" in devices("list").output
    added = add(pi)
    assert added.exit_code == 0 and added.output.startswith("Registered pi.")
    assert "python" in added.output and not list(pi.home.iterdir())
    assert f"127.0.0.1:{pi.port}" in devices("list").output
    checked = json.loads(devices("check", "pi", "--json").stdout)
    assert checked["facts"]["cores"] >= 1 and checked["problems"] == []
    cleaned = devices("clean", "pi", "--json")
    assert cleaned.exit_code == 0 and json.loads(cleaned.stdout)["freed_bytes"] == 0
    assert devices("remove", "pi").output == "Removed pi.\n"
    listed = json.loads(devices("list", "--json").stdout)
    assert listed and all(one["kind"] == "emulated" for one in listed.values())


def test_a_name_that_is_taken_or_unknown(pi: Board) -> None:
    assert add(pi).exit_code == 0
    again = add(pi)
    assert again.exit_code == 2 and "registered already" in again.output
    assert add(pi, "--replace").exit_code == 0
    for words in (("check", "p1"), ("remove", "p1"), ("clean", "p1"), ("calibrate", "p1", "x.edge")):
        seen = devices(*words)
        assert seen.exit_code == 2 and "Unknown registered device 'p1'" in seen.output, words
    assert devices("add", "p i", "host").exit_code == 2
    assert devices("add", "x", "-oProxyCommand=x", "--no-check").exit_code == 2
    assert devices("add", "x", "host", "--target", "nothing", "--no-check").exit_code == 2


def test_a_board_that_is_not_there_is_not_registered(pi: Board) -> None:
    seen = devices("add", "pi", "127.0.0.1", "--port", "1", "--json")
    assert seen.exit_code == 5 and json.loads(seen.stdout)["error"]["type"] == "DeviceError"
    assert inventory.load_inventory() == {}
    assert devices("add", "pi", "127.0.0.1", "--port", "1", "--no-check").exit_code == 0
    assert devices("check", "pi").exit_code == 5


def test_a_target_of_another_architecture_is_a_problem(pi: Board) -> None:
    seen = add(pi, "--target", "raspberry-pi-5")
    assert seen.exit_code == 0
    if "x86_64" in seen.output:
        assert devices("check", "pi").exit_code == 5
        assert "is aarch64, the board is x86_64" in " ".join(devices("check", "pi").output.split())


@pytest.mark.slow
def test_calibrating_stores_the_noise_and_refuses_less(pi: Board, tmp_path: Path) -> None:
    add(pi)
    bundle = small.bundle(tmp_path)
    seen = devices("calibrate", "pi", bundle.path, "--json", "--quiet")
    assert seen.exit_code == 0, seen.output
    told = json.loads(seen.stdout)
    stored = inventory.find("pi").noise
    assert stored and told["half_width"] == stored.half_width > 0 and stored.rounds == 40
    assert stored.bundle == bundle.sha256
    with pytest.raises(Exception, match="below twice its own noise"):
        inventory.check_tolerance("pi", 1.9 * stored.half_width)
    inventory.check_tolerance("pi", 2.1 * stored.half_width)
    assert "noise" in devices("list").output


@pytest.mark.slow
def test_calibrating_needs_a_bundle_and_a_real_board(pi: Board, tmp_path: Path) -> None:
    add(pi, "--emulated")
    assert devices("calibrate", "pi", tmp_path / "absent.edge").exit_code == 2
    bundle = small.bundle(tmp_path)
    assert devices("calibrate", "pi", bundle.path).exit_code == 3
    content = bytearray(bundle.path.read_bytes())
    content[len(content) // 2] ^= 1
    bundle.path.write_bytes(content)
    assert devices("calibrate", "pi", bundle.path).exit_code == 8
