"""The command line. This module stays light: Ctrl-C during the first imports ends with 130 too."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the `edgekit` command."""
    try:
        from edgekit.cli.app import app

        app(prog_name="edgekit")
    except KeyboardInterrupt:
        print("edgekit: interrupted.", file=sys.stderr)
        sys.exit(130)
