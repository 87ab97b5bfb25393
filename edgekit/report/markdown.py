"""The report as a short Markdown summary, for a pull request or a document."""

from __future__ import annotations

from edgekit.plain import markdown
from edgekit.report import words
from edgekit.report.quantities import NOTHING, show
from edgekit.report.report import Report, Result


def render(report: Report) -> str:
    """Outcome, a table of what ships, what did not help and every clause that did not pass."""
    lines = [f"## {markdown(report.source.name)}: {words.outcome(report)}", "", markdown(words.done(report)), ""]
    lines += ["| target | backend | ships | size | smaller | accuracy | vs reference | p50 | time / reference |"]
    lines += ["|---|---|---|---:|---:|---:|---:|---:|---:|"]
    lines += [_row(report, result) for result in report.results if result.ships]
    lines += ["", *(f"- {markdown(warning)}" for warning in report.warnings), ""]
    if report.gate:
        lines += ["| verdict | clause | where | what was seen |", "|---|---|---|---|"]
        lines += [
            f"| {j.verdict} | {markdown(j.clause)} | {markdown(', '.join(p for p in (j.target, j.backend) if p))} "
            f"| {markdown(j.reason)} |"
            for j in report.gate
        ]
        lines += ["", f"{words.counted(report).capitalize()}.", ""]
    return "\n".join(lines).replace("\n\n\n", "\n\n").rstrip() + "\n"


def _row(report: Report, result: Result) -> str:
    times = words.smaller(report, result)
    cells = [
        result.target,
        words.backend(result.backend),
        f"{result.role} {result.precision} ({words.status(result)})",
        show(result.size_bytes, "bytes"),
        f"{times:.1f}x" if times else NOTHING,
        words.accuracy(result.accuracy),
        words.signed_points(words.points(report, result)),
        words.percentile(result, "p50"),
        words.ratio(result.paired_with("reference")),
    ]
    return f"| {' | '.join(markdown(cell) for cell in cells)} |"
