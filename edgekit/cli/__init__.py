"""The command line. This module stays light: Ctrl-C during the first imports ends with 130 too."""

from __future__ import annotations

import io
import os
import signal
import sys
from contextlib import suppress
from types import FrameType
from typing import TextIO

from edgekit.errors import ExitCode


def main() -> None:
    """Run the `edgekit` command. Where a stream takes nothing any more, the exit code is still a documented one."""
    _settle_streams()
    for name in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(name) is signal.SIG_DFL:  # `nohup` ignores the second
            signal.signal(name, _interrupt)
    code: int | str | None = 0
    try:
        from edgekit.cli.app import app

        app(prog_name="edgekit")
    except SystemExit as done:
        code = done.code
    except KeyboardInterrupt:
        code = _told(130, "interrupted.")
    except OSError as error:  # verbs tell theirs: it is the help, a result or the shell's completion
        code = _told(ExitCode.DEVICE, f"cannot write {error.filename or 'to stdout'}: {error.strerror}.")
    if not _flushed(sys.stdout) and not code:
        code = _told(ExitCode.DEVICE, "cannot write all of the result to stdout.")
    _flushed(sys.stderr)
    sys.exit(code)


def _told(code: int, message: str) -> int:
    with suppress(OSError):
        print(f"edgekit: {message}", file=sys.stderr)
    return int(code)


def _flushed(stream: TextIO) -> bool:
    """Whether all was written that a reader wants. The rest goes to the null device: Python would exit with 120."""
    try:
        stream.flush()
    except OSError as error:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
        return isinstance(error, BrokenPipeError)
    return True


def _settle_streams() -> None:
    """Closed streams become the null device; a character that a terminal's encoding lacks becomes another."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # the null device takes the lowest free descriptor, which is its own
            setattr(sys, name, open(os.devnull, mode))  # noqa: PTH123, SIM115
    for stream, errors in ((sys.stdout, "replace"), (sys.stderr, "backslashreplace")):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=errors)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Being ended from outside is an interruption: what is under way is cleaned up."""
    raise KeyboardInterrupt
