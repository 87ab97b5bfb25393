"""Jobs on boards that this machine started and has not fetched: what makes the same call take up a lost one."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import time
import uuid
from pathlib import Path
from typing import Any

from edgekit.agent.unpack import cache_folder

FRESH_S = 86400
"""A board forgets jobs after that time, too."""


class Ticket:
    """Holds the id of one job from its start until its result is here.

    A process that dies or gives up leaves the id behind, and the next one that asks for the same work takes it up.
    Two that ask for the same at the same time get ids of their own.
    """

    def __init__(self, device: str, work: dict[str, Any]) -> None:
        """`work` is everything that the result depends on."""
        key = hashlib.sha256(json.dumps([device, work], sort_keys=True).encode()).hexdigest()[:32]
        self._path = cache_folder() / "boards" / key
        self.id, self.resumed = uuid.uuid4().hex, False
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._handle: int | None = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:  # another process waits for the same work, or a file system without locks
            self._close()
            return
        left = os.pread(self._handle, 32, 0).decode("ascii", "replace")
        if len(left) == 32 and time.time() - Path(self._path).stat().st_mtime < FRESH_S:
            self.id, self.resumed = left, True
        else:
            os.pwrite(self._handle, self.id.encode(), 0)

    def done(self) -> None:
        """The result is here, or will never be: the id is of no more use."""
        if self._handle is not None:
            self._path.unlink(missing_ok=True)
            self._close()

    def leave(self) -> None:
        """Leave the id for whoever asks next."""
        self._close()

    def _close(self) -> None:
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None
