"""How a gate is put into words and in which order, the same in every output that is made from `gate.json`."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path, PurePath
from typing import Literal

from edgekit.errors import PRIORITY, ExitCode
from edgekit.report import words
from edgekit.report.quantities import NOTHING, show, show_interval
from edgekit.report.verdicts import GateFile, Judgement, Verdict

_ORDER: tuple[Verdict, ...] = ("fail", "missing", "invalid", "inconclusive", "warn", "pass")
_NEXT: dict[Verdict, str] = {
    "fail": "Find out what changed: edgekit explain says which layers lose accuracy or time. Change a limit in a "
    "reviewed commit, never to get past a failure.",
    "missing": "Measure what is missing, or say with on_missing what its absence means.",
    "invalid": "The device was in no state to measure on: let it cool, end what else runs there, and judge again. "
    "--retry-invalid N does so.",
    "inconclusive": "The interval reaches across the limit: measure more, or choose a limit that the data can tell.",
}

Level = Literal["error", "warning", "notice"]


def level(judgement: Judgement) -> Level:
    """error: it stops the gate. warning: it did not pass, and stops nothing. notice: it passed."""
    if judgement.exit_code:
        return "error"
    return "notice" if judgement.verdict == "pass" else "warning"


def by_weight(judgements: Iterable[Judgement]) -> list[Judgement]:
    """The most serious first: by the code that each asks for, then by verdict; otherwise as they stand."""
    return sorted(judgements, key=lambda j: (_rank(j.exit_code), _ORDER.index(j.verdict)))


def headline(gate: GateFile) -> str:
    """The outcome and how the judgements went, such as `Gate failed: 3 of 4 judgements pass, 1 fail`."""
    counted = words.tally(gate.judgements) if gate.judgements else "nothing was judged"
    return f"{words.ending(gate.exit_code)}: {counted}"


def where(judgement: Judgement) -> str:
    """Target and runtime, or what there is of them."""
    runtime = words.backend(judgement.backend) if judgement.backend else None
    return ", ".join(part for part in (judgement.target, runtime) if part)


def seen(judgement: Judgement) -> str:
    """What was observed with its interval and count."""
    return show_interval(judgement.observed, judgement.observed.unit) if judgement.observed else NOTHING


def limit(judgement: Judgement) -> str:
    """The limit in the unit of what was observed; the clause says it as it was written."""
    if judgement.limit is None or judgement.observed is None:
        return NOTHING
    sign = "≥" if judgement.kind == "min" else "≤" if judgement.kind else ""
    return f"{sign} {show(judgement.limit, judgement.observed.unit)}".strip()


def said(judgement: Judgement) -> str:
    """One judgement in a line."""
    place = where(judgement)
    return f"{judgement.verdict}: {judgement.clause}{f' ({place})' if place else ''}: {judgement.reason}"


def beyond(gate: GateFile) -> str:
    """Why the gate ends with a code that no judgement asks for; empty where one does."""
    codes = [judgement.exit_code for judgement in gate.judgements]
    if gate.exit_code in codes or (gate.exit_code == 0 and not any(codes)):
        return ""
    return f"the gate ended with exit code {gate.exit_code} ({words.ending(gate.exit_code).lower()}), not by a clause"


def next_steps(gate: GateFile) -> list[str]:
    """What to do about the verdicts that stop the gate, once each."""
    stopped = {judgement.verdict for judgement in gate.judgements if judgement.exit_code}
    steps = [_NEXT[verdict] for verdict in _ORDER if verdict in stopped and verdict in _NEXT]
    needed = max((j.samples_needed or 0 for j in gate.judgements if j.verdict == "inconclusive"), default=0)
    return [*steps, *([f"About {needed:,} samples or rounds would tell."] if needed else [])]


def place(judgement: Judgement, gate: GateFile) -> tuple[str, int]:
    """File and line of the clause; the path starts at the root of the repository, which CI's environment names."""
    path = os.path.normpath(Path.cwd() / (judgement.file or gate.clauses))
    roots = [os.environ.get("GITHUB_WORKSPACE"), os.environ.get("CI_PROJECT_DIR"), str(Path.cwd())]
    below = next((root for root in roots if root and PurePath(path).is_relative_to(root)), None)
    shown = PurePath(path).relative_to(below) if below else PurePath(path)
    return shown.as_posix(), max(judgement.line or 1, 1)


def _rank(code: int) -> int:
    """Position in the priority of exit codes; one that does not exist is the most serious."""
    return PRIORITY.index(ExitCode(code)) if code in set(ExitCode) else -1
