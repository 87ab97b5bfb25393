"""The Markdown of a gate, as a GFM renderer shows it: names stay text, tables stay tables, 1 MiB is the end."""

from __future__ import annotations

import re

import pytest
from gate_samples import gate, hostile, judgement, large
from lxml import html
from markdown_it import MarkdownIt

from edgekit.report import gate_markdown
from edgekit.report.gate_markdown import LIMIT, append_summary, fit

TAGS = {
    "div", "h2", "p", "strong", "table", "thead", "tbody", "tr", "th", "td", "ul", "li", "details", "summary",
}  # fmt: skip
"""What a summary is made of, whatever the names in it are."""


def rendered(text: str) -> html.HtmlElement:
    """As GitHub would: GFM tables, HTML allowed, addresses made links."""
    gfm = MarkdownIt("commonmark", {"html": True, "linkify": True}).enable(["table", "strikethrough", "linkify"])
    return html.fromstring(f"<div>{gfm.render(text)}</div>")


def tables(page: html.HtmlElement) -> list[list[list[str]]]:
    return [[[cell.text_content() for cell in row] for row in table.iter("tr")] for table in page.iter("table")]


def test_the_outcome_stands_first_then_what_did_not_pass_then_what_to_do():
    page = rendered(gate_markdown.render(gate()))
    assert [element.tag for element in page if element.tag != "p"][:4] == ["h2", "table", "ul", "details"]
    assert page.find("h2").text == "fashion_cnn: measurement invalid"
    assert page.find("p/strong").text.startswith("Measurement invalid: 2 of 9 judgements pass, 1 fail, 2 missing")
    missed, passed = tables(page)
    assert missed[0] == ["verdict", "clause", "where", "seen", "limit", "why"]
    assert [row[0] for row in missed[1:]] == [
        "invalid", "fail", "missing", "inconclusive", "missing", "inconclusive", "warn",
    ]  # fmt: skip
    assert missed[2][3:5] == ["2.13 pp [1.81, 2.46], n = 10,000", "≤ 1.00 pp"]
    assert [row[2] for row in passed[1:]] == ["x86-64, ONNX Runtime", "pi, ONNX Runtime"]
    assert page.find("details/summary").text == "2 passed"
    told = page.find("ul").text_content()
    assert "--retry-invalid N" in told and "About 38,000 samples" in told and "3 gates in a row" in told


def test_a_pass_needs_no_advice():
    page = rendered(gate_markdown.render(gate([judgement()], 0, warnings=())))
    assert page.find("h2").text == "fashion_cnn: pass" and page.find("ul") is None and len(tables(page)) == 1


def test_a_code_that_no_clause_asks_for_is_told():
    assert "exit code 8 (integrity), not by a clause" in gate_markdown.render(gate([judgement()], 8))


def test_names_stay_text_and_the_table_a_table():
    text = gate_markdown.render(hostile())
    page = rendered(text)
    assert {element.tag for element in page.iter()} <= TAGS
    for table in tables(page):
        assert {len(row) for row in table} == {6}
    assert [len(table) for table in tables(page)] == [5, 2]
    shown = tables(page)[0][1][1]
    assert "<script>alert(1)</script>" in shown and "`code` **bold** [link](http://evil.example)" in shown
    assert "https://evil.example/" in shown and "www.evil.example" in shown  # and no <a> of either, above
    assert "\x1b" not in text and "\u202e" not in text


def test_a_renderer_without_escapes_would_be_caught():
    tags = {element.tag for element in rendered("- x <script>alert(1)</script> http://evil.example").iter()}
    assert {"script", "a"} <= tags


def test_a_large_gate_stays_below_the_limit_and_says_what_is_missing():
    text = gate_markdown.render(large())
    assert len(text.encode()) <= LIMIT
    assert "9,500 more are in gate.json." in text or text.endswith("Cut here: the rest is in gate.json.\n")
    for table in tables(rendered(text)):
        assert {len(row) for row in table} == {6}


@pytest.mark.parametrize("room", [0, 50, 400, 1_000, 3_000])
def test_what_is_cut_is_cut_between_lines_and_says_so(room):
    text = gate_markdown.render(gate())
    cut = fit(text, room)
    assert len(cut.encode()) <= room
    if cut:
        assert cut.endswith("Cut here: the rest is in gate.json.\n") or cut == text
        assert cut.count("<details>") == cut.count("</details>")
        assert text.startswith(re.split(r"\n\n?</details>\n\n?Cut|\nCut here", cut)[0].rstrip("\n"))


def test_the_summary_is_added_to_what_the_step_has_told(tmp_path):
    path = tmp_path / "summary.md"
    path.write_text("# Before\n")
    environment = {"GITHUB_STEP_SUMMARY": str(path)}
    assert append_summary("one\n", environment) == path
    append_summary("two\n", environment)
    assert path.read_text() == "# Before\n\none\n\ntwo\n"


def test_without_a_summary_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert append_summary("one\n", {}) is None and append_summary("one\n", {"GITHUB_STEP_SUMMARY": ""}) is None
    assert not list(tmp_path.iterdir())


def test_a_full_summary_stays_below_the_limit(tmp_path):
    path = tmp_path / "summary.md"
    path.write_text("x" * (LIMIT - 700))
    append_summary(gate_markdown.render(gate()), {"GITHUB_STEP_SUMMARY": str(path)})
    assert path.stat().st_size <= LIMIT and path.read_text().endswith("Cut here: the rest is in gate.json.\n")
    for _ in range(5):
        append_summary(gate_markdown.render(gate()), {"GITHUB_STEP_SUMMARY": str(path)})
    assert path.stat().st_size <= LIMIT
