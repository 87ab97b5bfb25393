"""Where accepted bundles lie: a folder, an OCI image layout or registry, or whatever fsspec reaches; by sha256.

An address is a path (a folder), `oci-layout:PATH`, `oci://HOST[:PORT]/REPOSITORY`, or a URL of fsspec (`s3://`,
`sftp://`, ...). Credentials are no part of it: EDGEKIT_STORE_USER and EDGEKIT_STORE_PASSWORD, or what fsspec and the
registry's own configuration know.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit
from uuid import uuid4

from edgekit.errors import DeviceError, EdgekitError, IntegrityError, UsageError
from edgekit.extras import require
from edgekit.turns import alone

ARTIFACT = "application/vnd.edgekit.baseline.v1"
OBJECT = "application/vnd.edgekit.object.v1"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
EMPTY = "application/vnd.oci.empty.v1+json"
USER, PASSWORD = "EDGEKIT_STORE_USER", "EDGEKIT_STORE_PASSWORD"


class MissingObjectError(IntegrityError):
    """The store does not hold what the baseline names."""


class Store(Protocol):
    """Files by their sha256. What goes wrong is an OSError, or whatever the library under it raises."""

    @property
    def address(self) -> str:
        """As it was given, credentials and all: for messages there is `shown`."""

    def has(self, sha256: str) -> bool:
        """Whether there is such an object, listed by its name; nothing is said of its content."""

    def put(self, file: Path, sha256: str) -> None:
        """Keep a file, whole or not at all."""

    def get(self, sha256: str, into: Path) -> None:
        """Copy an object into a file."""


def shown(address: str) -> str:
    """An address without credentials: user, password, query and fragment.

    >>> shown("sftp://me:secret@host:22/a?token=1"), shown("oci-layout:a")
    ('sftp://host:22/a', 'oci-layout:a')
    """
    if "://" not in address:
        return address
    try:
        _ = urlsplit(address).port  # a password that is not percent-encoded looks like a port that is none
    except ValueError:
        return f"{address.partition('://')[0]}://..."
    return re.sub(r"//[^/]*@", "//", address.partition("?")[0].partition("#")[0])


def open_store(address: str, folder: Path = Path()) -> Store:
    """The store of an address; a relative path is one below `folder`.

    Raises:
        UsageError: the address cannot be read.
        MissingDependencyError: the package that reaches it is not installed.
        DeviceError: no registry answers there.
    """
    kind, separator, rest = address.partition("://")
    if not separator:
        kind, separator, rest = address.partition("oci-layout:")
        return LayoutStore(address, folder / rest) if separator and not kind else FolderStore(address, folder / address)
    if not rest or shown(address).endswith("://..."):
        raise UsageError(
            f"{shown(address)}: not the address of a store. Use a folder, oci-layout:PATH, oci://HOST/REPOSITORY or a "
            "URL; a password is percent-encoded, or in EDGEKIT_STORE_PASSWORD."
        )
    if kind == "oci":
        return RegistryStore.open(address)
    return UrlStore.open(address)


def keep(store: Store, file: Path) -> str:
    """Put a file into the store, read it back, and give its sha256; one that is there already is only read.

    Raises:
        DeviceError: the store cannot be reached, or is full.
        UsageError: it cannot be written.
        IntegrityError: it gives back something else.
    """
    sha256 = file_sha256(file)
    with settled(store.address):
        there = store.has(sha256)
    if there:
        with suppress(IntegrityError):
            _checked(store, sha256)
            return sha256
    with settled(store.address):
        store.put(file, sha256)
    _checked(store, sha256)
    return sha256


def fetch(store: Store, sha256: str, into: Path) -> Path:
    """Copy an object into a file, verified.

    Raises:
        MissingObjectError: the store does not hold it.
        IntegrityError: it is not what its name says.
        DeviceError: the store cannot be reached.
    """
    into.parent.mkdir(parents=True, exist_ok=True)
    temporary = into.with_name(f".{uuid4().hex}")
    try:
        with settled(store.address):
            if not store.has(sha256):
                raise MissingObjectError(
                    f"{shown(store.address)}: it does not hold {sha256}. Restore the store, or accept again."
                )
            store.get(sha256, temporary)
        if (seen := file_sha256(temporary)) != sha256:
            raise IntegrityError(
                f"{shown(store.address)}: the object {sha256} is damaged: its sha256 is {seen}. "
                "Restore the store, or accept again."
            )
        temporary.replace(into)
    finally:
        temporary.unlink(missing_ok=True)
    return into


def _checked(store: Store, sha256: str) -> None:
    with tempfile.TemporaryDirectory(prefix="edgekit-store-") as folder:
        fetch(store, sha256, Path(folder) / "object")


def file_sha256(path: Path) -> str:
    """sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def settled(address: str) -> Iterator[None]:
    """Turn what libraries and the system say of a store into this project's errors, without credentials in them."""
    where = shown(address)
    try:
        yield
    except EdgekitError:
        raise
    except Exception as error:
        code = error.errno if isinstance(error, OSError) else None
        said = _without_secrets(str(getattr(error, "strerror", None) or error) or type(error).__name__, address)
        if code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise DeviceError(f"{where}: the disk is full ({said}). Free some space and try again.") from None
        if code in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST):
            raise UsageError(f"{where}: cannot be used ({said}). Check its permissions, or choose another.") from None
        raise DeviceError(f"{where}: the store cannot be reached or used ({said}). Try again.") from None


def _without_secrets(text: str, address: str) -> str:
    secrets = [os.environ.get(PASSWORD, ""), os.environ.get(USER, "")]
    with suppress(ValueError):
        parts = urlsplit(address)
        secrets += [parts.netloc.rpartition("@")[0], parts.password or "", parts.username or "", parts.query]
    for secret in sorted(filter(None, secrets), key=len, reverse=True):
        text = text.replace(secret, "...")
    return " ".join(text.split())[:300]


def _place(sha256: str) -> str:
    return f"{sha256[:2]}/{sha256}"


def _copy_in(source: Path, target: Path) -> None:
    """A copy under a temporary name, then renamed."""
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=".", dir=target.parent)
    os.close(handle)
    try:
        shutil.copyfile(source, name)
        Path(name).chmod(0o644)
        Path(name).replace(target)
    finally:
        Path(name).unlink(missing_ok=True)


@dataclass(frozen=True)
class FolderStore:
    """`<folder>/<first two digits>/<sha256>`."""

    address: str
    root: Path

    def has(self, sha256: str) -> bool:
        """See `Store`."""
        return (self.root / _place(sha256)).is_file()

    def put(self, file: Path, sha256: str) -> None:
        """See `Store`."""
        _copy_in(file, self.root / _place(sha256))

    def get(self, sha256: str, into: Path) -> None:
        """See `Store`."""
        shutil.copyfile(self.root / _place(sha256), into)


@dataclass(frozen=True)
class UrlStore:
    """As `FolderStore`, on a file system of fsspec."""

    address: str
    files: Any
    root: str

    @classmethod
    def open(cls, address: str) -> UrlStore:
        """By a URL such as `s3://bucket/path`."""
        fsspec = require("fsspec", extra="store", why="reaching a store by a URL")
        given = {"username": os.environ.get(USER), "password": os.environ.get(PASSWORD)}
        options = {key: value for key, value in given.items() if value}
        with settled(address):
            try:
                files, root = fsspec.core.url_to_fs(address, **options)
            except (ImportError, ValueError) as error:
                raise UsageError(
                    f"{shown(address)}: {_without_secrets(str(error), address)}. Install what it names, or use another "
                    "store."
                ) from None
        return cls(address, files, str(root).rstrip("/"))

    def has(self, sha256: str) -> bool:
        """See `Store`."""
        # Not `exists`: that takes every error for absence.
        try:
            self.files.invalidate_cache()
            self.files.info(f"{self.root}/{_place(sha256)}")
        except FileNotFoundError:
            return False
        return True

    def put(self, file: Path, sha256: str) -> None:
        """See `Store`."""
        target = f"{self.root}/{_place(sha256)}"
        temporary = f"{self.root}/{sha256[:2]}/tmp-{uuid4().hex}"
        self.files.makedirs(f"{self.root}/{sha256[:2]}", exist_ok=True)
        try:
            self.files.put_file(str(file), temporary)
            self.files.mv(temporary, target)
        except BaseException:
            with suppress(Exception):
                self.files.rm_file(temporary)
            raise

    def get(self, sha256: str, into: Path) -> None:
        """See `Store`."""
        self.files.get_file(f"{self.root}/{_place(sha256)}", str(into))


def _manifest(sha256: str, size: int) -> dict[str, Any]:
    """An artifact of one layer (OCI image specification 1.1, "Guidelines for artifact usage")."""
    empty = hashlib.sha256(b"{}").hexdigest()
    return {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "artifactType": ARTIFACT,
        "config": {"mediaType": EMPTY, "digest": f"sha256:{empty}", "size": 2},
        "layers": [
            {
                "mediaType": OBJECT,
                "digest": f"sha256:{sha256}",
                "size": size,
                "annotations": {"org.opencontainers.image.title": sha256},
            }
        ],
    }


def _reference(sha256: str) -> dict[str, str]:
    return {"org.opencontainers.image.ref.name": sha256}


@dataclass(frozen=True)
class LayoutStore:
    """An OCI image layout on the disk: every object is an artifact with its sha256 as reference name."""

    address: str
    root: Path

    def _blob(self, sha256: str) -> Path:
        return self.root / "blobs" / "sha256" / sha256

    def has(self, sha256: str) -> bool:
        """See `Store`."""
        return self._blob(sha256).is_file() and any(
            m.get("annotations") == _reference(sha256) for m in self._index()["manifests"]
        )

    def put(self, file: Path, sha256: str) -> None:
        """See `Store`."""
        from edgekit.report.report import write_bytes

        manifest = json.dumps(_manifest(sha256, file.stat().st_size), indent=1).encode()
        digest = hashlib.sha256(manifest).hexdigest()
        self._blob(sha256).parent.mkdir(parents=True, exist_ok=True)
        _copy_in(file, self._blob(sha256))
        write_bytes(self._blob(hashlib.sha256(b"{}").hexdigest()), b"{}")
        write_bytes(self._blob(digest), manifest)
        write_bytes(self.root / "oci-layout", b'{"imageLayoutVersion": "1.0.0"}')
        entry = {"mediaType": MANIFEST, "artifactType": ARTIFACT, "digest": f"sha256:{digest}", "size": len(manifest)}
        with alone(self.root):
            index = self._index()
            listed = [m for m in index["manifests"] if m.get("digest") != entry["digest"]]
            listed.append({**entry, "annotations": _reference(sha256)})
            index["manifests"] = sorted(listed, key=lambda m: str(m.get("digest")))
            write_bytes(self.root / "index.json", json.dumps(index, indent=1).encode())

    def _index(self) -> dict[str, Any]:
        path = self.root / "index.json"
        if not path.exists():
            return {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": []}
        try:
            index: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            if isinstance(index["manifests"], list) and all(isinstance(m, dict) for m in index["manifests"]):
                return index
        except (ValueError, KeyError, TypeError):
            pass
        raise IntegrityError(f"{path}: not the index of an OCI image layout. Restore it, or choose another folder.")

    def get(self, sha256: str, into: Path) -> None:
        """See `Store`."""
        shutil.copyfile(self._blob(sha256), into)


@dataclass(frozen=True)
class RegistryStore:
    """A repository of an OCI registry: every object is an artifact with its sha256 as tag."""

    address: str
    registry: Any
    repository: str

    @classmethod
    def open(cls, address: str) -> RegistryStore:
        """By `oci://HOST[:PORT]/REPOSITORY`; a registry on this machine is spoken to without TLS.

        Raises:
            DeviceError: nobody answers there.
        """
        provider = require("oras.provider", extra="store", why="reaching an OCI registry")
        parts = urlsplit(address)
        host, path = parts.netloc.rpartition("@")[2], parts.path.strip("/")
        if not host or not path:
            raise UsageError(f"{shown(address)}: a registry is oci://HOST[:PORT]/REPOSITORY.")
        user, password = parts.username or os.environ.get(USER), parts.password or os.environ.get(PASSWORD)
        near = parts.hostname in ("localhost", "127.0.0.1", "::1")
        registry = provider.Registry(hostname=host, insecure=near, auth_backend="basic" if user else "token")
        if user and password:
            registry.auth.set_basic_auth(user, password)
        with settled(address):  # requests of oras are repeated for minutes where nobody answers
            registry.session.get(f"{registry.prefix}://{host}/v2/", timeout=20)
        return cls(address, registry, f"{host}/{path}")

    def has(self, sha256: str) -> bool:
        """See `Store`."""
        container = self.registry.get_container(self.repository)
        for url in (container.manifest_url(sha256), container.get_blob_url(f"sha256:{sha256}")):
            answer = self.registry.do_request(f"{self.registry.prefix}://{url}", "HEAD", headers={"Accept": MANIFEST})
            if answer.status_code == 404:
                return False
            answer.raise_for_status()
        return True

    def put(self, file: Path, sha256: str) -> None:
        """See `Store`."""
        container = self.registry.get_container(f"{self.repository}:{sha256}")
        manifest = _manifest(sha256, file.stat().st_size)
        with tempfile.NamedTemporaryFile(prefix="edgekit-") as empty:
            empty.write(b"{}")
            empty.flush()
            for blob, layer in ((file, manifest["layers"][0]), (Path(empty.name), manifest["config"])):
                self.registry.upload_blob(str(blob), container, layer).raise_for_status()
        self.registry.upload_manifest(manifest, container).raise_for_status()

    def get(self, sha256: str, into: Path) -> None:
        """See `Store`."""
        self.registry.download_blob(self.registry.get_container(self.repository), f"sha256:{sha256}", str(into))
