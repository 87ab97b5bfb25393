"""Bundles that somebody who means harm would write: every byte fits the digest, and the zip is a trap."""

from __future__ import annotations

import io
import json
import stat
import struct
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import agent_bundles as small
import numpy as np
import pytest
from sealed_zips import members, reseal, sealed, with_manifest

from edgekit.bundle import Bundle, open_bundle, unlike
from edgekit.errors import IntegrityError
from edgekit.sealed import LARGEST_DIRECTORY, LARGEST_MANIFEST


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return small.bundle(tmp_path_factory.mktemp("sealed"))


def with_mode(name: str, kind: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.create_system, info.external_attr = 3, (kind | 0o777) << 16
    return info


@pytest.mark.parametrize(
    ("kind", "message"),
    [(stat.S_IFLNK, "symbolic link"), (stat.S_IFDIR, "no plain file"), (stat.S_IFCHR, "no plain file")],
)
def test_a_member_that_is_no_plain_file_is_refused(bundle, tmp_path, kind, message):
    named = with_manifest([*members(bundle), ("model/link", b"/etc/passwd")])
    evil = [(with_mode(name, kind) if name == "model/link" else name, content) for name, content in named]
    with pytest.raises(IntegrityError, match=message):
        open_bundle(reseal(tmp_path / "evil.edge", evil))


@pytest.mark.parametrize(
    ("message", "names"),
    [
        ("differ in case alone", ["model/Weights.bin", "model/weights.bin"]),
        ("differ in case alone", ["model/\N{LATIN SMALL LETTER E WITH ACUTE}", "model/e\N{COMBINING ACUTE ACCENT}"]),
        ("is a file, and", ["model/a", "model/a/b"]),
        ("unsafe member name", ["model/x\x1b[31m"]),
        ("unsafe member name", ["model/\N{RIGHT-TO-LEFT OVERRIDE}exe.txt"]),
        ("unsafe member name", ["model/" + "x" * 300]),
        ("unsafe member name", ["model/trailing."]),
        ("unsafe member name", ["C:model"]),
        ("unsafe member name", ["model/sub/"]),
    ],
)
def test_names_that_some_file_system_reads_otherwise_are_refused(bundle, tmp_path, message, names):
    named = with_manifest([*members(bundle), *((name, b"x") for name in names)])
    with pytest.raises(IntegrityError, match=message) as caught:
        open_bundle(reseal(tmp_path / "evil.edge", named))
    assert str(caught.value).isprintable()


def edited(path: Path, edit: Callable[[bytearray], None], source: Path) -> Path:
    """The file with bytes changed, and a digest that fits them."""
    content = bytearray(source.read_bytes())
    edit(content)
    path.write_bytes(sealed(bytes(content)))
    return path


def directory(content: bytearray) -> int:
    return struct.unpack("<I", content[-71 - 6 : -71 - 2])[0]


def entry(content: bytearray, name: bytes) -> int:
    """Where the directory's entry of a member begins."""
    return content.rindex(name, directory(content)) - 46


def claim(size: int, compressed: int | None = None) -> Callable[[bytearray], None]:
    """The directory and the member's own header say another size than there is."""

    def edit(content: bytearray) -> None:
        at = entry(content, b"model/model.onnx")
        own = struct.unpack("<I", content[at + 42 : at + 46])[0]
        for place in (at + 20, own + 18):
            was = struct.unpack("<I", content[place : place + 4])[0]
            content[place : place + 8] = struct.pack("<II", was if compressed is None else compressed, size)

    return edit


def test_a_size_that_the_file_does_not_have_is_refused(bundle, tmp_path):
    with pytest.raises(IntegrityError, match="says 2000000000 bytes and holds 495"):
        open_bundle(edited(tmp_path / "evil.edge", claim(2_000_000_000), bundle.path))
    with pytest.raises(IntegrityError, match=r"its members end at byte 20\d+, its directory"):
        open_bundle(edited(tmp_path / "evil.edge", claim(2_000_000_000, 2_000_000_000), bundle.path))
    with pytest.raises(IntegrityError):
        open_bundle(edited(tmp_path / "evil.edge", claim(100, 100), bundle.path))


def test_members_that_share_their_bytes_are_refused(bundle, tmp_path):
    """The trick of bombs without nesting: many directory entries that point at the same data."""

    def edit(content: bytearray) -> None:
        one, other = entry(content, b"golden/inputs.npz"), entry(content, b"golden/outputs.npz")
        content[other + 42 : other + 46] = content[one + 42 : one + 46]

    with pytest.raises(IntegrityError):
        open_bundle(edited(tmp_path / "evil.edge", edit, bundle.path))


def test_a_member_whose_own_header_says_another_name_is_refused(bundle, tmp_path):
    def edit(content: bytearray) -> None:
        at = content.index(b"__main__.py")
        content[at : at + 11] = b"__init__.py"

    with pytest.raises(IntegrityError, match="not what the zip's directory says"):
        open_bundle(edited(tmp_path / "evil.edge", edit, bundle.path))


def test_bytes_between_members_are_refused(bundle, tmp_path):
    """A member that the directory does not list would still be in the file."""
    whole = bundle.path.read_bytes()
    extra = io.BytesIO()
    with zipfile.ZipFile(extra, "w") as archive:
        archive.writestr("hidden.py", b"print('hidden')")
    hidden = extra.getvalue()[: extra.getvalue().index(b"PK\1\2")]
    begin = directory(bytearray(whole))
    content = bytearray(whole[:begin] + hidden + whole[begin:])
    content[-71 - 6 : -71 - 2] = struct.pack("<I", begin + len(hidden))
    path = tmp_path / "evil.edge"
    path.write_bytes(sealed(bytes(content)))
    with pytest.raises(IntegrityError, match="its members end at byte"):
        open_bundle(path)


def test_a_huge_manifest_and_a_huge_directory_are_refused_before_they_are_read(bundle, tmp_path):
    held = [(n, b" " * (LARGEST_MANIFEST + 1) if n == "manifest.json" else c) for n, c in members(bundle)]
    path = reseal(tmp_path / "manifest.edge", held)
    tracemalloc.start()
    with pytest.raises(IntegrityError, match=r"manifest\.json has \d+ bytes"):
        open_bundle(path)
    assert tracemalloc.get_traced_memory()[1] < LARGEST_MANIFEST / 2
    tracemalloc.stop()
    names = [(f"model/{'x' * 100}{number}", b"") for number in range(LARGEST_DIRECTORY // 100)]
    path = reseal(tmp_path / "directory.edge", [*members(bundle), *names])
    with pytest.raises(IntegrityError, match="no bundle has so many members"):
        open_bundle(path)


def test_a_compressed_bomb_is_refused_without_unpacking_it(bundle, tmp_path):
    named = with_manifest([*members(bundle), ("model/bomb", bytes(200_000_000))])
    path = reseal(tmp_path / "bomb.edge", named, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 1_000_000
    del named
    tracemalloc.start()
    with pytest.raises(IntegrityError, match="compressed"):
        open_bundle(path)
    assert tracemalloc.get_traced_memory()[1] < 20_000_000
    tracemalloc.stop()


def test_a_bomb_among_the_golden_samples_is_refused(bundle, tmp_path):
    bomb = io.BytesIO()
    np.savez_compressed(bomb, image=np.zeros((2_000_000, 8, 8), np.float32))
    held = [(n, bomb.getvalue() if n == "golden/inputs.npz" else c) for n, c in members(bundle)]
    with pytest.raises(IntegrityError, match="compressed arrays"):
        open_bundle(reseal(tmp_path / "bomb.edge", with_manifest(held)))


def test_a_golden_array_that_claims_more_than_it_holds_is_refused(bundle, tmp_path):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive, archive.open("image.npy", "w") as member:
        header = {"descr": "<f4", "fortran_order": False, "shape": (10**12, 8, 8)}
        np.lib.format.write_array_header_1_0(member, header)
    held = [(n, buffer.getvalue() if n == "golden/inputs.npz" else c) for n, c in members(bundle)]
    with pytest.raises(IntegrityError, match="not as large as its header says"):
        open_bundle(reseal(tmp_path / "evil.edge", with_manifest(held)))


def test_pickled_golden_arrays_are_refused(bundle, tmp_path):
    buffer = io.BytesIO()
    np.savez(buffer, image=np.array([{"an": "object"}], dtype=object))
    held = [(n, buffer.getvalue() if n == "golden/inputs.npz" else c) for n, c in members(bundle)]
    with pytest.raises(IntegrityError, match=r"golden/inputs\.npz"):
        open_bundle(reseal(tmp_path / "evil.edge", with_manifest(held)))


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999"])
def test_a_manifest_with_a_number_that_is_none_is_refused(bundle, tmp_path, number):
    held = [(n, c.replace(b"0.0001", number.encode()) if n == "manifest.json" else c) for n, c in members(bundle)]
    with pytest.raises(IntegrityError, match=r"manifest\.json"):
        open_bundle(reseal(tmp_path / "evil.edge", held))


def test_a_deeply_nested_manifest_is_refused(bundle, tmp_path):
    deep = b'{"runner": ' + b'{"a":' * 100_000
    held = [(n, deep if n == "manifest.json" else c) for n, c in members(bundle)]
    with pytest.raises(IntegrityError, match=r"manifest\.json"):
        open_bundle(reseal(tmp_path / "evil.edge", held))


def test_names_from_a_manifest_cannot_act_on_a_terminal(bundle, tmp_path):
    manifest = json.loads(dict(members(bundle))["manifest.json"])
    manifest["entry"] = "\x1b]0;mine\x07" * 50
    held = [(n, json.dumps(manifest).encode() if n == "manifest.json" else c) for n, c in members(bundle)]
    with pytest.raises(IntegrityError, match="it lacks") as caught:
        open_bundle(reseal(tmp_path / "evil.edge", held))
    assert str(caught.value).isprintable() and len(str(caught.value)) < 400


def test_a_bundle_is_held_against_the_one_that_was_measured(bundle):
    assert unlike(bundle, bundle.sha256) == ""
    assert "not the bundle that was measured" in unlike(bundle, "0" * 64)
    assert "does not say which" in unlike(bundle, None)
