"""How bundles did on changed samples: a table of corruption by bundle in HTML, a line a bundle in the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from edgekit.report import words
from edgekit.report.markup import Content, Markup, el
from edgekit.report.quantities import NOTHING
from edgekit.report.report import Report, Result
from edgekit.report.robust import Condition, Robustness
from edgekit.report.tables import table
from edgekit.report.values import Interval

NOTE = (
    "Accuracy on the same samples, changed in fixed ways, in percent. Below it the change against the reference on the "
    "very same inputs with its 95 % interval. The mean is over all corruptions; adversarial inputs were made against "
    "the reference."
)


def tables(report: Report) -> Content:
    """A table for every target and backend with something to show; the first one is open."""
    found: list[Markup] = []
    for target, backend in dict.fromkeys((r.target, r.backend) for r in report.results if r.robustness):
        same = [r for r in report.results if (r.target, r.backend) == (target, backend) and r.robustness]
        head = f"{words.backend(backend)} on {target}"
        found.append(el("details", el("summary", head), _table(head, same), open=not found))
    return el("div", found) if found else None


def _table(label: str, results: Sequence[Result]) -> Markup:
    seen = [r.robustness for r in results if r.robustness]
    names = dict.fromkeys(c.name for s in seen for c in s.conditions)
    rows = [_row(f"as it is, {seen[0].n:,} samples", [(s.clean, None) for s in seen])]
    rows += [_row(name, [_accuracy(s.condition(name)) for s in seen]) for name in names]
    if any(s.mean for s in seen):
        rows.append(_row("mean", [(s.mean, s.lost) for s in seen], class_="ships"))
    return table(
        f"Robustness, {label}", ("Samples", *(f"{r.role} {r.precision}" for r in results)), rows, class_="sticky"
    )


def _accuracy(condition: Condition | None) -> tuple[Interval | None, Interval | None]:
    return (condition.accuracy, condition.lost) if condition else (None, None)


def _row(name: str, cells: Sequence[tuple[Interval | None, Interval | None]], class_: str | None = None) -> Markup:
    return el("tr", el("th", name, scope="row"), [el("td", _cell(*cell)) for cell in cells], class_=class_)


def _cell(seen: Interval | None, lost: Interval | None) -> Content:
    if seen is None:
        return NOTHING
    return [f"{100 * seen.value:.1f}", el("small", changed(lost)) if lost else None]


def changed(lost: Interval) -> str:
    """`-3.10 [-4.00, -2.20]`: what was lost, as a change in points."""
    return f"{-100 * lost.value:+.2f} [{-100 * lost.high:+.2f}, {-100 * lost.low:+.2f}]"


def lines(report: Report) -> list[tuple[Result, Robustness, str]]:
    """Each measured bundle with where it lost most against the reference, "" where there is nothing to compare."""
    found = []
    for result in report.results:
        if result.robustness:
            worst = max((c for c in result.robustness.conditions if c.lost), key=_lost, default=None)
            said = f"{worst.name} {-100 * _lost(worst):+.2f}" if worst else ""
            found.append((result, result.robustness, said))
    return found


def _lost(condition: Condition) -> float:
    return condition.lost.value if condition.lost else 0.0
