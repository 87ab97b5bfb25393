"""Names that a shell would run: of bundles, boards, folders, accounts and programs. No canary may ever appear."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import agent_bundles as small
import pytest
from boards import Board, board
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from typer.testing import CliRunner

from edgekit.bundle import Bundle
from edgekit.cli.app import app
from edgekit.devices import _line, _wheels, inventory
from edgekit.devices.inventory import Entry
from edgekit.devices.ssh import Ssh
from edgekit.errors import DeviceError, EdgekitError, UsageError

CANARY = "pwned-canary"
DO = f"touch {CANARY}"
PARTS = (
    *(f"$({DO})", f"`{DO}`", f";{DO};", f"\n{DO}\n", f"&&{DO}&", f"|{DO}|", f"'$({DO})'", f'"$({DO})"', "${IFS}"),
    *("'", '"', "\\", "\n", "\r", "\t", " ", "*", "?", "[x]", "~", "-", "--", "..", "%s", "{}", "#", "!"),
    *("é", "☃", "\u202e", "\x01", "\x1b[31m", "\udcff"),
)
any_character = st.characters(exclude_characters="\0/", codec="utf-8")
odd = st.lists(st.sampled_from(PARTS) | any_character, min_size=1, max_size=6).map("".join)
short = odd.filter(lambda text: len(os.fsencode(text)) < 200)


@pytest.fixture(scope="module")
def pi() -> Iterator[Board]:
    with board() as running:
        running.trust()
        yield running


@pytest.fixture
def host(pi: Board, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    pi.reached_from(tmp_path, monkeypatch)
    monkeypatch.setattr(_wheels, "PACKAGES", {})
    monkeypatch.chdir(tmp_path)
    return tmp_path


def canaries(*roots: Path) -> list[Path]:
    return [path for root in (*roots, Path("/tmp").resolve()) for path in (root / CANARY, *root.glob(f"*/{CANARY}"))
            if path.exists()]  # fmt: skip


few = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
many = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.mark.slow
@few
@given(name=short)
@example(name=f"$({DO})")
@example(name="-rf ~")
def test_a_bundle_of_any_name_runs(pi: Board, host: Path, name: str) -> None:
    folder = host / "bundles"
    shutil.rmtree(folder, ignore_errors=True)
    made = small.bundle(folder)
    path = folder / f"{name}.edge"
    try:
        path.write_bytes(made.path.read_bytes())
    except (OSError, ValueError):  # no file can be called that
        return
    named = Bundle(path, made.manifest, made.sha256, made.model_bytes)
    assert Ssh("pi", pi.entry(), board_lock=str(pi.folder / "lock")).selftest(named)["passed"]
    assert not canaries(host, pi.home, pi.kept)


@pytest.mark.slow
@few
@given(name=short)
@example(name=f"$({DO})")
@example(name='it\'s a "folder"')
def test_a_folder_of_any_name_serves_or_is_refused(pi: Board, host: Path, name: str) -> None:
    made = small.bundle(host / "bundles")
    folder = f"{pi.home}/of {name}"
    try:
        device = Ssh("pi", pi.entry(folder=folder), board_lock=str(pi.folder / "lock"))
    except ValidationError as error:
        assert "must be text on one line" in str(error)
        return
    try:
        assert device.selftest(made)["passed"]
    except EdgekitError as error:
        assert str(error).startswith("pi: ")
    else:
        assert device.clean() > 0
    assert not canaries(host, pi.home, *pi.home.glob("of *"))


@pytest.mark.slow
@few
@given(name=short)
@example(name=f"/x;{DO}")
def test_a_python_of_any_name_is_not_found(pi: Board, host: Path, name: str) -> None:
    try:
        entry = pi.entry(python=f"/no/{name}")
    except ValidationError:
        return
    with pytest.raises(DeviceError, match=r"pi: (no Python there|.* does not start there)"):
        Ssh("pi", entry).probe()
    assert not canaries(host, pi.home)


@many
@given(python=odd)
def test_the_command_that_a_shell_on_the_board_reads(tmp_path: Path, python: str) -> None:
    """As sshd does it: the whole command to `sh -c`. What is named gets the program; nothing else runs."""
    named = tmp_path / "program"
    named.write_text('#!/bin/sh\nprintf "%s" "$#"\n')
    named.chmod(0o755)
    command = shlex.join(["sh", "-c", _line.SHELL, python, _line.BOOT])
    subprocess.run(["sh", "-c", command], cwd=tmp_path, capture_output=True, stdin=subprocess.DEVNULL)
    command = shlex.join(["sh", "-c", _line.SHELL, str(named), _line.BOOT])
    assert subprocess.run(["sh", "-c", command], cwd=tmp_path, capture_output=True, text=True).stdout == "4"
    assert not canaries(tmp_path)


@many
@given(name=odd, where=st.sampled_from(["name", "host", "user", "folder", "target"]))
def test_the_inventory_keeps_or_refuses(host: Path, name: str, where: str) -> None:
    words = {"name": "pi", "host": "127.0.0.1"} | {where: name}
    try:
        entry = Entry.model_validate({key: value for key, value in words.items() if key != "name"})
        inventory.register(words["name"], entry, replace=True)
    except (ValidationError, UsageError) as error:
        assert "\x1b" not in str(error)
    else:
        assert inventory.find(words["name"]) == entry
        assert where not in ("host", "user") or not set(name) & set("'`\";&<>|(){} \n")
    assert not canaries(host)


@many
@given(name=odd, verb=st.sampled_from(["check", "remove", "clean"]))
def test_a_board_of_any_name_is_not_known(host: Path, name: str, verb: str) -> None:
    done = CliRunner().invoke(app, ["devices", verb, "--", name])
    assert done.exit_code == 2, done.output
    assert not canaries(host)
