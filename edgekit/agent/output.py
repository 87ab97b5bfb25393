"""The only way out: results and exit codes pass here, after the second check of the file's digest.

This check shares no code with `seal.py` (see there). Outside a bundle, in edgekit's own tests, there is no file
to check and `check` passes.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import sys
from typing import Any

_checked = False


def check() -> int:
    """8 if the bundle that this code was loaded from does not match its digest, otherwise 0."""
    path = getattr(globals()["__loader__"], "archive", None)
    if path is None:
        return 0
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        with memoryview(data) as view, view[:-71] as covered:
            actual = hashlib.sha256(covered).hexdigest()
        return 0 if data[-64:] == actual.encode("ascii") else 8


def emit(result: dict[str, Any], line: str | None = None) -> None:
    """Print one result on stdout: as JSON, or as the given line. A damaged bundle prints nothing."""
    allow()
    print(json.dumps(result) if line is None else line, flush=True)


def allow() -> None:
    """Return if a result may leave; otherwise end the process."""
    global _checked
    if not _checked and check():
        leave(8)
    _checked = True


def leave(code: int) -> None:
    """End the process with `code`, or with 8 where the file is not what its digest says."""
    seen = check()
    sys.stdout.flush()
    if seen and code != seen:
        print("edgekit: this bundle does not match its digest: it is damaged or was changed", file=sys.stderr)
    # Not `raise SystemExit(...)`: with its bracket damaged to "#", that would be exit code 0.
    sys.exit(seen or code)
