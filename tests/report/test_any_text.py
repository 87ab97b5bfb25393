"""Whatever text stands in a gate: every output stays what it is, and none takes long."""

from __future__ import annotations

import json

from gate_samples import gate, judgement
from hypothesis import given, settings
from hypothesis import strategies as st
from lxml import etree
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from test_annotations import read
from test_gate_markdown import TAGS, rendered, tables

from edgekit.report import annotations, badge, gate_markdown, gitlab, junit
from edgekit.report.values import Observed
from edgekit.report.verdicts import Judged

MARKS = "|\\`*_[]()<>!#~$&;:/%\"'{}=-+.,@\n\r\t \x00\x1b\x85\u2028\u202e\ufeff\uffffaw1"
TEXT = st.text(st.one_of(st.sampled_from(MARKS), st.characters(exclude_categories=["Cs"])), max_size=60)
NUMBER = st.floats(allow_nan=False, allow_infinity=False)
VERDICTS = [
    ("pass", 0),
    ("fail", 1),
    ("warn", 0),
    ("inconclusive", 4),
    ("inconclusive", 0),
    ("invalid", 3),
    ("missing", 1),
]


@st.composite
def gates(draw):
    judged = []
    for verdict, code in draw(st.lists(st.sampled_from(VERDICTS), max_size=4)):
        low, value, high = sorted(draw(st.tuples(NUMBER, NUMBER, NUMBER)))
        seen = st.builds(
            Observed, low=st.just(low), value=st.just(value), high=st.just(high), n=st.integers(0, 10**9), unit=TEXT
        )
        judged.append(
            judgement(
                verdict, code, clause=draw(TEXT), target=draw(st.none() | TEXT), backend=draw(st.none() | TEXT),
                reason=draw(TEXT), metric=draw(TEXT), bundle=draw(st.none() | TEXT), file=draw(st.none() | TEXT),
                vs=draw(st.none() | TEXT), observed=draw(st.none() | seen), limit=draw(st.none() | NUMBER),
                line=draw(st.none() | st.integers(-5, 10**9)),
            )
        )  # fmt: skip
    return gate(
        judged, draw(st.sampled_from([0, 1, 2, 3, 4, 8, 99, -1])), model=draw(TEXT), clauses=draw(TEXT),
        created=draw(TEXT), device=draw(st.none() | TEXT), warnings=(draw(TEXT),),
        report=Judged(path=draw(TEXT), sha256=draw(TEXT), created=draw(TEXT)),
    )  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(gates())
def test_every_output_stays_what_it_is(repo_root, seen):
    schema = etree.XMLSchema(etree.parse(repo_root / "tests" / "schemas" / "junit.xsd"))
    schema.assertValid(etree.fromstring(junit.render(seen).encode()))

    page = rendered(gate_markdown.render(seen))
    assert {element.tag for element in page.iter()} <= TAGS
    missed = sum(j.verdict != "pass" for j in seen.judgements)
    passed = len(seen.judgements) - missed
    assert [len(table) - 1 for table in tables(page)] == [count for count in (missed, passed) if count]
    assert all(len(row) == 6 for table in tables(page) for row in table)

    assert all(set(properties) <= {"file", "line", "title"} for _, properties, _ in read(annotations.render(seen)))
    issues = json.loads(gitlab.code_quality(seen))
    assert len({issue["fingerprint"] for issue in issues}) == len(issues) >= missed
    assert list(text_string_to_metric_families(gitlab.metrics(seen)))
    etree.fromstring(badge.svg(seen).encode())
    json.loads(badge.endpoint(seen))
