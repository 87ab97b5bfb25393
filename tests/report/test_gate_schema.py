"""The documented schema of gate.json holds for what a gate writes, and the docs name every field."""

from __future__ import annotations

import copy
import json

import jsonschema
import pytest
from gate_samples import gate, hostile
from typer.testing import CliRunner

from edgekit.cli.app import app


@pytest.fixture(scope="module")
def schema():
    done = CliRunner().invoke(app, ["schema", "--gate"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    jsonschema.Draft202012Validator.check_schema(found)
    return jsonschema.Draft202012Validator(found)


@pytest.mark.parametrize("seen", [gate(), gate(()), hostile()])
def test_it_holds_for_what_a_gate_writes(schema, seen):
    schema.validate(json.loads(seen.model_dump_json()))


@pytest.mark.parametrize(
    "spoil",
    [lambda g: g.update(schema_version=2), lambda g: g.update(more=1), lambda g: g.pop("exit_code"),
     lambda g: g["judgements"][0].update(verdict="maybe"), lambda g: g["judgements"][0]["observed"].pop("n")],
)  # fmt: skip
def test_it_refuses_what_a_gate_never_writes(schema, spoil):
    data = copy.deepcopy(json.loads(gate().model_dump_json()))
    spoil(data)
    assert not schema.is_valid(data)


def test_every_field_is_described(schema):
    described = schema.schema["properties"] | schema.schema["$defs"]["Judgement"]["properties"]
    assert {"exit_code", "judgements", "clause", "verdict", "observed"} <= set(described)
