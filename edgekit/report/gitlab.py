"""A gate for GitLab's merge requests: a code quality report, and a metrics report in OpenMetrics."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from typing import Any
from urllib.parse import quote

from edgekit.plain import printable
from edgekit.report import gated
from edgekit.report.verdicts import GateFile, Judgement

_FAMILIES = (
    ("edgekit_gate_exit_code", "The code that the gate ended with; 0 is a pass."),
    ("edgekit_gate_judgements", "How many judgements have each verdict."),
    ("edgekit_gate_observed", "What a clause was judged on, in its unit."),
    ("edgekit_gate_low", "Lower end of the interval of what was observed."),
    ("edgekit_gate_high", "Upper end of the interval of what was observed."),
    ("edgekit_gate_limit", "The limit of the clause, in the same unit."),
)


def code_quality(gate: GateFile) -> str:
    """An issue for everything that did not pass, at the line of its clause.

    The fingerprint is that of the clause and its bundle: the same from run to run, whatever is measured.
    https://docs.gitlab.com/ci/testing/code_quality/#code-quality-report-format
    """
    alike: Counter[str] = Counter()
    issues: list[dict[str, Any]] = []
    for judgement in gated.by_weight(gate.judgements):
        if judgement.verdict == "pass":
            continue
        identity = json.dumps([judgement.clause, judgement.target, judgement.backend, judgement.metric, judgement.kind])
        alike[identity] += 1
        issues.append(_issue(gate, judgement, f"{identity}{alike[identity]}"))
    if beyond := gated.beyond(gate):
        issues.insert(0, _entry(beyond, "edgekit.gate", f"gate{gate.exit_code}", "blocker", gate.clauses, 1))
    return json.dumps(issues, indent=2, ensure_ascii=False) + "\n"


def _issue(gate: GateFile, judgement: Judgement, identity: str) -> dict[str, Any]:
    path, line = gated.place(judgement, gate)
    severity = {"fail": "blocker", "missing": "critical"}.get(judgement.verdict, "major")
    if gated.level(judgement) == "warning":
        severity = "minor" if judgement.verdict == "warn" else "info"
    check = f"edgekit.{judgement.metric or 'gate'}"
    return _entry(gated.said(judgement), check, identity, severity, path, line)


def _entry(text: str, check: str, identity: str, severity: str, path: str, line: int) -> dict[str, Any]:
    return {
        "description": printable(" ".join(text.split())),
        "check_name": printable(check),
        "fingerprint": hashlib.sha256(identity.encode("utf-8", "surrogatepass")).hexdigest(),
        "severity": severity,
        "location": {"path": printable(path), "lines": {"begin": line}},
    }


def metrics(gate: GateFile) -> str:
    """Gauges of every observed value with its interval and limit.

    OpenMetrics 1.0 text. GitLab itself cuts a line at `#` and splits it as a shell does, so label values are
    percent-encoded: both readers see the same. https://docs.gitlab.com/ci/testing/metrics_reports/
    """
    samples: dict[str, dict[str, float]] = {name: {} for name, _ in _FAMILIES}
    samples["edgekit_gate_exit_code"][_labels(model=gate.model)] = gate.exit_code
    for verdict, count in sorted(Counter(judgement.verdict for judgement in gate.judgements).items()):
        samples["edgekit_gate_judgements"][_labels(model=gate.model, verdict=verdict)] = count
    for judgement in gate.judgements:
        for family, value in _values(judgement).items():
            samples[family].setdefault(_of(gate, judgement), value)
    lines = []
    for name, told in _FAMILIES:
        lines += [f"# HELP {name} {told}", f"# TYPE {name} gauge"]
        lines += [f"{name}{labels} {value:.10g}" for labels, value in samples[name].items()]
    return "\n".join([*lines, "# EOF", ""])


def _values(judgement: Judgement) -> dict[str, float]:
    observed = judgement.observed
    if observed is None:
        return {}
    found = {
        "edgekit_gate_observed": observed.value,
        "edgekit_gate_low": observed.low,
        "edgekit_gate_high": observed.high,
    }
    return found if judgement.limit is None else {**found, "edgekit_gate_limit": judgement.limit}


def _of(gate: GateFile, judgement: Judgement) -> str:
    return _labels(
        model=gate.model,
        metric=judgement.metric or judgement.clause,
        target=judgement.target,
        backend=judgement.backend,
        vs=judgement.vs,
        kind=judgement.kind,
        unit=judgement.observed.unit if judgement.observed else None,
    )


def _labels(**values: str | None) -> str:
    written = [f'{name}="{quote(value, safe="._-+@:", errors="replace")}"' for name, value in values.items() if value]
    return f"{{{','.join(written)}}}"
