"""Files that several processes write: one at a time, and never over what another wrote meanwhile."""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from edgekit.errors import UsageError


def seen(path: Path) -> str:
    """sha256 of a file as it is now, "" where there is none: what `as_seen` asks for.

    Raises:
        UsageError: it is there and cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}. Check its permissions.") from error


@contextmanager
def as_seen(path: Path, was: str) -> Iterator[None]:
    """While the context lasts, a file that is still as it was `seen` may be replaced.

    Raises:
        UsageError: somebody else has changed it.
    """
    with alone(path.parent):
        if seen(path) != was:
            raise UsageError(f"{path}: it changed meanwhile; nothing was written over it. Look at it, and try again.")
        yield


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Wait until no other process is in a context of this folder, and keep others waiting."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
