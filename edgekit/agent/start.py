"""Where `python3 X.edge` begins: check the file, run the command, leave through the second check."""

from __future__ import annotations

import sys

from . import output, seal


def main() -> None:
    """Run the command line of a bundle. Never returns: `__main__.py` takes a return for damage."""
    code = 8
    reason = seal.broken(sys.argv[0])
    if reason:
        print("edgekit: " + sys.argv[0] + ": " + reason + ". Copy it again from where it was built.", file=sys.stderr)
    else:
        from . import cli

        code = cli.main(sys.argv[0], sys.argv[1:])
    output.leave(code)
