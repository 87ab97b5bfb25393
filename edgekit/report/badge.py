"""A gate as a badge: an SVG of its own, or the JSON that shields.io draws one from."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from edgekit.errors import UsageError
from edgekit.plain import printable
from edgekit.report import words
from edgekit.report.markup import el
from edgekit.report.verdicts import GateFile

_LABEL = "edgekit gate"
_COLOURS = {"pass": "#1a7f4b", "fail": "#b3261e", "unsure": "#8a5a00"}
"""White text reads on each with a contrast of at least 4.5 (WCAG 2.1, 1.4.3)."""


def for_file(path: Path) -> Callable[[GateFile], str]:
    """The renderer that a file's suffix asks for.

    Raises:
        UsageError: the file is to be neither .svg nor .json.
    """
    found = {".svg": svg, ".json": endpoint}.get(path.suffix.lower())
    if found is None:
        raise UsageError(f"{path}: a badge is an .svg or, for shields.io, a .json. Give one of these suffixes.")
    return found


def endpoint(gate: GateFile) -> str:
    """What https://shields.io/badges/endpoint-badge reads; a failed gate is shown as an error there."""
    badge = {"schemaVersion": 1, "label": _LABEL, "message": _message(gate), "color": _colour(gate)}
    return json.dumps({**badge, "isError": True} if _tone(gate) == "fail" else badge, indent=2) + "\n"


def svg(gate: GateFile) -> str:
    """An image 20 pixels high, with a title for readers who do not see it."""
    message = _message(gate)
    left, right = _width(_LABEL), _width(message)
    title = f"{_LABEL} of {printable(gate.model)}: {message}"
    body = [
        el("title", title),
        el("rect", width=left + right, height=20, rx=3, fill="#333a42"),
        el("path", d=f"M{left} 0h{right - 3}a3 3 0 0 1 3 3v14a3 3 0 0 1-3 3h-{right - 3}z", fill=_colour(gate)),
        el(
            "g",
            el("text", _LABEL, x=left / 2, y=14, textlength=left - 12),
            el("text", message, x=left + right / 2, y=14, textlength=right - 12),
            fill="#fff", text_anchor="middle", font_family="Verdana,DejaVu Sans,sans-serif", font_size=11,
        ),
    ]  # fmt: skip
    size = {"width": left + right, "height": 20, "viewbox": f"0 0 {left + right} 20"}
    return f"{el('svg', body, xmlns='http://www.w3.org/2000/svg', role='img', aria_label=title, **size)}\n"


def _message(gate: GateFile) -> str:
    passed = sum(judgement.verdict == "pass" for judgement in gate.judgements)
    return f"{words.ending(gate.exit_code).lower()} {passed}/{len(gate.judgements)}"


def _tone(gate: GateFile) -> str:
    return "pass" if gate.exit_code == 0 else "unsure" if gate.exit_code in (3, 4) else "fail"


def _colour(gate: GateFile) -> str:
    return _COLOURS[_tone(gate)]


def _width(text: str) -> int:
    """Pixels that suit a text of 11 px; the text is then fitted to it, whatever the font."""
    return round(6.6 * len(text)) + 12
