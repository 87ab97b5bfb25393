"""Stores of bundles: a folder, an OCI layout, a real registry, and URLs of fsspec."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import subprocess
import time
import urllib.request
from pathlib import Path

import pytest

from edgekit import stores
from edgekit.errors import DeviceError, IntegrityError, UsageError
from edgekit.stores import fetch, keep, open_store, shown

CONTENT = b"\0model\n" * 30_000


@pytest.fixture(scope="module")
def registry(tmp_path_factory):
    """`127.0.0.1:PORT` of a Docker registry of this machine."""
    program = shutil.which("docker-registry") or shutil.which("registry")
    if program is None:
        pytest.skip("no docker-registry is installed")
    folder = tmp_path_factory.mktemp("registry")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    settings = {
        "version": 0.1,
        "log": {"level": "error", "accesslog": {"disabled": True}},
        "storage": {"filesystem": {"rootdirectory": str(folder / "data")}},
        "http": {"addr": address},
    }
    (folder / "config.yml").write_text(json.dumps(settings))
    with subprocess.Popen([program, "serve", str(folder / "config.yml")], stderr=subprocess.DEVNULL) as process:
        try:
            for _ in range(200):
                try:
                    urllib.request.urlopen(f"http://{address}/v2/", timeout=1).close()
                    break
                except OSError:
                    time.sleep(0.05)
            yield address, folder / "data"
        finally:
            process.terminate()


@pytest.fixture(params=["folder", "layout", "file", "memory", "oci"])
def store(request, tmp_path):
    if request.param in ("file", "memory"):
        pytest.importorskip("fsspec")
    if request.param == "oci":
        pytest.importorskip("oras")
        return open_store(f"oci://{request.getfixturevalue('registry')[0]}/team/net")
    address = {
        "folder": "store",
        "layout": "oci-layout:layout",
        "file": f"file://{tmp_path}/by-url",
        "memory": f"memory://{tmp_path.name}",
    }[request.param]
    return open_store(address, tmp_path)


@pytest.fixture
def held(tmp_path) -> Path:
    path = tmp_path / "held.edge"
    path.write_bytes(CONTENT + tmp_path.name.encode())
    return path


def test_what_is_kept_comes_back(store, held, tmp_path):
    sha256 = keep(store, held)
    assert sha256 == hashlib.sha256(held.read_bytes()).hexdigest()
    assert keep(store, held) == sha256
    again = fetch(open_store(store.address, tmp_path), sha256, tmp_path / "out" / "again.edge")
    assert again.read_bytes() == held.read_bytes()
    assert [path.name for path in again.parent.iterdir()] == ["again.edge"]


def test_what_is_not_there_is_missing(store, tmp_path):
    with pytest.raises(stores.MissingObjectError, match="it does not hold 0000"):
        fetch(store, "0" * 64, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_registry_that_damages_what_it_holds_is_found_out(registry, held, tmp_path):
    address, data = registry
    store = open_store(f"oci://{address}/team/damaged")
    sha256 = keep(store, held)
    (blob,) = data.glob(f"**/blobs/sha256/*/{sha256}/data")
    blob.write_bytes(b"x" * held.stat().st_size)
    with pytest.raises(IntegrityError, match="is damaged"):
        fetch(store, sha256, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_artifact_of_the_registry_says_what_it_is(registry, held):
    address, _ = registry
    sha256 = keep(open_store(f"oci://{address}/team/net"), held)
    asked = urllib.request.Request(
        f"http://{address}/v2/team/net/manifests/{sha256}", headers={"Accept": stores.MANIFEST}
    )
    with urllib.request.urlopen(asked) as answer:
        manifest = json.load(answer)
    assert manifest["artifactType"] == stores.ARTIFACT
    assert manifest["layers"][0]["digest"] == f"sha256:{sha256}"


def test_an_object_of_the_registry_that_lost_its_tag_gets_it_again(registry, held):
    """A registry clears away what no tag leads to, and a put that was cut short leaves just that."""
    address, data = registry
    store = open_store(f"oci://{address}/team/untagged")
    sha256 = keep(store, held)
    (tag,) = data.glob(f"**/team/untagged/_manifests/tags/{sha256}")
    shutil.rmtree(tag)
    keep(store, held)
    assert tag.is_dir()


def test_an_object_that_the_layout_does_not_list_is_listed_again(tmp_path, held):
    store = open_store("oci-layout:layout", tmp_path)
    sha256 = keep(store, held)
    index = tmp_path / "layout" / "index.json"
    index.unlink()  # as after a put that was cut short: the blob is there alone
    keep(store, held)
    (listed,) = json.loads(index.read_text())["manifests"]
    assert listed["annotations"] == {"org.opencontainers.image.ref.name": sha256}


def test_a_layout_lists_every_object_once(tmp_path, held):
    store = open_store("oci-layout:layout", tmp_path)
    sha256 = keep(store, held)
    store.put(held, sha256)
    other = tmp_path / "other"
    other.write_bytes(b"other")
    keep(store, other)
    layout = tmp_path / "layout"
    assert json.loads((layout / "oci-layout").read_text()) == {"imageLayoutVersion": "1.0.0"}
    listed = json.loads((layout / "index.json").read_text())["manifests"]
    assert len(listed) == 2
    for descriptor in listed:
        blob = layout / "blobs" / "sha256" / descriptor["digest"].removeprefix("sha256:")
        assert hashlib.sha256(blob.read_bytes()).hexdigest() == blob.name
        assert blob.stat().st_size == descriptor["size"]
        for layer in json.loads(blob.read_text())["layers"]:
            assert (layout / "blobs" / "sha256" / layer["digest"].removeprefix("sha256:")).stat().st_size == layer[
                "size"
            ]
    (layout / "index.json").write_text("[]")
    third = tmp_path / "third"
    third.write_bytes(b"third")
    with pytest.raises(IntegrityError, match="not the index of an OCI image layout"):
        keep(store, third)


def test_a_registry_that_is_not_there():
    pytest.importorskip("oras")
    with pytest.raises(DeviceError, match="cannot be reached") as caught:
        open_store("oci://me:hunter2@127.0.0.1:9/team/net")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("address", "without"),
    [
        ("sftp://me:hunter2@host:22/a/b", "sftp://host:22/a/b"),
        ("s3://bucket/a?token=hunter2#hunter2", "s3://bucket/a"),
        ("simplecache::sftp://me:hunter2@host/a", "simplecache::sftp://host/a"),
        ("ftp://me:hunter2/3@host/a", "ftp://..."),
        ("store", "store"),
        ("oci-layout:a/b", "oci-layout:a/b"),
    ],
)
def test_addresses_are_shown_without_credentials(address, without):
    assert shown(address) == without


@pytest.mark.parametrize(
    "address", ["nosuch://me:hunter2@host/a", "oci://me:hunter2@host", "ftp://me:hunter2/3@h/a", "s3://"]
)
def test_addresses_that_are_none(address):
    with pytest.raises(UsageError) as caught:
        open_store(address)
    assert "hunter2" not in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written(tmp_path, held):
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(UsageError, match="cannot be used"):
        keep(open_store("locked/store", tmp_path), held)


def test_a_file_where_the_folder_should_be(tmp_path, held):
    (tmp_path / "taken").write_text("")
    with pytest.raises(UsageError, match="cannot be used"):
        keep(open_store("taken/store", tmp_path), held)


def test_a_full_disk(held):
    if not os.access("/dev/full", os.W_OK):
        pytest.skip("no /dev/full here")
    with (
        pytest.raises(DeviceError, match="the disk is full"),
        stores.settled("store"),
        Path("/dev/full").open("wb", 0) as full,
    ):
        full.write(b"x")
