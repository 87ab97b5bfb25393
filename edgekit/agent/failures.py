"""What can go wrong on a device, with the exit code for each: the numbers are those of edgekit's command line."""

from __future__ import annotations

import errno

MISMATCH, USAGE, DEVICE, MISSING_RUNTIME, INTEGRITY, INTERNAL, INTERRUPTED = 1, 2, 5, 6, 8, 70, 130

NO_FILE = (errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST)
"""System errors that mean a path which cannot be used as it is."""


class Failure(Exception):  # noqa: N818
    """One clear message for the user, and the code to exit with."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


def usage(message: str) -> Failure:
    """An option or a data file that cannot be used as it is."""
    return Failure(USAGE, message)


def missing(package: str, why: str, error: BaseException, line: str = "") -> Failure:
    """A runtime that is not installed, or does not load; `line` is what to type, `pip install <package>` by default."""
    return Failure(MISSING_RUNTIME, f"{why} needs {package} ({error}). Install it: {line or 'pip install ' + package}")
