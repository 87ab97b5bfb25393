"""Zips whose digest is right, whatever they hold: what somebody who means harm would write."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

from edgekit.bundle import Bundle

Member = tuple[str | zipfile.ZipInfo, bytes]


def sealed(content: bytes) -> bytes:
    """A zip with an empty comment's place for the digest, with the digest of what it holds."""
    return content[:-71] + b"sha256:" + hashlib.sha256(content[:-71]).hexdigest().encode()


def reseal(path: Path, members: list[Member], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members:
            info = name if isinstance(name, zipfile.ZipInfo) else zipfile.ZipInfo(name)
            archive.writestr(info, content, compression)
        archive.comment = b"sha256:" + b"0" * 64
    path.write_bytes(sealed(path.read_bytes()))
    return path


def members(bundle: Bundle) -> list[tuple[str, bytes]]:
    with zipfile.ZipFile(bundle.path) as archive:
        return [(name, archive.read(name)) for name in archive.namelist()]


def with_manifest(found: list[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
    """The members with a manifest that names them all, and their true digests."""
    import json

    held = dict(found)
    manifest = json.loads(held.pop("manifest.json"))
    manifest["members"] = {name: hashlib.sha256(content).hexdigest() for name, content in held.items()}
    return [*held.items(), ("manifest.json", json.dumps(manifest).encode())]
