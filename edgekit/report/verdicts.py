"""What a gate said: a judgement for each limit and bundle, and `gate.json`, from which every other output is made."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from edgekit.report.jsonfile import read_versioned
from edgekit.report.values import Number, Observed, Value

SCHEMA_VERSION = 1
LARGEST = 64_000_000
"""Bytes of the largest gate.json that is read."""

Verdict = Literal["pass", "fail", "warn", "inconclusive", "invalid", "missing"]
Kind = Literal["", "min", "max", "max_regression", "max_ratio"]


class Judgement(Value):
    """One limit of a clause on one bundle.

    `limit` is in the unit of `observed`. `exit_code` is what it asks for, after the clause's severity and wishes.
    `samples_needed` is how many samples (or rounds) would tell, where it is inconclusive. `file` and `line` say where
    the clause stands. `bundle` is the file that was judged.
    """

    clause: str
    target: str | None = None
    backend: str | None = None
    verdict: Verdict
    observed: Observed | None = None
    limit: float | None = None
    reason: str
    exit_code: int = 0
    metric: str = ""
    kind: Kind = ""
    vs: str | None = None
    severity: Literal["fail", "warn"] = "fail"
    confidence: float = 0.95
    samples_needed: int | None = None
    bundle: str | None = None
    file: str | None = None
    line: int | None = None


class Judged(Value):
    """A report that was judged, or compared with: where it lay, its hash, and when it was made."""

    path: str
    sha256: str
    created: str = ""
    model: str = ""


class GateFile(Value):
    """`gate.json`, schema version 1: every clause on every bundle, and the code that the command ended with.

    `clauses` is the file that they stand in. `device` is where bundles were timed again; null where stored rounds were
    judged. `attempts` counts the tries that `--retry-invalid` took. `seconds` is what all of it took.
    """

    schema_version: Literal[1] = 1
    edgekit: str
    created: str
    seconds: Number = None
    model: str
    report: Judged
    clauses: str
    baseline: str | None = None
    previous: Judged | None = None
    device: str | None = None
    attempts: int = 1
    exit_code: int
    judgements: tuple[Judgement, ...] = ()
    warnings: tuple[str, ...] = Field(default=())


def gate_schema() -> dict[str, Any]:
    """JSON Schema of `gate.json`.

    >>> gate_schema()["properties"]["schema_version"]["const"]
    1
    """
    schema = GateFile.model_json_schema(mode="serialization")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "edgekit gate.json"}


def read_gate(path: Path) -> GateFile:
    """Read a `gate.json`.

    Raises:
        UsageError: the file is missing, is not JSON, or is no gate.json of this schema version.
    """
    return read_versioned(
        path, GateFile, SCHEMA_VERSION, largest=LARGEST, what="the gate.json of a gate", again="Judge again"
    )
