"""Everything that a gate writes, from the one value that `gate.json` holds."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import get_args

from edgekit.errors import UsageError
from edgekit.report.annotations import Wanted
from edgekit.report.report import is_special, write_text
from edgekit.report.verdicts import GateFile
from edgekit.workspace import writing_to

RENDERERS = {
    "junit": "edgekit.report.junit:render",
    "markdown": "edgekit.report.gate_markdown:render",
    "gitlab_code_quality": "edgekit.report.gitlab:code_quality",
    "gitlab_metrics": "edgekit.report.gitlab:metrics",
}
"""Field of `Outputs` -> what makes its text from a `GateFile`."""


@dataclass(frozen=True)
class Outputs:
    """Where to write what; None is not written. `annotations` is `auto`, `github` or `none`."""

    out: Path
    junit: Path | None = None
    markdown: Path | None = None
    gitlab_code_quality: Path | None = None
    gitlab_metrics: Path | None = None
    badge: Path | None = None
    history: Path | None = None
    annotations: Wanted = "auto"

    def check(self, read: Iterable[Path] = ()) -> None:
        """Refuse what cannot be written, or would be written over a file that is `read`, before anything is measured.

        Raises:
            UsageError: an unknown choice, a badge of no known kind, a folder that is not there, or a file that is read.
        """
        if self.annotations not in get_args(Wanted):
            raise UsageError(f"--annotations {self.annotations!r}: use auto, github or none.")
        if self.badge is not None:
            from edgekit.report import badge

            badge.for_file(self.badge)
        asked = (self.out, *(path for path, _ in self._rendered()), self.badge, self.history)
        given = [path for path in asked if path is not None]
        for path in given:
            if is_special(path):
                what = "a folder" if path.is_dir() else "no plain file, and would be replaced by one"
                raise UsageError(f"{path}: is {what}. Give the path of a file.")
            if not path.parent.is_dir():
                raise UsageError(f"{path}: there is no folder {path.parent}. Make it first.")
        summary = os.environ.get("GITHUB_STEP_SUMMARY")
        if summary and (Path(summary).is_dir() or not Path(summary).parent.is_dir()):
            raise UsageError(f"GITHUB_STEP_SUMMARY: {summary} cannot be written. Let it name a file, or unset it.")
        inputs = {os.path.realpath(path) for path in read}
        for path in given:
            if os.path.realpath(path) in inputs:
                raise UsageError(f"{path}: it is read, and would be written over. Give another path.")
        if len({os.path.realpath(path) for path in given}) < len(given):
            raise UsageError("two outputs would be written to the same file. Give each its own.")

    def write(self, gate: GateFile) -> None:
        """Write all that is asked for, `gate.json` first, each as a whole or not at all.

        In GitHub Actions the summary goes to the job's page too.
        """
        with writing_to(self.out.parent):
            value = gate.model_dump(mode="json")
            write_text(self.out, json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False) + "\n")
            for path, place in self._rendered():
                module, _, name = place.partition(":")
                write_text(path, getattr(import_module(module), name)(gate))
            self._write_badge(gate)
            self._summarise(gate)
            if self.history is not None:
                from edgekit.report.history import append

                append(gate, self.history)

    def commands(self, gate: GateFile) -> str:
        """Annotations for the log of a CI job, or "" where none are wanted."""
        from edgekit.report import annotations

        return annotations.render(gate) if annotations.wanted(self.annotations) else ""

    def _rendered(self) -> list[tuple[Path, str]]:
        """Where to write what, and the function that makes it."""
        return [(path, RENDERERS[name]) for name in RENDERERS if (path := getattr(self, name)) is not None]

    def _write_badge(self, gate: GateFile) -> None:
        if self.badge is not None:
            from edgekit.report import badge

            write_text(self.badge, badge.for_file(self.badge)(gate))

    def _summarise(self, gate: GateFile) -> None:
        if os.environ.get("GITHUB_STEP_SUMMARY"):
            from edgekit.report import gate_markdown

            gate_markdown.append_summary(gate_markdown.render(gate))
