"""Opening the bundle that is being executed: manifest, golden samples, model files in a content-addressed cache."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from .failures import INTEGRITY, NO_FILE, Failure, usage

KEPT_S = 30 * 86400
"""How long an unpacked model that nobody uses is kept."""


def cache_folder() -> Path:
    """`EDGEKIT_CACHE`, or ~/.cache/edgekit."""
    chosen = os.environ.get("EDGEKIT_CACHE")
    return Path(chosen) if chosen else Path.home() / ".cache" / "edgekit"


class Archive:
    """A verified bundle file."""

    def __init__(self, path: str) -> None:
        self.path = path
        with zipfile.ZipFile(path) as bundle:
            self.sha256 = bundle.comment.decode("ascii").partition(":")[2]
            self.manifest: dict[str, Any] = json.loads(bundle.read("manifest.json"))

    def golden(self, which: str) -> list[Any]:
        """The arrays of "inputs" or "outputs", in the manifest's order."""
        with zipfile.ZipFile(self.path) as bundle:
            arrays = np.load(io.BytesIO(bundle.read(f"golden/{which}.npz")), allow_pickle=False)
        return [arrays[entry["name"]] for entry in self.manifest[which]]

    def unpack(self) -> Path:
        """The folder with the model's files, unpacked once for each content and verified whenever it is found.

        Safe against other processes that do the same: everything is written under a name of its own, then renamed.
        """
        home = cache_folder() / "bundles"
        folder = home / self.sha256
        try:
            if folder.is_dir() and self._intact(folder):
                _touch(folder)
                return folder
            home.mkdir(parents=True, exist_ok=True)
            _forget(home)
            fresh = Path(tempfile.mkdtemp(prefix=".new-", dir=home))
            try:
                self._extract(fresh)
                self._place(fresh, folder)
            finally:
                shutil.rmtree(fresh, ignore_errors=True)
        except OSError as error:
            if error.errno not in NO_FILE:
                raise
            raise usage(
                f"cannot unpack to {home}: {error}. Set EDGEKIT_CACHE to a folder that can be written"
            ) from error
        if not self._intact(folder):
            raise Failure(INTEGRITY, f"the files in {folder} do not match the bundle. Remove that folder and try again")
        return folder

    def _members(self) -> dict[str, str]:
        return {name: digest for name, digest in self.manifest["members"].items() if name.startswith("model/")}

    def _intact(self, folder: Path) -> bool:
        for name, digest in self._members().items():
            path = folder / name[len("model/") :]
            if not path.is_file() or _sha256(path) != digest:
                return False
        return True

    def _extract(self, folder: Path) -> None:
        with zipfile.ZipFile(self.path) as bundle:
            for name in self._members():
                path = folder / name[len("model/") :]
                path.parent.mkdir(parents=True, exist_ok=True)
                with bundle.open(name) as source, open(path, "wb") as target:
                    shutil.copyfileobj(source, target, 1 << 20)

    def _place(self, fresh: Path, folder: Path) -> None:
        for _ in range(2):
            try:
                os.rename(fresh, folder)
                return
            except OSError:
                if not folder.exists():
                    raise
                if self._intact(folder):
                    return
                # What stands there is damaged: move it out of the way, once, and try again.
                damaged = tempfile.mkdtemp(prefix=".old-", dir=folder.parent)
                os.rename(folder, os.path.join(damaged, "files"))
                shutil.rmtree(damaged, ignore_errors=True)


def _touch(folder: Path) -> None:
    """Remember that it was used; where the cache is read-only, nobody will clean it up either."""
    with contextlib.suppress(OSError):
        os.utime(folder)


def _forget(home: Path) -> None:
    """Remove what no run has used for `KEPT_S`, with what killed runs left behind."""
    for folder in home.iterdir():
        with contextlib.suppress(OSError):  # another process may be doing the same
            if time.time() - folder.stat().st_mtime > KEPT_S:
                shutil.rmtree(folder)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()
