"""The command line. This module stays light: Ctrl-C during the first imports ends with 130 too."""

from __future__ import annotations

import signal
import sys
from types import FrameType


def main() -> None:
    """Run the `edgekit` command."""
    for name in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(name) is signal.SIG_DFL:  # `nohup` ignores the second
            signal.signal(name, _interrupt)
    try:
        from edgekit.cli.app import app

        app(prog_name="edgekit")
    except KeyboardInterrupt:
        print("edgekit: interrupted.", file=sys.stderr)
        sys.exit(130)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Being ended from outside is an interruption: what is under way is cleaned up."""
    raise KeyboardInterrupt
