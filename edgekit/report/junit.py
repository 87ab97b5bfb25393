"""A gate as JUnit XML: a test suite for each target and backend, a test case for each clause.

The format has no standard; this is what the schema of Jenkins' xUnit plugin (junit-10.xsd) and that of Ant's JUnit
task have in common, with an output for each test case, which the first alone knows.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from xml.etree import ElementTree as ET

from edgekit.plain import printable
from edgekit.report import gated
from edgekit.report.verdicts import GateFile, Judgement

_NAMELESS = "gate"


def render(gate: GateFile) -> str:
    """The document. A clause that stops the gate is a failure, or an error where its measurement is invalid.

    One that did not pass and stops nothing is skipped with its reason; a warning passes, and says so in its output.
    """
    root = ET.Element("testsuites")
    for number, (name, judged) in enumerate(_suites(gate).items()):
        root.append(_suite(gate, number, name, [_case(name, judgement) for judgement in judged]))
    beyond = gated.beyond(gate)
    if beyond:
        case = ET.Element("testcase", name="exit code", classname=_NAMELESS, time="0")
        ET.SubElement(case, "error", message=beyond, type="exit code").text = beyond
        root.append(_suite(gate, len(root), f"{_NAMELESS} as a whole", [case]))
    ET.indent(root)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{ET.tostring(root, encoding="unicode")}\n'


def _suites(gate: GateFile) -> dict[str, list[Judgement]]:
    suites: dict[str, list[Judgement]] = {}
    for judgement in gate.judgements:
        name = "/".join(part for part in (judgement.target, judgement.backend) if part)
        suites.setdefault(_flat(name) or _NAMELESS, []).append(judgement)
    return suites


def _suite(gate: GateFile, number: int, name: str, cases: list[ET.Element]) -> ET.Element:
    def count(kind: str) -> str:
        return str(sum(case.find(kind) is not None for case in cases))

    suite = ET.Element(
        "testsuite",
        name=name,
        package=_flat(gate.model) or _NAMELESS,
        id=str(number),
        tests=str(len(cases)),
        failures=count("failure"),
        errors=count("error"),
        skipped=count("skipped"),
        time=f"{gate.seconds or 0:.3f}" if number == 0 else "0",  # the gate's own, once: suites are added up
        timestamp=_timestamp(gate.created),
        hostname=_flat(gate.device or "") or "localhost",
    )
    properties = ET.SubElement(suite, "properties")
    for key, value in _facts(gate):
        ET.SubElement(properties, "property", name=key, value=_flat(value))
    suite.extend(cases)
    ET.SubElement(suite, "system-out").text = "\n".join(map(_flat, gate.warnings)) if number == 0 else None
    ET.SubElement(suite, "system-err")
    return suite


def _facts(gate: GateFile) -> Iterable[tuple[str, str]]:
    return (
        ("edgekit", gate.edgekit),
        ("model", gate.model),
        ("clauses", gate.clauses),
        ("report", gate.report.path),
        ("report.sha256", gate.report.sha256),
        ("exit_code", str(gate.exit_code)),
    )


def _case(suite: str, judgement: Judgement) -> ET.Element:
    """One clause on one bundle. Its output has the numbers."""
    case = ET.Element("testcase", name=_flat(judgement.clause) or _NAMELESS, classname=suite, time="0")
    kind = _kind(judgement)
    if kind:
        message = _flat(f"{judgement.verdict}: {judgement.reason}")
        ET.SubElement(case, kind, message=message, type=judgement.verdict).text = _numbers(judgement)
    else:
        ET.SubElement(case, "system-out").text = f"{_flat(gated.said(judgement))}\n{_numbers(judgement)}"
    return case


def _kind(judgement: Judgement) -> str | None:
    """failure, error, skipped, or None where it passes."""
    if judgement.exit_code:
        return "error" if judgement.verdict == "invalid" else "failure"
    return None if judgement.verdict in ("pass", "warn") else "skipped"


def _numbers(judgement: Judgement) -> str:
    told = {
        "where": gated.where(judgement),
        "bundle": judgement.bundle,
        "seen": gated.seen(judgement),
        "limit": gated.limit(judgement),
        "confidence": f"{judgement.confidence:g}" if judgement.observed else None,
        "needs": f"about {judgement.samples_needed:,} samples or rounds" if judgement.samples_needed else None,
        "clause": f"{judgement.file}:{judgement.line or 1}" if judgement.file else None,
        "exit code": str(judgement.exit_code),
    }
    return "\n".join(f"{name}: {_flat(value)}" for name, value in told.items() if value)


def _flat(text: str) -> str:
    """`text` on one line, and without the characters that XML 1.0 has no way to write (section 2.2)."""
    return printable(" ".join(text.split()))


def _timestamp(created: str) -> str:
    """UTC without a zone, as Ant's schema wants it; the epoch where the text is no time."""
    try:
        moment = datetime.fromisoformat(created)
        moment = moment.astimezone(UTC) if moment.tzinfo else moment
    except (ValueError, OverflowError):
        moment = datetime.fromtimestamp(0, UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}".rjust(19, "0")
