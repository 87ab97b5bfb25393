"""`edgekit check FILE...`: recipes and gate files, before anything is run."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from edgekit.cli.verb import Json, say, verb


@verb
def check(
    files: Annotated[list[Path], typer.Argument(help="Recipes and gate files.", show_default=False)],
    as_json: Json = False,
) -> int:
    """Check recipes and gate files without running anything: one line an error, as a commit hook wants it."""
    from edgekit.checking import check_file
    from edgekit.errors import EdgekitError, worst
    from edgekit.plain import printable

    found = []
    codes = []
    for path in files:
        try:
            found.append({"file": str(path), "kind": check_file(path), "error": None})
        except EdgekitError as error:
            codes.append(error.exit_code)
            found.append({"file": str(path), "kind": None, "error": str(error)})
            if not as_json:
                print(printable(f"edgekit: {error}"), file=sys.stderr)
    fine = [f"{printable(str(one['file']))}: a {one['kind']}" for one in found if one["kind"]]
    if as_json:
        say(json.dumps(found, indent=2))
    elif fine:
        say("\n".join(fine))
    return worst(codes)
