"""`docs/recipe.md` and `docs/report.md` list every field, every default and every choice, and nothing else."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, get_args, get_origin

import pytest
from pydantic import TypeAdapter
from ruamel.yaml import YAML

from edgekit import clauses, datasource, recipe
from edgekit.registry import resolve
from edgekit.report import report, robust, values, verdicts
from edgekit.robust import settings
from edgekit.stages import STAGES, _training
from edgekit.train import settings as training

RECIPE = {
    "The file": recipe.RecipeFile,
    "Model": recipe.ModelSettings,
    "Input": recipe.InputSettings,
    "Data": recipe.DataSettings,
    "Preprocess": datasource.PreprocessSettings,
    "Images": datasource.ImageSettings,
    "Environment": datasource.EnvironmentSettings,
    "Card": datasource.Card,
    "Card split": datasource.CardSplit,
    "Targets": recipe.TargetSettings,
    "Measure": recipe.MeasureSettings,
    "Robustness": settings.RobustnessSettings,
    "Adversarial": settings.AdversarialSettings,
    "Io": recipe.IoSettings,
    "Gate": clauses.Clause,
    "Teacher": _training.Teacher,
    "Match": training.Matching,
    "Regularize": training.Regularizing,
    "Adversarial training": training.AdversarialTraining,
    **{f"`{kind}`": resolve("stage", kind, STAGES, "edgekit.stages") for kind in STAGES},
}
REPORT = {
    "Report": report.Report,
    "Recipe": report.RecipeInfo,
    "Data": report.DataInfo,
    "Source": report.SourceInfo,
    "Stage": report.StageInfo,
    "Layer": report.LayerInfo,
    "Target": report.TargetInfo,
    "Result": report.Result,
    "Device": report.DeviceInfo,
    "Metrics": values.Metrics,
    "Score": values.Score,
    "Class": report.ClassMetrics,
    "Robustness": robust.Robustness,
    "Condition": robust.Condition,
    "Latency": report.Latency,
    "Paired": report.Paired,
    "Judgement": verdicts.Judgement,
}


def tables(text: str) -> dict[str, dict[str, list[str]]]:
    """Heading -> name in the first column of its first table -> the other cells."""
    found: dict[str, dict[str, list[str]]] = {}
    for section in re.split(r"^#+ ", text, flags=re.MULTILINE)[1:]:
        heading, _, body = section.partition("\n")
        table = re.search(r"(?:^\|.*\n)+", body, re.MULTILINE)
        if table:
            rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table[0].splitlines()[2:]]
            found[heading] = {row[0].strip("`"): row[1:] for row in rows}
    return found


@pytest.fixture(scope="module")
def recipe_tables(repo_root):
    return tables((repo_root / "docs" / "recipe.md").read_text(encoding="utf-8"))


def choices(annotation: Any) -> set[str]:
    """The values of every `Literal` in an annotation."""
    if get_origin(annotation) is Literal:
        return {str(value) for value in get_args(annotation)}
    return {choice for part in get_args(annotation) for choice in choices(part)}


@pytest.mark.parametrize("heading", RECIPE)
def test_the_recipe_page_has_every_key_with_its_default_and_choices(recipe_tables, heading):
    fields, rows = RECIPE[heading].model_fields, recipe_tables[heading]
    assert list(rows) == list(fields)
    for name, field in fields.items():
        default, meaning = rows[name]
        if field.is_required() or field.default is None:
            assert default == ("required" if field.is_required() else "none"), name
        else:
            written = YAML(typ="safe").load(default.strip("`"))
            kind = Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation
            assert TypeAdapter(kind).validate_python(written) == field.default, name
        missing = {c for c in choices(field.annotation) if c not in f"{default} {meaning}"}
        assert not missing, f"{heading}, {name}: {missing} is not explained"


def test_the_recipe_page_has_every_metric(repo_root):
    text = (repo_root / "docs" / "recipe.md").read_text(encoding="utf-8")
    rows = re.search(r"^\| metric \|.*\n(?:\|.*\n?)+", text, re.MULTILINE)
    assert rows
    first = [line.split("|")[1] for line in rows[0].splitlines()[2:]]
    named = [n for n in re.findall(r"`([^`]+)`", " ".join(first)) if not n.startswith(tuple(clauses.FAMILIES))]
    assert sorted(named) == sorted(clauses.UNITS)


@pytest.mark.parametrize("heading", REPORT)
def test_the_report_page_has_every_field(repo_root, heading):
    rows = tables((repo_root / "docs" / "report.md").read_text(encoding="utf-8"))[heading]
    assert list(rows) == list(REPORT[heading].model_fields)


def test_no_model_of_the_report_is_left_out():
    nested = {
        value
        for module in (report, robust, values)
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, values.Value) and value.__module__ == module.__name__
    }
    assert nested - set(REPORT.values()) == {values.Value, values.Bounds, values.Interval, values.Observed}


@pytest.mark.parametrize("page", ["recipe.md", "report.md"])
def test_links_within_the_page_lead_somewhere(repo_root, page):
    text = (repo_root / "docs" / page).read_text(encoding="utf-8")
    anchors = {line.lstrip("# ").lower().replace(" ", "-") for line in text.splitlines() if line.startswith("#")}
    assert set(re.findall(r"\]\(#([^)]+)\)", text)) <= anchors
