"""The plan of a pruning: as a table for the terminal, and as a page with charts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekit.report.charts import Axis, Bar, bars
from edgekit.report.html import POLICY, asset, section
from edgekit.report.markup import Content, Markup, el
from edgekit.report.tables import table

if TYPE_CHECKING:
    from rich.console import RenderableType

    from edgekit.prune.planned import Planned, PlannedGroup

HEADS = ("Group", "Channels", "Kept", "Importance lost", "Gives")


def heading(plan: Planned) -> str:
    """What comes of the plan, in one line."""
    what = f"{plan.left / plan.total:.1%} of the {plan.unit} of {plan.model} would remain, {plan.asked:.1%} asked"
    return what if plan.reached else f"{what}: NOT reached"


def cells(one: PlannedGroup) -> tuple[str, ...]:
    """One group's row."""
    return one.group, f"{one.channels}", f"{one.kept}", f"{one.lost:.1%}", f"{one.freed:.1%}"


def explained(plan: Planned) -> str:
    """What the last columns mean."""
    return (
        "Importance lost: of the group's own. Gives: what the network would cost more, as a share of its "
        f"{plan.unit}, if this group alone were left whole."
    )


def shown(plan: Planned) -> RenderableType:
    """What `Console.print` shows."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=None, pad_edge=False)
    for number, head in enumerate(HEADS):
        drawn.add_column(head, justify="right" if number else "left", overflow="fold")
    for one in plan.groups:
        drawn.add_row(*cells(one), style="" if one.kept < one.channels else "dim")
    notes = [Text(f"- {note}") for note in plan.notes]
    return Group(Text(heading(plan), style="bold"), Text(""), drawn, Text(""), Text(explained(plan), "dim"), *notes)


def render(plan: Planned) -> str:
    """The whole page; it needs nothing from anywhere else."""
    head = el(
        "head",
        el("meta", charset="utf-8"),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("meta", http_equiv="Content-Security-Policy", content=POLICY),
        el("title", f"Plan for {plan.model}"),
        el("style", asset("report.css")),
    )
    top = el(
        "header",
        el("div", el("h1", "Plan"), el("button", "Light / dark", id="theme", type="button"), class_="title"),
        el("div", el("span", heading(plan)), class_="meta"),
        class_="top",
    )
    rows = [
        el("tr", el("th", f"{number}. {one.group}", scope="row"), [el("td", cell) for cell in cells(one)[1:]])
        for number, one in enumerate(plan.groups, 1)
    ]
    content = [
        section("What it gives and costs", _chart(plan)),
        section("Every group", table("Every group", HEADS, rows, text=(0,)), explained(plan)),
        section("Worth knowing", el("ul", [el("li", note) for note in plan.notes]) if plan.notes else None),
    ]
    foot = el("footer", "The same numbers are in plan.json.")
    body = el("body", top, el("main", content), foot, el("script", asset("report.js")))
    return f"<!DOCTYPE html>\n{el('html', head, body, lang='en')}\n"


def _chart(plan: Planned) -> Content:
    """What every group gives, and what it loses for that, one above the other."""
    if all(one.kept == one.channels for one in plan.groups):
        return None
    figures: list[Markup] = []
    sides = (f"gives, % of the {plan.unit}", "freed"), ("loses, % of its importance", "lost")
    for number, (what, value) in enumerate(sides):
        some = [
            Bar(100 * getattr(one, value), number, f"{one.group}: {one.channels} to {one.kept}, {what}")
            for one in plan.groups
        ]
        axis = Axis(what, lambda v: f"{v:g}")
        chart = bars(some, axis, "group, by its number in the table", what, from_zero=True)
        figures.append(el("figure", el("div", chart, class_="wide", tabindex="0", role="region", aria_label=what)))
    return figures
