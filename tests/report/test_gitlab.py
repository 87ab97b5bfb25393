"""GitLab's two reports: the first by its documented fields, the second as Prometheus' own parser and GitLab read it."""

from __future__ import annotations

import json
import re
import shlex
from urllib.parse import unquote

import jsonschema
import pytest
from gate_samples import gate, hostile, judgement, large
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from edgekit.report import gitlab

# https://docs.gitlab.com/ci/testing/code_quality/#code-quality-report-format
ISSUES = {
    "type": "array",
    "items": {
        "type": "object",
        "required": ["description", "check_name", "fingerprint", "severity", "location"],
        "properties": {
            "description": {"type": "string", "minLength": 1},
            "check_name": {"type": "string", "minLength": 1},
            "fingerprint": {"type": "string", "pattern": "^[0-9a-f]{64}$"},
            "severity": {"enum": ["info", "minor", "major", "critical", "blocker"]},
            "location": {
                "type": "object",
                "required": ["path", "lines"],
                "properties": {
                    "path": {"type": "string", "not": {"pattern": "^(\\./|/)"}, "minLength": 1},
                    "lines": {"required": ["begin"], "properties": {"begin": {"type": "integer", "minimum": 1}}},
                },
            },
        },
    },
}


def issues(seen) -> list[dict]:
    found = json.loads(gitlab.code_quality(seen))
    jsonschema.validate(found, ISSUES)
    assert len({issue["fingerprint"] for issue in found}) == len(found)
    return found


def test_every_judgement_that_did_not_pass_is_an_issue_at_its_clause():
    found = issues(gate())
    assert [(i["check_name"], i["severity"], i["location"]["lines"]["begin"]) for i in found[:3]] == [
        ("edgekit.latency.p90", "major", 7), ("edgekit.accuracy", "blocker", 3), ("edgekit.latency.p90", "critical", 8),
    ]  # fmt: skip
    assert [i["severity"] for i in found[3:]] == ["major", "info", "info", "minor"]
    assert found[1]["location"]["path"] == "gate.yaml"
    assert found[1]["description"].startswith(
        "fail: accuracy vs reference: max_regression 1.0pp (x86-64, ONNX Runtime): "
    )
    assert issues(gate([judgement()], 0)) == []


def test_the_fingerprint_does_not_depend_on_what_was_measured():
    first = judgement("fail", 1)
    again = judgement("inconclusive", 4, reason="something else", line=99, limit=2.0)
    assert issues(gate([first], 1))[0]["fingerprint"] == issues(gate([again], 4))[0]["fingerprint"]
    other = judgement("fail", 1, target="pi")
    assert len(issues(gate([first, other], 1))) == 2


def test_equal_clauses_have_fingerprints_of_their_own():
    assert len(issues(gate([judgement("fail", 1), judgement("fail", 1)], 1))) == 2


@pytest.mark.parametrize("seen", [hostile(), large(200), gate(()), gate([judgement()], 8)])
def test_whatever_stands_in_the_gate_the_issues_are_valid(seen):
    text = json.dumps(issues(seen), ensure_ascii=False)
    assert "\x1b" not in text and "\u202e" not in text


def families(text: str) -> dict[str, list]:
    return {family.name: family.samples for family in text_string_to_metric_families(text)}


def as_gitlab_reads(text: str) -> dict[str, str]:
    """GitLab cuts a line at `#`, splits it as a shell would, and takes two words: the name and the value."""
    lines = [shlex.split(re.sub("#.*", "", line)) for line in text.splitlines()]
    return {words[0]: words[1] for words in lines if words}


def test_prometheus_reads_every_value_with_its_interval_and_limit():
    found = families(gitlab.metrics(gate()))
    assert found["edgekit_gate_exit_code"][0].value == 3
    assert {s.labels["verdict"]: s.value for s in found["edgekit_gate_judgements"]} == {
        "pass": 2, "fail": 1, "warn": 1, "inconclusive": 2, "invalid": 1, "missing": 2,
    }  # fmt: skip
    lost = next(s for s in found["edgekit_gate_observed"] if s.labels["metric"] == "accuracy")
    assert lost.labels == {
        "model": "fashion_cnn", "metric": "accuracy", "target": "x86-64", "backend": "onnxruntime", "vs": "reference",
        "kind": "max_regression", "unit": "points",
    }  # fmt: skip
    ends = [
        next(s.value for s in found[f"edgekit_gate_{n}"] if s.labels == lost.labels) for n in ("low", "high", "limit")
    ]
    assert [lost.value, *ends] == [0.0213, 0.0181, 0.0246, 0.01]


@pytest.mark.parametrize("seen", [gate(), hostile(), large(200), gate(())])
def test_gitlab_reads_what_prometheus_reads(seen):
    text = gitlab.metrics(seen)
    samples = [sample for found in families(text).values() for sample in found]
    read = as_gitlab_reads(text)
    assert len(read) == len(samples)
    for sample in samples:
        name = f"{sample.name}{{{','.join(f'{k}={v}' for k, v in sample.labels.items())}}}"
        assert float(read[name]) == sample.value


def test_a_name_comes_back_whole():
    labels = families(gitlab.metrics(hostile()))["edgekit_gate_observed"][0].labels
    assert unquote(labels["target"]).startswith("a\x1b[31m\x00\x07 | <script>")
