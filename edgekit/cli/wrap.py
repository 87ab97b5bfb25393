"""Lines that fit the terminal."""

from __future__ import annotations

import shutil
import textwrap

TIE = "\u00a0"
"""A space at which no line breaks."""


def labelled(label: str, text: str, indent: int) -> list[str]:
    """`text` beside its label, wrapped to the terminal's width with every line starting at column `indent`.

    >>> labelled("a", "b c", 3)
    ['a  b c']
    """
    width = max(shutil.get_terminal_size().columns, indent + 20)
    first = label.ljust(indent) if len(label) < indent else f"{label} "
    lines = textwrap.wrap(
        text,
        width,
        initial_indent=first,
        subsequent_indent=" " * indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return [line.replace(TIE, " ") for line in lines] or [label]
