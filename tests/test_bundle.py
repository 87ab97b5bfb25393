from __future__ import annotations

import hashlib
import os
import subprocess
import zipfile
from pathlib import Path

import agent_bundles as small
import numpy as np
import pytest
from sealed_zips import members, reseal

from edgekit.bundle import MAIN, Bundle, extract_model, open_bundle, read_golden, write_bundle
from edgekit.errors import DeviceError, IntegrityError, UsageError


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return small.bundle(tmp_path_factory.mktemp("bundle"))


def test_opening_gives_what_was_written(bundle: Bundle) -> None:
    assert open_bundle(bundle.path) == bundle
    assert bundle.size_bytes == bundle.path.stat().st_size
    assert bundle.model_bytes == bundle.path.with_name("small.edge.onnx").stat().st_size
    assert np.array_equal(read_golden(bundle, "inputs")[0], small.samples(8))


def test_same_arguments_give_the_same_bytes(bundle: Bundle, tmp_path: Path) -> None:
    again = small.bundle(tmp_path)
    os.utime(again.path.with_name("small.edge.onnx"), (1, 1))
    assert again.path.read_bytes() == bundle.path.read_bytes()


def test_digest_covers_all_that_comes_before_it(bundle: Bundle) -> None:
    content = bundle.path.read_bytes()
    assert content[-71:] == b"sha256:" + hashlib.sha256(content[:-71]).hexdigest().encode()
    assert content[-64:].decode() == bundle.sha256


def test_holds_the_model_the_golden_samples_and_one_runner_alone(bundle: Bundle) -> None:
    names = [name for name, _ in members(bundle)]
    assert names == sorted(names)
    assert {"__main__.py", "manifest.json", "model/model.onnx", "golden/inputs.npz", "golden/outputs.npz"} <= set(names)
    runners = [name for name in names if "/runners/" in name and not name.endswith("__init__.py")]
    assert runners == ["edgekit_agent/runners/onnxruntime.py"]


def test_plain_model_file_comes_out_as_it_went_in(bundle: Bundle, tmp_path: Path) -> None:
    (written,) = extract_model(bundle, tmp_path / "plain")
    assert written.read_bytes() == bundle.path.with_name("small.edge.onnx").read_bytes()


@pytest.mark.parametrize("xor", [0x01, 0xFF])
def test_a_flipped_byte_anywhere_is_refused(bundle: Bundle, tmp_path: Path, xor: int) -> None:
    content = bundle.path.read_bytes()
    copy = tmp_path / "damaged.edge"
    offsets = {*range(0, len(content), 97), *range(64), *range(len(content) - 160, len(content))}
    for offset in sorted(offsets):
        damaged = bytearray(content)
        damaged[offset] ^= xor
        copy.write_bytes(damaged)
        with pytest.raises(IntegrityError):
            open_bundle(copy)


@pytest.mark.parametrize("change", [lambda c: c + b"\n", lambda c: b"#" + c, lambda c: c[:-1], lambda c: c[:40]])
def test_bytes_too_many_or_too_few_are_refused(bundle: Bundle, tmp_path: Path, change) -> None:
    copy = tmp_path / "changed.edge"
    copy.write_bytes(change(bundle.path.read_bytes()))
    with pytest.raises(IntegrityError):
        open_bundle(copy)


@pytest.mark.parametrize("name", ["../evil.py", "/etc/evil", "model/../../evil", "a\\b", "C:evil", "model//x", "./x"])
def test_an_unsafe_name_is_refused_though_the_digest_is_right(bundle: Bundle, tmp_path: Path, name: str) -> None:
    path = reseal(tmp_path / "evil.edge", [*members(bundle), (name, b"x")])
    with pytest.raises(IntegrityError, match="unsafe member name"):
        open_bundle(path)


def test_a_stranger_among_the_members_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    path = reseal(tmp_path / "evil.edge", [*members(bundle), ("numpy.py", b"x")])
    with pytest.raises(IntegrityError, match=r"not those of its manifest: 'numpy\.py'"):
        open_bundle(path)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_that_stands_twice_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    path = reseal(tmp_path / "evil.edge", [*members(bundle), ("__main__.py", b"print('mine')")])
    with pytest.raises(IntegrityError, match="twice"):
        open_bundle(path)


def test_a_member_that_was_exchanged_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    changed = [(name, b"other" if name == "model/model.onnx" else content) for name, content in members(bundle)]
    with pytest.raises(IntegrityError, match=r"'model/model.onnx' is not what the manifest says"):
        open_bundle(reseal(tmp_path / "evil.edge", changed))


def test_a_compressed_member_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match="compressed"):
        open_bundle(reseal(tmp_path / "evil.edge", members(bundle), zipfile.ZIP_DEFLATED))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b'"schema_version": 1', b'"schema_version": 9', "schema_version"),
        (b'"backend"', b'"backened"', "backen"),
        (b'"status": "built"', b'"status": 7', "status"),
        (b"{", b"[", "manifest"),
    ],
)
def test_a_manifest_of_another_kind_is_refused(
    bundle: Bundle, tmp_path: Path, old: bytes, new: bytes, message: str
) -> None:
    changed = [(n, c.replace(old, new, 1) if n == "manifest.json" else c) for n, c in members(bundle)]
    with pytest.raises(IntegrityError, match=message):
        open_bundle(reseal(tmp_path / "odd.edge", changed))


def test_a_zip_that_is_no_bundle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match=r"no manifest\.json"):
        open_bundle(reseal(tmp_path / "some.zip", [("a.txt", b"hello")]))


def test_a_missing_file_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read the bundle"):
        open_bundle(tmp_path / "none.edge")


def parts(tmp_path: Path) -> tuple[dict[str, Path], list[np.ndarray], list[np.ndarray]]:
    file = small.model(tmp_path / "m.onnx")
    inputs = small.samples(2)
    return {"model.onnx": file}, [inputs], [small.expected(file, inputs)]


def test_a_folder_that_cannot_be_written_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot write"):
        write_bundle(tmp_path / "file" / "x.edge", small.manifest(), *parts(tmp_path))


def test_parts_that_do_not_fit_the_manifest_are_refused(tmp_path: Path) -> None:
    files, inputs, outputs = parts(tmp_path)
    with pytest.raises(UsageError, match=r"entry 'other\.onnx'"):
        write_bundle(tmp_path / "x.edge", small.manifest(entry="other.onnx"), files, inputs, outputs)
    with pytest.raises(UsageError, match="0 golden inputs"):
        write_bundle(tmp_path / "x.edge", small.manifest(), files, [], outputs)
    with pytest.raises(UsageError, match="unsafe member name"):
        write_bundle(tmp_path / "x.edge", small.manifest(), {**files, "../up": files["model.onnx"]}, inputs, outputs)
    with pytest.raises(UsageError, match="differ in case alone"):
        write_bundle(
            tmp_path / "x.edge", small.manifest(), {**files, "Model.onnx": files["model.onnx"]}, inputs, outputs
        )
    with pytest.raises(UsageError, match="no runner for backend 'tvm'"):
        write_bundle(tmp_path / "x.edge", small.manifest(backend="tvm"), files, inputs, outputs)
    assert not list(tmp_path.glob("*.edge")) and not list(tmp_path.glob(".*"))


def test_a_full_disk_is_a_device_error_and_leaves_nothing(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("this user may not mount a small disk")
    try:
        with pytest.raises(DeviceError, match="No space left"):
            write_bundle(disk / "x.edge", small.manifest(), *parts(tmp_path))
        assert not list(disk.iterdir())
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_main_survives_every_length_that_one_changed_byte_can_give_it() -> None:
    code = MAIN.index(b"(8)") + 4
    for byte in range(4):
        for value in range(256):
            length = len(MAIN) & ~(0xFF << 8 * byte) | value << 8 * byte
            assert length >= code, "a cut file would end without an error"
