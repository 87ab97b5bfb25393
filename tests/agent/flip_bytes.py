"""Executes a bundle once for every damaged copy asked for, each in a forked process; not a test by itself.

Usage: flip_bytes.py BUNDLE; stdin holds lines "offset xor"; stdout gets lines "offset xor code length-of-stdout".
Forking from a process that has numpy loaded makes thousands of runs affordable.
"""

from __future__ import annotations

import contextlib
import os
import runpy
import sys
import traceback
from pathlib import Path

import numpy  # noqa: F401


def execute(path: str) -> int:
    sys.argv = [path, "info"]
    try:
        runpy.run_path(path, run_name="__main__")
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def outcome(path: str) -> tuple[int, int]:
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.dup2(writer, 1)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        code = execute(path)
        with contextlib.suppress(Exception):
            sys.stdout.flush()
        os._exit(code & 0xFF)
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        told = stream.read()
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), len(told)


def main() -> None:
    source = Path(sys.argv[1])
    content = source.read_bytes()
    copy = source.with_name("damaged.edge")
    for line in sys.stdin:
        offset, xor = map(int, line.split())
        damaged = bytearray(content)
        damaged[offset] ^= xor
        copy.write_bytes(damaged)
        print(offset, xor, *outcome(str(copy)), flush=True)


if __name__ == "__main__":
    main()
