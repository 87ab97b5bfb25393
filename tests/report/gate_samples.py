"""Gates to render: one with every verdict, one whose every text is hostile, and a large one."""

from __future__ import annotations

from edgekit.report.values import Observed
from edgekit.report.verdicts import GateFile, Judged, Judgement

NASTY = (
    "a\x1b[31m\x00\x07 | <script>alert(1)</script> ]]> &amp; \"quoted\" 'single' %0A::error::x\r\n::error::injected\r"
    '::set-output name=x::y, b: `code` **bold** [link](http://evil.example) # heading {x="y"} \u202e\ufffe\uffff'
    " www.evil.example https://evil.example/ $x$ ![i](j) ~~s~~\n# top\n| new | row |\n</details></table>"
)


def judgement(verdict="pass", code=0, **more) -> Judgement:
    values = {
        "clause": "latency.p90 vs reference: max_ratio 1.0",
        "target": "x86-64",
        "backend": "onnxruntime",
        "verdict": verdict,
        "observed": Observed(value=0.62, low=0.6, high=0.65, n=20, unit="ratio"),
        "limit": 1.0,
        "reason": "quantized int8: 0.620x [0.600, 0.650], 20 rounds; at most 1x of reference",
        "exit_code": code,
        "metric": "latency.p90",
        "kind": "max_ratio",
        "vs": "reference",
        "bundle": "bundles/net-x86-64-onnxruntime-quantized-int8.edge",
        "file": "gate.yaml",
        "line": 4,
    }
    return Judgement(**{**values, **more})


EVERY = (
    judgement(),
    judgement(
        "fail", 1, clause="accuracy vs reference: max_regression 1.0pp", metric="accuracy", kind="max_regression",
        observed=Observed(value=0.0213, low=0.0181, high=0.0246, n=10_000, unit="points"), limit=0.01, line=3,
        reason="quantized int8: worse by 2.13 pp [1.81, 2.46], n = 10,000; at most 1.00 pp worse than reference",
    ),
    judgement("warn", 0, clause="latency.p50: max 1.2 ms", metric="latency.p50", kind="max", vs=None, severity="warn",
              observed=Observed(value=0.0014, low=0.00138, high=0.00142, n=400, unit="s"), limit=0.0012, line=5),
    judgement("inconclusive", 4, backend="openvino", samples_needed=38_000, line=6, confidence=0.99),
    judgement("inconclusive", 0, backend="litert", line=6),
    judgement("invalid", 3, backend="litert", observed=None, reason="the device was throttled", line=7),
    judgement("missing", 1, target=None, backend=None, observed=None, limit=None, reason="no device", line=8),
    judgement("missing", 0, target="pi", backend="litert", observed=None, limit=None, reason="it was not built"),
    judgement(clause="size: max 2 MB", metric="size", kind="max", vs=None, limit=2e6, line=9, target="pi",
              observed=Observed(value=571_000, low=571_000, high=571_000, n=1, unit="bytes")),
)  # fmt: skip


def gate(judgements=EVERY, code=3, **more) -> GateFile:
    values = {
        "edgekit": "0.1.0",
        "created": "2026-11-24T17:30:00+00:00",
        "seconds": 0.31,
        "model": "fashion_cnn",
        "report": Judged(
            path="out/report.json", sha256="ab" * 32, created="2026-11-24T17:00:00+00:00", model="fashion_cnn"
        ),
        "clauses": "gate.yaml",
        "exit_code": code,
        "judgements": judgements,
        "warnings": ("accuracy of 3 gates in a row fell",),
    }
    return GateFile(**{**values, **more})


def hostile() -> GateFile:
    """Every text that may come from a report or a recipe tries to act."""
    texts = dict.fromkeys(("clause", "target", "backend", "reason", "bundle", "file", "metric", "vs"), NASTY)
    observed = Observed(value=1.5, low=1.0, high=2.0, n=3, unit=NASTY)
    wicked = [
        judgement(verdict, code, observed=observed, **texts)
        for verdict, code in (("fail", 1), ("warn", 0), ("pass", 0), ("missing", 0), ("invalid", 3))
    ]
    report = Judged(path=NASTY, sha256=NASTY, created=NASTY, model=NASTY)
    return gate(
        wicked, code=3, model=NASTY, created=NASTY, device=NASTY, report=report, previous=report, clauses=NASTY,
        edgekit=NASTY, warnings=(NASTY,),
    )  # fmt: skip


def large(count: int = 20_000) -> GateFile:
    """More than any output can show, with reasons as long as a name can make them."""
    many = [
        judgement("fail" if i % 2 else "pass", i % 2, clause=f"max {i} MB", reason="|" * 3_000) for i in range(count)
    ]
    return gate(many, code=1)
