"""GitHub's workflow commands: read back as GitHub's runner reads them."""

from __future__ import annotations

import re

import pytest
from gate_samples import NASTY, gate, hostile, judgement, large

from edgekit.report import annotations

COMMAND = re.compile(r"::(?P<level>\w[\w-]*)(?: (?P<properties>.*?))?::(?P<message>.*)")


def unescaped(text: str) -> str:
    for code, char in (("%0D", "\r"), ("%0A", "\n"), ("%3A", ":"), ("%2C", ","), ("%25", "%")):
        text = text.replace(code, char)
    return text


def read(text: str) -> list[tuple[str, dict[str, str], str]]:
    """Level, properties and message of every line; a line that is no command fails."""
    found = []
    for line in re.split(r"\r\n|\r|\n", text.removesuffix("\n")):
        match = COMMAND.fullmatch(line)
        assert match, line
        pairs = [part.partition("=") for part in (match["properties"] or "").split(",")]
        found.append((match["level"], {k: unescaped(v) for k, _, v in pairs}, unescaped(match["message"])))
    return found


def test_what_stops_the_gate_is_an_error_at_its_line_the_most_serious_first():
    seen = read(annotations.render(gate()))
    assert [level for level, *_ in seen] == ["error"] * 4 + ["warning"] * 4 + ["notice"]
    assert [p["title"].split(":")[0] for level, p, _ in seen if level == "error"] == [
        "invalid", "fail", "missing", "inconclusive",
    ]  # fmt: skip
    assert seen[1][1] == {
        "file": "gate.yaml", "line": "3", "title": "fail: accuracy vs reference: max_regression 1.0pp",
    }  # fmt: skip
    assert seen[1][2].startswith("x86-64, ONNX Runtime: quantized int8: worse by 2.13 pp")
    assert seen[-1][2].startswith("Measurement invalid: 2 of 9 judgements pass")


def test_no_more_than_are_shown_and_the_last_says_how_many_more():
    seen = read(annotations.render(large(60)))
    errors = [message for level, _, message in seen if level == "error"]
    assert len(errors) == annotations.MOST and errors[-1] == "21 more are in the summary and in gate.json."
    assert len(seen) == 12
    ten = gate([judgement("fail", 1, clause=f"size: max {i} MB") for i in range(10)], 1)
    assert "more are in" not in annotations.render(ten)


def test_names_cannot_start_a_command_or_a_property():
    text = annotations.render(hostile())
    seen = read(text)
    assert {level for level, *_ in seen} == {"error", "warning", "notice"}
    assert all(set(properties) <= {"file", "line", "title"} for _, properties, _ in seen)
    assert text.isascii() is False or "\x1b" not in text
    assert all("::set-output name=x::y, b:" in message for _, properties, message in seen if "file" in properties)


def test_a_percent_sign_is_read_back():
    seen = read(annotations.render(gate([judgement("fail", 1, clause="size: max 5%, at 100%0A", reason="%25 off")], 1)))
    assert seen[0][1]["title"] == "fail: size: max 5%, at 100%0A" and seen[0][2].endswith("%25 off")


def test_a_code_that_no_clause_asks_for_is_an_error():
    assert read(annotations.render(gate([judgement()], 8)))[0][0] == "error"


@pytest.mark.parametrize("root", [None, "GITHUB_WORKSPACE", "CI_PROJECT_DIR"])
@pytest.mark.parametrize("file", ["gates/gate.yaml", "./gates/../gates/gate.yaml", "{here}/gates/gate.yaml"])
def test_a_path_starts_at_the_root_of_the_repository(tmp_path, monkeypatch, root, file):
    folder = tmp_path / "models" / "net"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    for name in ("GITHUB_WORKSPACE", "CI_PROJECT_DIR"):
        monkeypatch.delenv(name, raising=False)
    if root:
        monkeypatch.setenv(root, str(tmp_path))
    inside = gate([judgement("fail", 1, file=file.format(here=folder))], 1)
    wanted = "models/net/gates/gate.yaml" if root else "gates/gate.yaml"
    assert read(annotations.render(inside))[0][1]["file"] == wanted


def test_a_path_outside_of_the_repository_stays_as_it_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    outside = gate([judgement("fail", 1, file="/elsewhere/gate.yaml")], 1)
    assert read(annotations.render(outside))[0][1]["file"] == "/elsewhere/gate.yaml"


@pytest.mark.parametrize(
    ("choice", "environment", "wanted"),
    [("auto", {}, False), ("auto", {"GITHUB_ACTIONS": "true"}, True), ("auto", {"GITHUB_ACTIONS": "false"}, False),
     ("github", {}, True), ("none", {"GITHUB_ACTIONS": "true"}, False)],
)  # fmt: skip
def test_auto_writes_them_in_a_workflow_alone(choice, environment, wanted):
    assert annotations.wanted(choice, environment) is wanted


def test_a_long_reason_is_cut():
    line = annotations.render(gate([judgement("fail", 1, reason=NASTY * 100)], 1)).splitlines()[0]
    assert len(line) < 3 * 4_000


def test_a_path_cannot_act_in_the_log():
    text = annotations.render(gate([judgement("fail", 1, file="g\udcff\x1b[31m\u202e.yaml")], 1))
    assert "\x1b" not in text and "\u202e" not in text and text.encode()
