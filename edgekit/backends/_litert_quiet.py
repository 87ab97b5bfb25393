"""Keep what C++ and Python libraries print off the user's terminal."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from typing import Any


class Said:
    """What was written to stdout and stderr below Python while it was quiet."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self._kept = ""

    def text(self) -> str:
        """Everything so far."""
        if not self._file.closed:
            self._file.seek(0)
            self._kept = self._file.read().decode(errors="replace")
        return self._kept


@contextlib.contextmanager
def quiet() -> Iterator[Said]:
    """Catch what C++ and Python libraries print, but let our own progress through.

    The converter logs to file descriptors 1 and 2, so those are turned into a file; `sys.stderr`, where our progress
    is drawn by another thread, moves to a copy of the real one.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    saved = os.dup(1), os.dup(2)
    disabled = logging.root.manager.disable
    streams = sys.stdout, sys.stderr
    with tempfile.TemporaryFile() as file, os.fdopen(os.dup(saved[1]), "w", buffering=1) as terminal:
        said = Said(file)
        try:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
            sys.stdout, sys.stderr = io.StringIO(), terminal
            logging.disable(logging.CRITICAL)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield said
        finally:
            sys.stdout, sys.stderr = streams
            logging.disable(disabled)
            os.dup2(saved[0], 1)
            os.dup2(saved[1], 2)
            os.close(saved[0])
            os.close(saved[1])
            said.text()
