"""A gate as GitHub's workflow commands: a line each on stdout, which GitHub shows beside the clause.

https://docs.github.com/actions/reference/workflows-and-actions/workflow-commands has the form and its escapes. GitHub
keeps ten errors, ten warnings and ten notices of a step, and drops the others without a word
(https://github.com/actions/toolkit/blob/main/docs/problem-matchers.md#limitations).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Literal

from edgekit.plain import printable
from edgekit.report import gated
from edgekit.report.gated import Level
from edgekit.report.verdicts import GateFile

MOST = 10
"""Annotations of one level that GitHub shows of a step."""
_LONGEST = 4_000
"""Characters of a message. GitHub cuts long ones; what matters stands first."""

Wanted = Literal["auto", "github", "none"]


def wanted(choice: Wanted, environment: Mapping[str, str] = os.environ) -> bool:
    """Whether to write them: `auto` does in a GitHub workflow, where `GITHUB_ACTIONS` is `true`."""
    return choice == "github" or (choice == "auto" and environment.get("GITHUB_ACTIONS") == "true")


def render(gate: GateFile) -> str:
    """At most ten lines of each level, the most serious first; the tenth says how many more there are.

    Whatever stops the gate is an error, what did not pass and stops nothing a warning. Passes are one notice together.
    """
    found: dict[Level, list[str]] = {"error": [], "warning": [], "notice": []}
    beyond = gated.beyond(gate)
    if beyond:
        found["error"].append(_command("error", "Gate", beyond))
    for judgement in gated.by_weight(gate.judgements):
        level = gated.level(judgement)
        if level != "notice":
            file, line = gated.place(judgement, gate)
            title = f"{judgement.verdict}: {judgement.clause}"
            place = gated.where(judgement)
            message = f"{place}: {judgement.reason}" if place else judgement.reason
            found[level].append(_command(level, title, message, file, line))
    found["warning"] += [_command("warning", "Gate", warning) for warning in gate.warnings]
    found["notice"].append(_command("notice", f"Gate of {gate.model}", gated.headline(gate)))
    return "".join(f"{line}\n" for level, lines in found.items() for line in _few(level, lines))


def _few(level: Level, lines: list[str]) -> list[str]:
    if len(lines) <= MOST:
        return lines
    more = len(lines) - (MOST - 1)
    return [*lines[: MOST - 1], _command(level, "Gate", f"{more} more are in the summary and in gate.json.")]


def _command(level: Level, title: str, message: str, file: str = "", line: int = 1) -> str:
    place = {"file": printable(file), "line": str(line)} if file else {}
    properties = {**place, "title": _flat(title)}
    listed = ",".join(f"{name}={_property(value)}" for name, value in properties.items())
    return f"::{level} {listed}::{_data(_flat(message))}"


def _flat(text: str) -> str:
    flat = printable(" ".join(text.split()))
    return flat if len(flat) <= _LONGEST else f"{flat[: _LONGEST - 1]}…"


def _data(text: str) -> str:
    """The escapes of a message: without them a line break would start a command of its own."""
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    """The escapes of a property, whose end is a colon or a comma."""
    return _data(text).replace(":", "%3A").replace(",", "%2C")
