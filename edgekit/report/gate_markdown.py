"""A gate as Markdown: for the summary of a GitHub step, a merge request, or a document."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from edgekit.plain import markdown
from edgekit.report import gated, words
from edgekit.report.quantities import show_seconds
from edgekit.report.verdicts import GateFile, Judgement

LIMIT = 1 << 20
"""Bytes of the largest summary of a step that GitHub shows; it shows nothing of a larger one."""
_ROWS = 500
_LONGEST = 1_000
_CUT = "Cut here: the rest is in gate.json."


def render(gate: GateFile) -> str:
    """Outcome, what did not pass and why, what to do, and the passes folded away. At most 1 MiB."""
    judged = gated.by_weight(gate.judgements)
    missed = [judgement for judgement in judged if judgement.verdict != "pass"]
    passed = [judgement for judgement in judged if judgement.verdict == "pass"]
    steps = [*gated.next_steps(gate), *([gated.beyond(gate)] if gated.beyond(gate) else [])]
    lines = [f"## {_text(gate.model)}: {words.ending(gate.exit_code).lower()}", ""]
    lines += [f"**{markdown(gated.headline(gate))}.** {_about(gate)}", ""]
    lines += [*_table(missed), ""]
    lines += [*(f"- {_text(step)}" for step in steps)]
    lines += [*(f"- Worth knowing: {_text(warning)}" for warning in gate.warnings[:_ROWS]), ""]
    if passed:
        lines += ["<details>", f"<summary>{len(passed):,} passed</summary>", ""]
        lines += [*_table(passed), "", "</details>", ""]
    return fit("\n".join(lines).replace("\n\n\n", "\n\n").rstrip() + "\n")


def append_summary(text: str, environment: Mapping[str, str] = os.environ) -> Path | None:
    """Add `text` to what the step has told already, where `GITHUB_STEP_SUMMARY` names its file; that file, or None.

    Raises:
        OSError: the file cannot be written.
    """
    name = environment.get("GITHUB_STEP_SUMMARY")
    if not name:
        return None
    path = Path(name)
    taken = path.stat().st_size if path.exists() else 0
    gap = "\n" if taken else ""
    with path.open("a", encoding="utf-8", newline="\n") as file:
        file.write(fit(f"{gap}{text}", LIMIT - taken))
    return path


def fit(text: str, room: int = LIMIT) -> str:
    """`text` in at most `room` bytes: whole lines from its beginning, and a last one that says so."""
    if len(text.encode()) <= room:
        return text
    ending, fold = f"\n{_CUT}\n", "\n</details>\n"
    kept, left, folded = [], room - len(ending) - len(fold), 0
    for line in text.splitlines(keepends=True):
        left -= len(line.encode())
        if left < 0:
            break
        kept.append(line)
        folded += line.startswith("<details>") - line.startswith("</details>")
    return "".join([*kept, fold * folded, ending]) if kept else ""


def _about(gate: GateFile) -> str:
    """What was judged, by what, and where."""
    made = f" of {markdown(gate.report.created)}" if gate.report.created else ""
    parts = [f"{_text(gate.report.path)}{made} by {_text(gate.clauses)}"]
    parts += [f"timed again on {_text(gate.device)}"] if gate.device else []
    parts += [f"previous: {_text(gate.previous.path)}"] if gate.previous else []
    parts += [f"{gate.attempts} attempts"] if gate.attempts > 1 else []
    parts += [show_seconds(gate.seconds)] if gate.seconds else []
    return f"{'; '.join(parts)}."


def _table(judgements: Sequence[Judgement]) -> list[str]:
    if not judgements:
        return []
    rows = [f"| {' | '.join(_cells(judgement))} |" for judgement in judgements[:_ROWS]]
    more = len(judgements) - len(rows)
    cut = ["", f"{more:,} more are in gate.json."] if more else []
    return ["| verdict | clause | where | seen | limit | why |", "|---|---|---|---|---|---|", *rows, *cut]


def _cells(judgement: Judgement) -> list[str]:
    stops = judgement.exit_code != 0
    verdict = f"**{judgement.verdict}**" if stops else judgement.verdict
    cells = (gated.where(judgement), gated.seen(judgement), gated.limit(judgement), judgement.reason)
    return [verdict, *(_text(cell) for cell in (judgement.clause, *cells))]


def _text(text: str) -> str:
    """Untrusted text, of a length that leaves room for the rest."""
    return markdown(text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…")
