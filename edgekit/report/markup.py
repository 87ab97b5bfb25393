"""HTML and SVG as values: whatever is not made here is escaped, so no name can become markup."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

VOID = {"meta", "br", "input", "link", "col"}
_CAMEL = {"viewbox": "viewBox", "preserveaspectratio": "preserveAspectRatio", "textlength": "textLength"}


class Markup(str):
    """Text that is safe to stand in a page as it is."""

    __slots__ = ()


Content = str | int | float | None | Iterable["Content"]


def el(name: str, /, *children: Content, **attributes: object) -> Markup:
    """An element. Attributes: `class_` for class, `_` for `-`; True stands alone, None and False are left out.

    >>> el("p", "a < b", class_="note")
    '<p class="note">a &lt; b</p>'
    """
    written = "".join(_attribute(key, value) for key, value in attributes.items())
    if name in VOID:
        return Markup(f"<{name}{written}>")
    return Markup(f"<{name}{written}>{join(children)}</{name}>")


def join(children: Content) -> Markup:
    """Children one after another, escaped unless they are markup; None leaves nothing."""
    if children is None:
        return Markup("")
    if isinstance(children, Markup):
        return children
    if isinstance(children, str | int | float):
        return Markup(escape(str(children), quote=True))
    return Markup("".join(join(child) for child in children))


def _attribute(key: str, value: object) -> str:
    if value is None or value is False:
        return ""
    name = key.rstrip("_").replace("_", "-")
    name = _CAMEL.get(name, name)
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return f" {name}" if value is True else f' {name}="{escape(text, quote=True)}"'
