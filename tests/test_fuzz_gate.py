"""Fuzzed reports, gate files and gate.json: refused in words or judged, never a traceback, a hang or a flood.

`EDGEKIT_FUZZ_EXAMPLES` runs more of each. What was found, or is a trap of its own, is kept in `corpus/gate`.
"""

from __future__ import annotations

import copy
import functools
import json
import os
import tempfile
import tracemalloc
from pathlib import Path
from typing import Any

import gate_reports as made
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from edgekit.clauses import load_clauses
from edgekit.cli.app import app
from edgekit.errors import UsageError
from edgekit.outputs import Outputs
from edgekit.report.verdicts import GateFile, read_gate

CORPUS = Path(__file__).parent / "corpus" / "gate"
FLOOD = 64_000_000
"""Bytes that nothing here may need."""
KNOWN = {0, 1, 2, 3, 4, 8}

fuzz = settings(
    max_examples=int(os.environ.get("EDGEKIT_FUZZ_EXAMPLES", "60")),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)

GATE = """\
version: 1
gate:
  - {metric: accuracy, vs: reference, max_regression: 1.0pp}
  - {metric: latency, percentile: 90, target: pc, max: 20 ms, severity: warn}
  - {metric: latency.p50, vs: reference, max_ratio: 0.6, on_missing: warn}
  - {metric: throughput, min: 10, confidence: 0.9}
  - {metric: worst_class, vs: reference, max_regression: 5pp, on_inconclusive: fail}
  - {metric: robustness.mean, min: 50%}
  - {metric: user.drift, max: 1 mm}
  - {metric: int8_share, min: 50%}
  - {metric: size, vs: previous, max_ratio: 1.0}
"""

odd: st.SearchStrategy[Any] = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=20),
    st.sampled_from(["\x1b[2J", "]]>", "<script>", "::error::x", "../../x", "\ud800", "a" * 5000]),
    st.sampled_from(["nan", "1e999", {}, []]),
    st.lists(st.integers(), max_size=3), st.dictionaries(st.text(max_size=5), st.integers(), max_size=3),
)  # fmt: skip


@functools.cache
def run() -> Path:
    """A run's folder that outlives every example."""
    folder = Path(tempfile.mkdtemp())
    (folder / "gate.yaml").write_text(GATE)
    return made.write(folder)


@functools.cache
def plain() -> str:
    return (run() / "report.json").read_text()


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to everything in a JSON value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, one in inner for place in places(one, (*path, key)))]


@st.composite
def changed(draw: st.DrawFn, text: str) -> str:
    """JSON with some of its values replaced, removed or doubled."""
    value = json.loads(text)
    for _ in range(draw(st.integers(1, 3))):
        every = [place for place in places(value) if place]
        if not every:
            break
        *way, last = draw(st.sampled_from(every))
        holder = functools.reduce(lambda held, key: held[key], way, value)
        if draw(st.booleans()) or isinstance(holder, dict) is False:
            holder[last] = draw(st.one_of(odd, st.just(copy.deepcopy(value.get("results")))))
        else:
            del holder[last]
    return json.dumps(value)


@st.composite
def torn(draw: st.DrawFn, text: str) -> bytes:
    """The text with bytes changed, inserted or cut off."""
    content = bytearray(text.encode())
    for _ in range(draw(st.integers(1, 4))):
        where = draw(st.integers(0, max(0, len(content) - 1)))
        kind = draw(st.sampled_from(("cut", "put", "set")))
        if kind == "cut":
            del content[where : where + draw(st.integers(1, 2000))]
        elif kind == "put":
            content[where:where] = draw(
                st.one_of(st.binary(max_size=20), st.sampled_from([b"&a *a", b"- [", b"!!python"]))
            )
        elif content:
            content[where] = draw(st.integers(0, 255))
    return bytes(content)


def gated(report: bytes, clauses: bytes | None = None) -> None:
    """One gate by the command line: a documented code, and something to read."""
    folder = run()
    (folder / "fuzzed.json").write_bytes(report)
    file = folder / "gate.yaml"
    if clauses is not None:
        file = folder / "fuzzed.yaml"
        file.write_bytes(clauses)
    outputs = [f"--{name}={folder / f'out.{name}'}" for name in ("junit", "markdown", "gitlab-metrics")]
    tracemalloc.start()
    try:
        done = CliRunner().invoke(
            app, ["gate", str(folder / "fuzzed.json"), "-c", str(file), "--quiet", "--annotations=github", *outputs]
        )
        assert tracemalloc.get_traced_memory()[1] < FLOOD
    finally:
        tracemalloc.stop()
    assert done.exit_code in KNOWN, (done.exit_code, done.output)
    assert "Traceback" not in done.output and "\x1b" not in done.output
    assert done.output.strip()


@fuzz
@given(changed=changed(plain()))
def test_reports_that_were_edited_by_hand(changed):
    gated(changed.encode(errors="surrogatepass"))


@fuzz
@given(content=torn(plain()))
def test_reports_that_were_torn(content):
    gated(content)


@fuzz
@given(content=torn(GATE))
def test_gate_files_that_were_torn(content):
    gated(plain().encode(), content)


@fuzz
@given(clause=st.dictionaries(
    st.sampled_from(["metric", "max", "min", "vs", "max_ratio", "max_regression", "confidence", "percentile"]),
    st.one_of(odd, st.sampled_from(["accuracy", "size", "latency", "user.drift", "reference", "5%", "1 MB", 0.5, 90])),
))  # fmt: skip
def test_clauses_of_any_shape(clause):
    gated(plain().encode(), json.dumps({"version": 1, "gate": [clause]}).encode(errors="surrogatepass"))


@functools.cache
def judged() -> str:
    CliRunner().invoke(app, ["gate", str(run()), "-c", str(run() / "gate.yaml"), "--quiet"])
    return (run() / "gate.json").read_text()


@fuzz
@given(content=st.one_of(torn(judged()), changed(judged()).map(lambda text: text.encode(errors="surrogatepass"))))
def test_gate_json_that_was_edited_or_torn(content):
    file = run() / "fuzzed.gate.json"
    file.write_bytes(content)
    try:
        gate = read_gate(file)
    except UsageError as error:
        assert str(file) in str(error)
        return
    assert isinstance(gate, GateFile)
    folder = run()
    Outputs(folder / "again.json", junit=folder / "again.xml", markdown=folder / "again.md",
            gitlab_code_quality=folder / "again.gl", gitlab_metrics=folder / "again.txt").write(gate)  # fmt: skip
    assert read_gate(folder / "again.json") == gate


@pytest.mark.parametrize("file", sorted(CORPUS.iterdir()), ids=lambda file: file.name)
def test_the_corpus(file):
    if file.name.endswith("gate.json"):
        with pytest.raises(UsageError):
            read_gate(file)
    elif file.suffix == ".json":
        gated(file.read_bytes())
    else:
        gated(plain().encode(), file.read_bytes())
        with pytest.raises(UsageError):
            load_clauses(file)
