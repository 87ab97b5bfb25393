"""What a run did, put together as a `Report` and written for people and machines."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from edgekit.assess import Oracle
from edgekit.extras import DISTRIBUTION
from edgekit.model import Model, Step
from edgekit.recipe import Recipe
from edgekit.report.report import (
    DataInfo,
    LayerInfo,
    RecipeInfo,
    Report,
    Result,
    SourceInfo,
    StageInfo,
    TargetInfo,
    write_report,
    write_text,
)
from edgekit.workspace import digest

RUNTIMES = ("torch", "onnx", "onnxruntime", "openvino", "ai-edge-litert", "litert-torch", "tensorrt-rtx", "tensorrt")


def describe(
    recipe: Recipe,
    oracle: Oracle,
    final: Model,
    results: tuple[Result, ...],
    *,
    warnings: Sequence[str],
    seconds: float,
) -> Report:
    """The report before it is judged."""
    return Report(
        edgekit=metadata.version(DISTRIBUTION),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds=seconds,
        recipe=_recipe(recipe),
        data=_data(oracle),
        source=_source(recipe, oracle),
        stages=tuple(_stage(step) for step in final.history),
        targets=tuple(TargetInfo(target=p.target.name, backends=p.backends, device=p.device) for p in recipe.targets),
        results=results,
        warnings=tuple(warnings),
        environment=_environment(),
    )


def write(report: Report, folder: Path) -> None:
    """`report.json`, and `report.html` from it."""
    from edgekit.report import html

    write_report(report, folder / "report.json")
    write_text(folder / "report.html", html.render(report, folder))


def _readable(name: str) -> str:
    """The name of a file as UTF-8: on Linux it may be any bytes."""
    return name.encode(errors="backslashreplace").decode()


def _recipe(recipe: Recipe) -> RecipeInfo:
    text = recipe.path.read_text(encoding="utf-8")
    return RecipeInfo(name=recipe.name, path=_readable(recipe.path.name), sha256=digest(text), text=text)


def _data(oracle: Oracle) -> DataInfo:
    data = oracle.data
    return DataInfo(
        name=data.name,
        split=oracle.split.name,
        n=len(oracle.split),
        sha256=data.sha256,
        task=data.task,
        classes=data.classes,
        licence=data.licence,
    )


def _source(recipe: Recipe, oracle: Oracle) -> SourceInfo:
    from edgekit.graph.cost import cost
    from edgekit.graph.large import fingerprint

    reference, seen = oracle.model, oracle.evaluation
    spent = cost(reference.proto)
    return SourceInfo(
        name=reference.name,
        origin=recipe.model.source,
        sha256=digest(fingerprint(reference.proto)),
        size_bytes=spent.bytes,
        macs=spent.macs,
        parameters=spent.parameters,
        metrics=seen.metrics if seen else None,
        per_class=seen.per_class if seen else (),
    )


def _stage(step: Step) -> StageInfo:
    return StageInfo(
        name=step.name,
        config=_plain(step.config),
        seconds=step.seconds,
        snr_db=step.snr_db,
        agreement=step.agreement,
        metrics=dict(step.metrics),
        macs=step.macs,
        parameters=step.parameters,
        notes=step.notes,
        curve=tuple(dict(point) for point in step.curve),
        refused=dict(step.refused),
        sensitivity=tuple(LayerInfo(**row) for row in step.sensitivity),
    )


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(json.dumps(dict(config), default=str))
    return plain


def _environment() -> dict[str, str]:
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for package in RUNTIMES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
