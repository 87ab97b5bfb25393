"""The command line. This module stays light: Ctrl-C during the first imports ends with 130 too."""

from __future__ import annotations

import io
import os
import signal
import sys
from types import FrameType


def main() -> None:
    """Run the `edgekit` command."""
    _settle_streams()
    for name in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(name) is signal.SIG_DFL:  # `nohup` ignores the second
            signal.signal(name, _interrupt)
    try:
        from edgekit.cli.app import app

        app(prog_name="edgekit")
    except KeyboardInterrupt:
        print("edgekit: interrupted.", file=sys.stderr)
        sys.exit(130)


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
