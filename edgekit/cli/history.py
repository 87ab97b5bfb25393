"""`edgekit history FILE`: what gates said one after another."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgekit.cli.verb import Json, say, verb

if TYPE_CHECKING:
    from edgekit.report.history import Entry


@verb
def history(
    file: Annotated[Path, typer.Argument(help="The file of `edgekit gate --history`.", show_default=False)],
    html: Annotated[Path | None, typer.Option(help="Write a page with charts here.", show_default=False)] = None,
    as_json: Json = False,
) -> None:
    """Show the gates of a history file, oldest first, and draw every metric over them."""
    from edgekit.errors import UsageError
    from edgekit.report.history import read
    from edgekit.report.history_page import render
    from edgekit.report.report import write_text

    found = read(file)
    if html:
        try:
            write_text(html, render(found))
        except OSError as error:
            raise UsageError(f"cannot write {html}: {error.strerror}. Check the folder and its permissions.") from error
    if as_json:
        entries = [entry.model_dump(mode="json") for entry in found.entries]
        say(json.dumps({"entries": entries, "skipped": found.skipped, "left_out": found.left_out}, indent=2))
        return
    left = f"{found.left_out} older gates are left out.\n" if found.left_out else ""
    skipped = f"{found.skipped} lines could not be read.\n" if found.skipped else ""
    say(left + skipped + "\n".join(map(_line, found.entries)))


def _line(entry: Entry) -> str:
    from edgekit.plain import printable
    from edgekit.report.words import ending

    passed = sum(point.verdict == "pass" for point in entry.points)
    counted = f"{passed} of {len(entry.points) + entry.cut} pass"
    return printable(f"{entry.created}  {entry.model}: {ending(entry.exit_code).lower()}, {counted}")
