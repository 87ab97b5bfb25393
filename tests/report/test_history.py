"""The history of gates: lines that stay whole whatever happens, and the page that is drawn of them."""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import signal

import pytest
from gate_samples import NASTY, gate, hostile, judgement, large
from hypothesis import given, settings
from hypothesis import strategies as st
from lxml import html
from typer.testing import CliRunner

from edgekit.cli.app import app
from edgekit.errors import UsageError
from edgekit.report import history, history_page
from edgekit.report.history import LONGEST, MOST, append, read
from edgekit.report.values import Observed


def latency(value: float, verdict="pass", **more):
    observed = Observed(value=value, low=value * 0.98, high=value * 1.03, n=20, unit="ratio")
    return judgement(verdict, int(verdict == "fail"), observed=observed, **more)


@pytest.fixture
def grown(tmp_path):
    """Thirty gates of two backends, the last two failed."""
    path = tmp_path / "history.jsonl"
    for i in range(30):
        failed = "fail" if i > 27 else "pass"
        points = [latency(0.6 + 0.015 * i, failed), latency(0.8 - 0.002 * i, backend="openvino")]
        append(gate(points, int(i > 27), created=f"2026-10-{i + 1:02d}T12:00:00+00:00"), path)
    return path


def test_what_was_appended_is_read_in_order(grown):
    found = read(grown)
    assert len(found.entries) == 30 and not found.skipped
    assert [entry.exit_code for entry in found.entries] == [0] * 28 + [1] * 2
    point = found.entries[-1].points[0]
    assert (point.verdict, point.metric, point.limit) == ("fail", "latency.p90", 1.0)
    assert point.observed.value == pytest.approx(1.035)
    assert len(grown.read_text().splitlines()) == 30


@pytest.mark.parametrize("seen", [hostile(), large(5_000), gate(())])
def test_a_line_is_one_line_of_bounded_length(tmp_path, seen):
    path = tmp_path / "h.jsonl"
    append(seen, path)
    data = path.read_bytes()
    assert len(data) <= LONGEST and data.count(b"\n") == 1 and len(data.splitlines()) == 1
    (entry,) = read(path).entries
    assert len(entry.points) + entry.cut == len(seen.judgements)


def test_what_does_not_fit_is_the_least_serious(tmp_path):
    append(large(5_000), tmp_path / "h.jsonl")
    (entry,) = read(tmp_path / "h.jsonl").entries
    assert entry.cut and {point.verdict for point in entry.points} == {"fail"}


def test_a_torn_line_stays_apart_and_is_counted(grown):
    with grown.open("ab") as file:
        file.write(b'{"schema_version": 1, "edgek')
    append(gate([latency(0.5)], 0), grown)
    found = read(grown)
    assert len(found.entries) == 31 and found.skipped == 1 and found.entries[-1].exit_code == 0


def test_a_full_disk_leaves_what_stood_there(grown):
    before = grown.read_bytes()
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 100, len(before) + 100))
        try:
            append(gate(), grown)
        except OSError:
            os._exit(7)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert grown.read_bytes() == before


def _append_many(path):
    for _ in range(40):
        append(gate([latency(0.5, clause=f"size: max {i} MB") for i in range(30)], 0), path)


def test_gates_at_the_same_time_take_turns(tmp_path):
    path = tmp_path / "h.jsonl"
    workers = [multiprocessing.get_context("fork").Process(target=_append_many, args=(path,)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    found = read(path)
    assert len(found.entries) == 160 and not found.skipped


def test_other_versions_and_damage_are_counted_and_old_gates_left_out(grown):
    whole = grown.read_bytes()
    other = whole.splitlines()[0].replace(b'"schema_version":1', b'"schema_version":2')
    long = b"x" * (3 * LONGEST) + b"\n"
    grown.write_bytes(whole * 40 + other + b"\nnot json\n\xff\xfe\n" + long + b"\n[1]\n" + whole)
    found = read(grown)
    assert len(found.entries) == MOST and found.left_out == 41 * 30 - MOST and found.skipped == 5


@pytest.mark.parametrize("content", [b"hello\n", b'{"a": 1}\n' * 3, b"[" * 100_000])
def test_a_file_without_a_gate_is_refused(tmp_path, content):
    path = tmp_path / "h.jsonl"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"none of \d lines is a gate. Give the file of edgekit gate --history"):
        read(path)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"cannot be read: No such file"):
        read(tmp_path / "absent")


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=400), st.integers(0, 2000))
def test_no_damage_is_a_traceback(tmp_path_factory, damage, at):
    path = tmp_path_factory.mktemp("damaged") / "h.jsonl"
    append(gate(), path)
    content = path.read_bytes()
    path.write_bytes(content[:at] + damage + content[at:])
    try:
        found = read(path)
    except UsageError:
        return
    assert len(found.entries) + found.skipped >= 1
    history_page.render(found)


def test_the_page_draws_each_metric_of_each_bundle_with_its_limit(grown):
    page = html.fromstring(history_page.render(read(grown)))
    figures = page.findall(".//figure")
    assert [figure.find("h3").text_content() for figure in figures] == [
        "latency.p90 vs reference x86-64, ONNX Runtime", "latency.p90 vs reference x86-64, OpenVINO",
    ]  # fmt: skip
    marks = [g.find("title").text for g in figures[0].iter("g") if "point" in (g.get("class") or "")]
    assert len(marks) == 30
    assert marks[-1] == "Gate 30, 2026-10-30 12:00 UTC: 1.035x [1.014, 1.066], 20 rounds: fail"
    assert "max_ratio 1.000x" in figures[0].text_content()
    rows = page.findall(".//tbody/tr")
    assert len(rows) == 30 and rows[0].text_content().startswith("30Gate failed2026-10-30 12:00 UTCfashion_cnn1 of 2")


def test_a_name_cannot_act_in_the_page(tmp_path):
    append(hostile(), tmp_path / "h.jsonl")
    page = html.fromstring(history_page.render(read(tmp_path / "h.jsonl")))
    assert (
        len(page.findall(".//script")) == 1 and not page.findall(".//img") and "<script>alert(1)" in page.text_content()
    )


def test_the_command_tells_the_gates_and_writes_the_page(grown, tmp_path):
    page = tmp_path / "page.html"
    done = CliRunner().invoke(app, ["history", str(grown), "--html", str(page)])
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines()[-1] == "2026-10-30T12:00:00+00:00  fashion_cnn: gate failed, 1 of 2 pass"
    assert "<figure>" in page.read_text(encoding="utf-8")
    told = json.loads(CliRunner().invoke(app, ["history", str(grown), "--json"]).stdout)
    assert len(told["entries"]) == 30 and told["skipped"] == 0


def test_the_command_is_plain_on_a_terminal(tmp_path):
    append(gate(model=NASTY), tmp_path / "h.jsonl")
    shown = CliRunner().invoke(app, ["history", str(tmp_path / "h.jsonl")]).stdout
    assert "\x1b" not in shown and shown.count("\n") == 1


@pytest.mark.parametrize("page", ["nowhere/page.html", "."])
def test_a_page_that_cannot_be_written_ends_with_2(grown, tmp_path, page):
    done = CliRunner().invoke(app, ["history", str(grown), "--html", str(tmp_path / page)])
    assert done.exit_code == 2 and "cannot write" in done.stderr, done.output


def test_a_file_that_is_no_history_ends_with_2(tmp_path):
    (tmp_path / "x").write_text("hello")
    done = CliRunner().invoke(app, ["history", str(tmp_path / "x")])
    assert done.exit_code == 2 and "none of 1 lines is a gate" in done.stderr


def test_the_bounds_are_what_the_docs_say():
    assert (history.LONGEST, history.MOST) == (65_536, 1_000)
