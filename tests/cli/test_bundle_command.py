"""`edgekit bundle` as people use it: verify, sign, keygen, and bundles that somebody who means harm wrote."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import zipfile
from pathlib import Path

import agent_bundles as small
import pytest
from sealed_zips import members, reseal, with_manifest

from edgekit.bundle import Bundle

ENTRY = [sys.executable, "-c", "from edgekit.cli import main; main()"]
PASSPHRASE = "EDGEKIT_KEY_PASSPHRASE"


def edgekit(*words: object, cwd: Path, entry: list[str] = ENTRY, **environment: str):
    env = {name: value for name, value in os.environ.items() if name != PASSPHRASE}
    return subprocess.run(
        [*entry, "bundle", *map(str, words)],
        capture_output=True, text=True, timeout=120, cwd=cwd, env={**env, **environment}, stdin=subprocess.DEVNULL,
    )  # fmt: skip


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return small.bundle(tmp_path)


def refused(done: subprocess.CompletedProcess[str], code: int) -> str:
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr and done.stderr.count("\n") == 1
    assert done.stderr.startswith("edgekit: ")
    return done.stderr


def test_keygen_sign_and_verify(bundle, tmp_path):
    made = edgekit("keygen", "mine", cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    assert stat.S_IMODE((tmp_path / "mine.key").stat().st_mode) == 0o600
    signed = edgekit("sign", "small.edge", "--key", "mine.key", cwd=tmp_path)
    assert (signed.returncode, signed.stdout) == (0, "small.edge.sig\n")
    checked = edgekit("verify", "small.edge", "--key", "mine.pub", cwd=tmp_path)
    assert checked.returncode == 0 and f"intact, sha256 {bundle.sha256}, signed by " in checked.stdout
    told = json.loads(edgekit("verify", "small.edge", "--key", "mine.pub", "--json", cwd=tmp_path).stdout)
    assert told["sha256"] == bundle.sha256 and told["signed_by"] in made.stdout
    assert "never overwritten" in refused(edgekit("keygen", "mine", cwd=tmp_path), 2)


def test_verify_tells_unsigned_foreign_and_changed_from_signed(bundle, tmp_path):
    for name in ("mine", "other"):
        edgekit("keygen", name, cwd=tmp_path)
    assert "not signed" in refused(edgekit("verify", "small.edge", "--key", "mine.pub", cwd=tmp_path), 8)
    edgekit("sign", "small.edge", "--key", "other.key", cwd=tmp_path)
    assert "trusted key" in refused(edgekit("verify", "small.edge", "--key", "mine.pub", cwd=tmp_path), 8)
    both = edgekit("verify", "small.edge", "--key", "mine.pub", "--key", "other.pub", cwd=tmp_path)
    assert both.returncode == 0 and "(other.pub)" in both.stdout
    small.bundle(tmp_path, role="reference")
    assert "another file" in refused(edgekit("verify", "small.edge", "--key", "other.pub", cwd=tmp_path), 8)
    assert "PEM" in refused(edgekit("verify", "small.edge", "--key", "small.edge.sig", cwd=tmp_path), 2)
    assert "cannot read" in refused(edgekit("verify", "small.edge", "--key", "none.pub", cwd=tmp_path), 2)


def test_verify_tells_what_was_measured_from_another_build(bundle, tmp_path):
    from edgekit.report.report import Report, Result, SourceInfo, write_report

    def write(sha256: str | None, role: str = "float") -> None:
        result = Result(
            target="x86-64", backend="onnxruntime", precision="fp32", role=role, status="built", bundle_sha256=sha256
        )
        source = SourceInfo(name="small", size_bytes=1)
        told = Report(edgekit="0", created="2026-01-01T00:00:00+00:00", source=source, results=(result,))
        write_report(told, tmp_path / "report.json")

    words = ("verify", "small.edge", "--report", "report.json")
    write(bundle.sha256)
    done = edgekit(*words, cwd=tmp_path)
    assert done.returncode == 0 and done.stdout.endswith("measured as x86-64/onnxruntime/float/fp32\n"), done.stderr
    write("0" * 64)
    assert "not the bundle that was measured" in refused(edgekit(*words, cwd=tmp_path), 8)
    write(None)
    assert "no bundle_sha256" in refused(edgekit(*words, cwd=tmp_path), 8)
    write("0" * 64, role="reference")
    assert "no result for" in refused(edgekit(*words, cwd=tmp_path), 2)


def test_a_passphrase_comes_from_the_environment(bundle, tmp_path):
    assert PASSPHRASE in refused(edgekit("keygen", "--passphrase", cwd=tmp_path), 2)
    assert edgekit("keygen", "--passphrase", cwd=tmp_path, EDGEKIT_KEY_PASSPHRASE="open").returncode == 0
    assert "ENCRYPTED" in (tmp_path / "edgekit.key").read_text()
    words = ("sign", "small.edge", "--key", "edgekit.key")
    assert PASSPHRASE in refused(edgekit(*words, cwd=tmp_path), 2)
    assert "passphrase right" in refused(edgekit(*words, cwd=tmp_path, EDGEKIT_KEY_PASSPHRASE="shut"), 2)
    assert edgekit(*words, cwd=tmp_path, EDGEKIT_KEY_PASSPHRASE="open").returncode == 0


def test_a_private_key_that_others_can_read_is_told_of(bundle, tmp_path):
    edgekit("keygen", cwd=tmp_path)
    (tmp_path / "edgekit.key").chmod(0o644)
    done = edgekit("sign", "small.edge", "--key", "edgekit.key", cwd=tmp_path)
    assert done.returncode == 0 and "chmod 600" in done.stderr


def test_without_the_library_the_pip_command_is_told(bundle, tmp_path):
    entry = [sys.executable, "-c", "import sys; sys.modules['cryptography'] = None\n" + ENTRY[2]]
    told = refused(edgekit("keygen", cwd=tmp_path, entry=entry), 6)
    assert "pip install 'edgekit-toolchain[sign]'" in told
    (tmp_path / "some.pub").write_text("")
    assert "[sign]" in refused(edgekit("verify", "small.edge", "--key", "some.pub", cwd=tmp_path, entry=entry), 6)
    assert edgekit("verify", "small.edge", cwd=tmp_path, entry=entry).returncode == 0


def test_several_bundles_are_all_looked_at(bundle, tmp_path):
    (tmp_path / "damaged.edge").write_bytes(small.damaged(bundle))
    done = edgekit("verify", "damaged.edge", "small.edge", cwd=tmp_path)
    assert done.returncode == 8 and done.stdout.startswith("small.edge: intact")
    assert done.stderr.startswith("edgekit: damaged.edge: its bytes do not match")
    told = json.loads(edgekit("verify", "damaged.edge", "small.edge", "none.edge", "--json", cwd=tmp_path).stdout)
    assert [row["intact"] for row in told] == [False, True, False]


def link() -> zipfile.ZipInfo:
    info = zipfile.ZipInfo("model/link")
    info.create_system, info.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    return info


def traps(held: list[tuple[str, bytes]]) -> dict[str, tuple[list, int]]:
    named = with_manifest([*held, ("model/link", b"/etc/passwd")])
    return {
        "unsafe member name": ([*held, ("../../evil.py", b"x")], zipfile.ZIP_STORED),
        "symbolic link": ([(link() if n == "model/link" else n, c) for n, c in named], zipfile.ZIP_STORED),
        "compressed": (with_manifest([*held, ("model/bomb", bytes(50_000_000))]), zipfile.ZIP_DEFLATED),
        "in case alone": (with_manifest([*held, ("MODEL/model.onnx", b"x")]), zipfile.ZIP_STORED),
    }


@pytest.mark.parametrize("message", ["unsafe member name", "symbolic link", "compressed", "in case alone"])
@pytest.mark.parametrize("verb", ["verify", "inspect"])
def test_a_trap_ends_with_8_and_writes_nothing(bundle, tmp_path, message, verb):
    held, compression = traps(members(bundle))[message]
    home = tmp_path / "deep" / "er"
    home.mkdir(parents=True)
    reseal(home / "evil.edge", held, compression)
    before = sorted(tmp_path.rglob("*"))
    assert message in refused(edgekit(verb, "evil.edge", cwd=home), 8)
    assert sorted(tmp_path.rglob("*")) == before


def test_inspect_shows_names_that_cannot_act_on_a_terminal(tmp_path):
    small.bundle(tmp_path, model="\x1b]0;title\x07\n  sha256    forged")
    done = edgekit("inspect", "small.edge", cwd=tmp_path)
    assert done.returncode == 0 and "\x1b" not in done.stdout and "\\x1b]0;title\\x07\\n  sha256" in done.stdout
    assert json.loads(edgekit("inspect", "small.edge", "--json", cwd=tmp_path).stdout)["model"].startswith("\x1b")
