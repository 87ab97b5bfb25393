"""The set-up of a board in CI, taken out of the documentation and run as it stands there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import agent_bundles as small
import pytest
from boards import Board, board

pytestmark = pytest.mark.slow
EDGEKIT = """#!/bin/sh
exec {python} -c 'from edgekit.devices import _wheels; _wheels.PACKAGES = {{}}
from edgekit.cli import main; main()' "$@"
"""


@pytest.fixture(scope="module")
def pi() -> Iterator[Board]:
    with board() as running:
        yield running


def documented(repo_root: Path, kind: str) -> str:
    text = (repo_root / "docs" / "devices.md").read_text(encoding="utf-8")
    chapter = text.split("## A board in CI", 1)[1].split("\n## ", 1)[0]
    (block,) = re.findall(rf"```{kind}\n(.*?)```", chapter, re.DOTALL)
    return block


@pytest.fixture
def job(pi: Board, repo_root: Path, tmp_path: Path):
    """A checkout, a fresh home and an `edgekit` on the path; runs the job with the secrets it is given."""
    checkout, home, programs = (tmp_path / name for name in ("checkout", "home", "bin"))
    for folder in (checkout / "ci", home, programs):
        folder.mkdir(parents=True)
    (programs / "edgekit").write_text(EDGEKIT.format(python=sys.executable))
    (programs / "edgekit").chmod(0o755)
    place = {"host": "board.example.org", "user": "pi,", "target": "raspberry-pi-5"}
    inventory = documented(repo_root, "yaml")
    assert all(f"{key}: {value}" in inventory for key, value in place.items())
    inventory = inventory.replace("target: raspberry-pi-5", f"port: {pi.port}, python: {sys.executable}")
    inventory = inventory.replace("board.example.org", "127.0.0.1").replace("user: pi,", f"user: {pi.account.pw_name},")
    (checkout / "ci" / "devices.yaml").write_text(inventory)
    script = documented(repo_root, "sh").replace("board.example.org", "127.0.0.1")
    script = script.replace("edgekit profile model.edge", "edgekit profile model.edge --percentile 50 --no-layers")
    (tmp_path / "job.sh").write_text(script)
    small.bundle(checkout, "model.edge")

    def run(**secrets: str) -> tuple[subprocess.CompletedProcess[str], Path, Path]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("SSH_", "XDG_", "EDGEKIT_", "BOARD_"))}
        kept |= {"HOME": str(home), "EDGEKIT_CACHE": str(tmp_path / "cache")}
        kept["PATH"] = f"{programs}:{os.environ['PATH']}"
        command = ["sh", str(tmp_path / "job.sh")]
        done = subprocess.run(command, cwd=checkout, env={**kept, **secrets}, capture_output=True, text=True)
        return done, checkout, home

    return run


def secrets(pi: Board) -> dict[str, str]:
    public = " ".join(pi.key.export_public_key("openssh").decode().split()[:2])
    private = (pi.host_home / ".ssh" / "id_ed25519").read_text()
    return {"BOARD_KEY": private, "BOARD_HOST_KEY": f"[127.0.0.1]:{pi.port} {public}"}


def test_the_job_measures_on_the_board_and_leaves_no_key(pi: Board, job) -> None:
    done, checkout, home = job(**secrets(pi))
    assert done.returncode == 0, done.stderr
    assert "on pi with 1 thread" in done.stdout and "on pi" in (checkout / "profile.html").read_text(encoding="utf-8")
    assert not (home / ".ssh" / "edgekit_board").exists()
    assert (home / ".ssh").stat().st_mode & 0o077 == 0


def test_another_host_key_ends_the_job_with_5(pi: Board, job) -> None:
    import asyncssh

    other = asyncssh.generate_private_key("ssh-ed25519").export_public_key("openssh").decode().strip()
    done, _, home = job(**{**secrets(pi), "BOARD_HOST_KEY": f"[127.0.0.1]:{pi.port} {other}"})
    assert done.returncode == 5 and "THE HOST KEY" in done.stderr and "CHANGED" in done.stderr
    assert not (home / ".ssh" / "edgekit_board").exists()


def test_a_secret_that_is_missing_ends_the_job(pi: Board, job) -> None:
    done, checkout, home = job(BOARD_HOST_KEY=secrets(pi)["BOARD_HOST_KEY"])
    assert done.returncode not in (0, 5) and "BOARD_KEY" in done.stderr
    assert not (checkout / "profile.html").exists() and not (home / ".ssh" / "config").exists()
