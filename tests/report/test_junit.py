"""JUnit XML of a gate: valid by schema, and what real readers of it see."""

from __future__ import annotations

import subprocess
import sys

import pytest
from gate_samples import NASTY, gate, hostile, judgement, large
from junitparser import Error, Failure, JUnitXml, Skipped
from lxml import etree

from edgekit.report import junit
from edgekit.report.verdicts import Judged


@pytest.fixture(scope="module")
def schema(repo_root):
    return etree.XMLSchema(etree.parse(repo_root / "tests" / "schemas" / "junit.xsd"))


def suites(text: str) -> list:
    return list(JUnitXml.fromstring(text.encode()))


def outcomes(text: str) -> dict[str, list[str]]:
    """Suite -> what a reader makes of each case."""
    kinds = {Failure: "failure", Error: "error", Skipped: "skipped"}
    return {s.name: [next((kinds[type(r)] for r in case.result), "pass") for case in s] for s in suites(text)}


@pytest.mark.parametrize(
    "seen",
    [gate(), gate(()), gate((), 0), gate([judgement()], 0), hostile(), large(300),
     gate(created="9999-12-31T23:59:59-12:00"), gate(created="0001-01-01T00:00:00+12:00"),
     gate(model=" ", device="\t", seconds=None)],
    ids=["every", "nothing judged", "empty", "pass", "hostile", "large", "late", "early", "blank"],
)  # fmt: skip
def test_it_is_valid_by_the_schema(schema, seen):
    schema.assertValid(etree.fromstring(junit.render(seen).encode()))


def test_the_schema_refuses_what_is_wrong(schema):
    text = junit.render(gate())
    for before, after in (('tests="2"', 'tests="two"'), ("<system-err />", ""), (' classname="pi/litert"', "")):
        assert before in text
        assert not schema.validate(etree.fromstring(text.replace(before, after).encode())), after


def test_a_reader_sees_a_suite_a_target_and_backend_and_each_verdict_in_its_own_way():
    assert outcomes(junit.render(gate())) == {
        "x86-64/onnxruntime": ["pass", "failure", "pass"],
        "x86-64/openvino": ["failure"],
        "x86-64/litert": ["skipped", "error"],
        "gate": ["failure"],
        "pi/litert": ["skipped"],
        "pi/onnxruntime": ["pass"],
    }


def test_the_counts_are_those_of_the_cases():
    for suite in suites(junit.render(gate())):
        kinds = [type(result) for case in suite for result in case.result]
        assert suite.tests == len(list(suite))
        assert (suite.failures, suite.errors, suite.skipped) == tuple(kinds.count(k) for k in (Failure, Error, Skipped))


def test_a_case_tells_its_numbers():
    first, failed, warned = next(iter(suites(junit.render(gate()))))
    assert "seen: 0.620x [0.600, 0.650], 20 rounds\nlimit: ≤ 1.000x" in first.system_out
    assert failed.result[0].message.startswith("fail: quantized int8: worse by 2.13 pp")
    assert "clause: gate.yaml:3" in failed.result[0].text
    assert warned.system_out.startswith("warn: latency.p50: max 1.2 ms (x86-64, ONNX Runtime): ")


@pytest.mark.parametrize(
    ("verdict", "code", "kind"),
    [("pass", 0, "pass"), ("warn", 0, "pass"), ("fail", 1, "failure"), ("missing", 1, "failure"),
     ("missing", 0, "skipped"), ("inconclusive", 4, "failure"), ("inconclusive", 1, "failure"),
     ("inconclusive", 0, "skipped"), ("invalid", 3, "error"), ("invalid", 0, "skipped")],
)  # fmt: skip
def test_what_stops_the_gate_is_red_and_nothing_else(verdict, code, kind):
    assert outcomes(junit.render(gate([judgement(verdict, code)], code))) == {"x86-64/onnxruntime": [kind]}


def test_a_code_that_no_clause_asks_for_is_red_too():
    seen = outcomes(junit.render(gate([judgement()], 8)))
    assert seen == {"x86-64/onnxruntime": ["pass"], "gate as a whole": ["error"]}


def test_names_cannot_act_and_lose_nothing_that_can_be_written():
    root = etree.fromstring(junit.render(hostile()).encode())
    assert {element.tag for element in root.iter()} == {
        "testsuites", "testsuite", "properties", "property", "testcase", "failure", "error", "skipped", "system-out",
        "system-err",
    }  # fmt: skip
    name = root.find("testsuite/testcase").get("name")
    assert "<script>alert(1)</script>" in name and "\\x1b[31m\\x00\\x07" in name and "\\ufffe" in name


def test_one_line_of_the_report_is_one_property():
    seen = gate(report=Judged(path=NASTY, sha256="x"))
    root = etree.fromstring(junit.render(seen).encode())
    assert "\n" not in root.find("testsuite/properties/property[@name='report']").get("value")


def test_junit2html_draws_it(tmp_path):
    for name, seen in (("every", gate()), ("hostile", hostile())):
        (tmp_path / f"{name}.xml").write_text(junit.render(seen), encoding="utf-8")
        page = tmp_path / f"{name}.html"
        subprocess.run([sys.executable, "-m", "junit2htmlreport", tmp_path / f"{name}.xml", page], check=True)
        drawn = page.read_text(encoding="utf-8")
        assert "<script>alert(1)</script>" not in drawn
        assert name == "hostile" or "accuracy vs reference: max_regression 1.0pp" in drawn
