"""The first check, before anything else: the file's digest. `output.py` repeats it with code of its own.

Two places that share no code, because the checking code lies in the file that it checks: one changed byte can
blind one of them, not both.
"""

from __future__ import annotations

import hashlib

PREFIX = b"sha256:"
LENGTH = len(PREFIX) + 64


def broken(path: str) -> str:
    """Why the bundle at `path` is not what the digest in its last bytes says, or "" if it is."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        left = file.seek(0, 2) - LENGTH
        if left <= 0:
            return "the file is too short to be a bundle"
        file.seek(0)
        while left > 0:
            block = file.read(min(left, 1 << 20))
            if not block:
                return "the file ended while it was read"
            digest.update(block)
            left -= len(block)
        seal = file.read()
    if seal != PREFIX + digest.hexdigest().encode():
        return "its bytes do not match its digest: it is damaged, was changed, or is no bundle"
    return ""
