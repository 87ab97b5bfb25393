"""Text from files that others wrote, as it may stand on a terminal or in Markdown: no name can act there."""

from __future__ import annotations

import re


def printable(text: str, keep: str = "") -> str:
    r"""`text` without anything that a terminal would obey: control and format characters are written out.

    `keep` are those that stay, such as the line breaks of a message of several lines. GitHub's runner obeys lines of a
    job's log that begin with `::`, or that have `##[` anywhere (ActionCommand.cs of actions/runner): a character of
    these is written out as well.

    >>> printable("a\x1b[31mb\u202ec"), printable(" ::error::a ##[debug]b")
    ('a\\x1b[31mb\\u202ec', ' \\x3a:error::a #\\x23[debug]b')
    """
    shown = "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in text)
    return re.sub(r"(?m)^([^\S\n]*):(?=:)", r"\1\\x3a", shown).replace("##[", r"#\x23[")


def markdown(text: str) -> str:
    r"""Text that Markdown and the HTML inside it leave alone, on one line; addresses do not become links.

    >>> markdown("a | <b>\n_c_")
    'a \\| &lt;b&gt; \\_c\\_'
    """
    flat = printable(" ".join(text.split()))
    for special in "\\`*_[]|#!~$":
        flat = flat.replace(special, f"\\{special}")
    flat = flat.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return flat.replace("://", "&#58;//").replace("www.", "www&#46;")
