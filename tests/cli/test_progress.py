"""Progress: nothing on stdout, bars on a terminal, sparse lines elsewhere."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from edgekit.cli import progress as module
from edgekit.cli.progress import Plain, _bars, _Rich, clock, progress_on_stderr
from edgekit.context import Silent


def test_plain_lines_are_sparse_and_tell_the_time_left(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    lines: list[str] = []
    with Plain(lines.append).task("distill", total=100) as task:
        for _ in range(50):
            now[0] += 1.0
            task.advance(1, note="loss 0.3")
    assert lines == [
        "distill: 15%, about 1 min 25 s left (loss 0.3)",
        "distill: 30%, about 1 min 10 s left (loss 0.3)",
        "distill: 45%, about 55.0 s left (loss 0.3)",
        "distill: 50.0 s",
    ]


def test_plain_lines_of_unknown_length(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    lines: list[str] = []
    with Plain(lines.append).task("compile") as task:
        now[0] = 20.0
        task.advance()
    assert lines == ["compile: 20.0 s so far", "compile: 20.0 s"]


def test_a_task_that_fails_does_not_claim_to_be_done():
    lines: list[str] = []
    with pytest.raises(ValueError, match="x"), Plain(lines.append).task("compile"):
        raise ValueError("x")
    assert lines == []


def test_off_a_terminal_progress_goes_to_stderr_alone(capsys):
    with progress_on_stderr() as progress, progress.task("a", total=1) as task:
        task.advance()
        progress.say("a line")
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[0] == "a line"
    assert err.splitlines()[1].startswith("a: ")


def test_quiet_says_nothing(capsys):
    with progress_on_stderr(quiet=True) as progress:
        assert isinstance(progress, Silent)
        progress.say("a line")
    assert capsys.readouterr() == ("", "")


def test_bars_on_a_terminal_show_text_as_it_is():
    screen = io.StringIO()
    with _bars(Console(file=screen, force_terminal=True, width=100)) as bars:
        shown = _Rich(bars)
        with shown.task("prune [8]", total=4) as task:
            task.advance(2, note="[x]")
            assert bars.tasks[0].completed == 2
            assert bars.tasks[0].fields["note"] == "[x]"
            shown.say("a [line]")
        assert not bars.tasks
    assert "a [line]" in screen.getvalue()
    assert "prune [8]: 0.0 s" in screen.getvalue()


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.04, "0.0 s"), (59.94, "59.9 s"), (61, "1 min 1 s"), (3600, "60 min 0 s")]
)
def test_clock(seconds, text):
    assert clock(seconds) == text
