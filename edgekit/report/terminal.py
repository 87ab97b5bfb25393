"""The report in the terminal, at 80 columns too: a table for every target, what did not help, and the verdicts."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from edgekit.plain import printable
from edgekit.report import robust_table, words
from edgekit.report.quantities import NOTHING, show, show_count
from edgekit.report.report import Report, Result
from edgekit.report.verdicts import GateFile, Judgement

WIDTH = 100
_STYLES = {"pass": "green", "fail": "red", "unsure": "yellow"}


def render(report: Report) -> RenderableType:
    """What `Console.print` shows; colours vanish where the console has none."""
    parts: list[RenderableType] = [_heading(report)]
    parts += [_line("-", line, "dim") for line in words.sensitivity(report)]
    for target in dict.fromkeys(r.target for r in report.results):
        parts += [Text(""), _target(report, target)]
    parts += _robustness(report)
    parts += _failures(report)
    if report.warnings:
        parts += [Text(""), *(_line("!", line, "yellow") for line in report.warnings)]
    if report.gate:
        parts += [Text(""), _gate(report.gate)]
    parts += [Text(""), _verdict(report)]
    return Group(*parts)


def text(report: Report, width: int = WIDTH) -> str:
    """The same without colours, as one string."""
    return _plain(render(report), width)


def render_gate(gate: GateFile) -> RenderableType:
    """Every judgement of a gate, its warnings, and the outcome."""
    parts: list[RenderableType] = [_gate(gate.judgements)]
    if gate.warnings:
        parts += [Text(""), *(_line("!", line, "yellow") for line in gate.warnings)]
    outcome = Text(f"{words.ending(gate.exit_code)}", style=f"bold {_style(gate.exit_code)}")
    tries = f", after {words.plural(gate.attempts, 'attempt')}" if gate.attempts > 1 else ""
    said = f": {words.tally(gate.judgements)}{tries} (exit code {gate.exit_code})."
    return Group(*parts, Text(""), Text.assemble(outcome, said))


def gate_text(gate: GateFile, width: int = WIDTH) -> str:
    """The same without colours, as one string."""
    return _plain(render_gate(gate), width)


def _plain(shown: RenderableType, width: int) -> str:
    console = Console(width=width, color_system=None, force_terminal=False, highlight=False)
    with console.capture() as capture:
        console.print(shown)
    # A line break of the layout may be where text begins that acts at the beginning of a line alone.
    return "\n".join(printable(line.rstrip()) for line in capture.get().splitlines()) + "\n"


def _heading(report: Report) -> Text:
    source = report.source
    accuracy = words.source_accuracy(report)
    facts = [show(source.size_bytes, "bytes")]
    facts += [f"{show_count(source.macs)} MACs"] if source.macs else []
    facts += [f"accuracy {words.accuracy(accuracy)}"] if accuracy else []
    told = None if accuracy or not source.metrics else words.main_score(report)
    facts += [f"{told} {words.score(source.metrics, told)}"] if told else []
    return Text.assemble((printable(source.name), "bold"), f" as it came: {', '.join(facts)}")


def _target(report: Report, target: str) -> Table:
    same = [r for r in report.results if r.target == target and r.status != "failed"]
    device = next((r.device for r in same if r.device), None)
    word = "emulated, not timed," if device and device.emulated else "timed"
    table = Table(
        title=f"{target}{f' ({word} on {device.name})' if device else ''}", title_justify="left", title_style="bold",
        box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="dim",
    )  # fmt: skip
    table.add_column("", width=1)
    table.add_column("bundle")  # the one that may wrap where the terminal is narrow
    timed = any(r.latency_s for r in same)
    scored = any(r.accuracy for r in same)
    told = None if scored else words.main_score(report)
    heads = [
        "size",
        *(["accuracy %", "diff pp"] if scored else []),
        *([told] if told else []),
        *(["p50", "time/ref", "time/float"] if timed else []),
    ]
    for head in [*heads, "int8"]:
        table.add_column(head, justify="right", no_wrap=True)
    if not timed:
        table.add_column("status", no_wrap=True)
    for backend in dict.fromkeys(r.backend for r in same):
        table.add_row("", Text(words.backend(backend), style="cyan"))
        for result in (r for r in same if r.backend == backend):
            table.add_row(*_row(report, result, scored, timed, told), style="bold" if result.ships else None)
    return table


def _row(report: Report, result: Result, scored: bool, timed: bool, told: str | None) -> list[str]:
    size = show(result.size_bytes, "bytes")
    cells = ["*" if result.ships else "", f"{result.role} {result.precision}", size]
    if scored:
        change = words.points(report, result)
        cells += [_accuracy(result), "" if change is None else f"{100 * change:+.2f}"]
    if told:
        cells.append(words.score(result.metrics, told))
    if timed:
        cells += [words.percentile(result, "p50"), _ratio(result, "reference"), _ratio(result, "float")]
    cells.append(words.nodes(result) if result.role == "quantized" else "")
    return cells if timed else [*cells, words.status(result)]


def _accuracy(result: Result) -> str:
    """`93.12 ±0.50`: the value in percent with half its interval."""
    seen = result.accuracy
    return f"{100 * seen.value:.2f} ±{50 * (seen.high - seen.low):.2f}" if seen else NOTHING


def _ratio(result: Result, vs: str) -> str:
    """`0.62 ±0.02`: the ratio with half its interval."""
    pair = result.paired_with(vs)
    return f"{pair.ratio:.2f} ±{(pair.high - pair.low) / 2:.2f}" if pair else ""


def _robustness(report: Report) -> list[RenderableType]:
    """A line a bundle: accuracy as it is and on corrupted samples, and what it lost most on against the reference."""
    found = robust_table.lines(report)
    if not found:
        return []
    table = Table(
        title=f"On {found[0][1].n:,} changed samples", title_justify="left", title_style="bold",
        box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="dim",
    )  # fmt: skip
    table.add_column("bundle")
    for head in ("as it is", "corrupted", "diff pp", "worst diff pp"):
        table.add_column(head, justify="right", no_wrap=True)
    for target, backend in dict.fromkeys((r.target, r.backend) for r, *_ in found):
        table.add_row(Text(f"{words.backend(backend)} on {target}", style="cyan"))
        for result, seen, worst in (
            entry for entry in found if (entry[0].target, entry[0].backend) == (target, backend)
        ):
            mean = f"{100 * seen.mean.value:.2f}" if seen.mean else NOTHING
            lost = f"{-100 * seen.lost.value:+.2f} ±{50 * (seen.lost.high - seen.lost.low):.2f}" if seen.lost else ""
            cells = f"{result.role} {result.precision}", f"{100 * seen.clean.value:.2f}", mean, lost, worst
            table.add_row(*map(Text, cells), style="bold" if result.ships else None)
    return [Text(""), table]


def _failures(report: Report) -> list[RenderableType]:
    failed = [r for r in report.results if r.status == "failed"]
    lines = [f"{r.target}, {r.backend} {r.role} {r.precision} failed: {r.reason}" for r in failed]
    return [Text(""), *(_line("x", line, "red") for line in lines)] if lines else []


def _line(mark: str, line: str, style: str) -> RenderableType:
    """A line whose continuation is indented."""
    grid = Table.grid(padding=(0, 1, 0, 0))
    grid.add_column(width=1)
    grid.add_column(overflow="fold")
    grid.add_row(Text(mark, style=style), Text(printable(line)))
    return grid


def _gate(judged: Sequence[Judgement]) -> Group:
    """Each clause, then its verdict on every bundle that it covers."""
    parts: list[RenderableType] = []
    for clause in dict.fromkeys(entry.clause for entry in judged):
        parts.append(Text(printable(clause), style="bold"))
        table = Table.grid(padding=(0, 1, 0, 0))
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold")
        for entry in (j for j in judged if j.clause == clause):
            where = ", ".join(part for part in (entry.target, entry.backend) if part)
            verdict = Text(f"  {entry.verdict}", style=_STYLES[words.tone(entry.verdict)])
            table.add_row(verdict, Text(printable(f"{where}: {entry.reason}" if where else entry.reason)))
        parts.append(table)
    return Group(*parts)


def _verdict(report: Report) -> Text:
    shipped = sum(r.ships for r in report.results)
    outcome = words.outcome(report)
    return Text.assemble(
        (outcome, f"bold {_style(report.exit_code)}"),
        f": {words.counted(report)}; {words.plural(shipped, 'bundle')} marked * ship{'s' if shipped == 1 else ''}"
        f" (exit code {report.exit_code}).",
    )


def _style(exit_code: int) -> str:
    return "green" if exit_code == 0 else "yellow" if exit_code in (3, 4) else "red"
