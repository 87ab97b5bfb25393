"""A bundle's model card in Markdown, with the front matter that Hugging Face's hub reads."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from typing import Any

from ruamel.yaml import YAML

from edgekit.plain import markdown, printable
from edgekit.report import words
from edgekit.report.facts import Facts, Metric, described
from edgekit.report.quantities import show

_MOST = 60
"""Rows of a table of classes."""


def render(found: Facts) -> str:
    """The card: what the model is, what it takes, how it did, what it is made of, and under which licences."""
    manifest = found.bundle.manifest
    lines = ["---", _front(found).rstrip(), "---", "", f"# {markdown(manifest.model)}", ""]
    lines += [markdown(_opening(found)), ""]
    lines += _section("Inputs and outputs", _interface(found))
    lines += _section("Intended use", ["Not stated. Whoever publishes this card says what the model is for."])
    lines += _section("Figures", _figures(found))
    lines += _section("Each class against the rest", _classes(found.metrics))
    lines += _section("Against the model as it came", [f"- {markdown(line)}" for line in found.tradeoffs])
    lines += _section("Limitations", [f"- {markdown(line)}" for line in found.limits])
    lines += _section("Made from", _materials(found))
    lines += _section(
        "How to run it",
        ["```sh", "python3 X.edge selftest", "python3 X.edge run --inputs in.npy --outputs out.npy", "```"],
    )
    return "\n".join(lines).rstrip() + "\n"


def _section(title: str, body: Iterable[str]) -> list[str]:
    lines = list(body)
    return [f"## {title}", "", *lines, ""] if lines else []


def _opening(found: Facts) -> str:
    manifest = found.bundle.manifest
    steps = " -> ".join(str(stage.get("name", "?")) for stage in manifest.stages)
    made = f", by {steps}" if steps and manifest.role != "reference" else ""
    task = f" Task: {found.task}." if found.task else ""
    return (
        f"{manifest.role.capitalize()} model, {manifest.precision}, for {manifest.target} by "
        f"{words.backend(manifest.backend)}{made}. {show(found.bundle.model_bytes, 'bytes')}.{task}"
    )


def _interface(found: Facts) -> Iterator[str]:
    manifest = found.bundle.manifest
    yield from (f"- input {markdown(line)}" for line in described(manifest.inputs))
    yield from (f"- output {markdown(line)}" for line in described(manifest.outputs))
    given = manifest.preprocess
    if given.scale != (1.0,) or given.offset != (0.0,):
        scale, offset = (", ".join(f"{n:.9g}" for n in values) for values in (given.scale, given.offset))
        way = f", {given.layout} to {given.to}" if given.to else ""
        yield markdown(f"- raw samples: value * {scale} + ({offset}){way}").replace("\\-", "-", 1)


def _figures(found: Facts) -> list[str]:
    rows = [metric for metric in found.metrics if not metric.of_class]
    if not rows:
        return []
    lines = ["| metric | value, 95 % interval |", "|---|---|"]
    lines += [f"| {markdown(metric.name)} | {markdown(metric.shown)} |" for metric in rows]
    data, result = found.report and found.report.data, found.result
    scored = f"Scored on {data.n:,} samples of the {data.split} split of {data.name}" if data else ""
    on = f"measured on {result.measured_on}" if result and result.measured_on else ""
    said = "; ".join(part for part in (scored, on) if part)
    return [*lines, *(["", f"{markdown(said)}."] if said else [])]


def _classes(metrics: Iterable[Metric]) -> list[str]:
    found: dict[str, dict[str, str]] = {}
    for metric in metrics:
        if metric.of_class:
            found.setdefault(metric.of_class, {})[metric.name] = metric.shown
    if not found:
        return []
    names = ("precision", "recall", "f1")
    lines = ["| class | precision | recall | F1 |", "|---|---:|---:|---:|"]
    for name, shown in list(found.items())[:_MOST]:
        lines.append(f"| {markdown(name)} | {' | '.join(shown.get(key, '-') for key in names)} |")
    left = len(found) - _MOST
    return [*lines, *(["", f"{left} more classes are in the report."] if left > 0 else [])]


def _materials(found: Facts) -> list[str]:
    manifest, licences = found.bundle.manifest, found.licences
    rows = [("model", manifest.model, f"source sha256 {manifest.source_sha256[:16]}", licences.get("model", ""))]
    if manifest.data.get("name"):
        told = f"sha256 {manifest.data.get('sha256', '')[:16]}"
        rows.append(("data", manifest.data["name"], told, licences.get("data", "")))
    rows += [
        ("runs with" if one.runs else "made with", one.name, one.version or "any", one.licence)
        for one in found.libraries
    ]
    lines = ["| part | name | version | licence |", "|---|---|---|---|"]
    lines += [f"| {' | '.join(markdown(cell) for cell in (*row[:3], row[3] or 'not stated'))} |" for row in rows]
    return [*lines, "", f"Digest of the bundle: `{found.bundle.sha256}`; sha256 of the file: `{found.file_sha256}`."]


def _front(found: Facts) -> str:
    """The YAML that the hub reads: licence, tags, and the results as a model index."""
    manifest = found.bundle.manifest
    licence = found.licences.get("model", "")
    front: dict[str, Any] = {}
    if licence:
        simple = " " not in licence
        front |= (
            {"license": printable(licence.lower())}
            if simple
            else {"license": "other", "license_name": printable(licence)}
        )
    front["library_name"] = "edgekit"
    front["tags"] = [printable(tag) for tag in ("edgekit", manifest.backend, manifest.precision, manifest.target)]
    shares = [m for m in found.metrics if m.name in ("accuracy", "precision", "recall", "f1") and not m.of_class]
    if shares and found.report and found.report.data:
        front["metrics"] = [metric.name for metric in shares]
        data = printable(found.report.data.name)
        result = {
            "task": {"type": printable(found.task) or "other"},
            "dataset": {"type": data, "name": data, "split": printable(found.report.data.split)},
            "metrics": [{"type": metric.name, "value": metric.seen.value} for metric in shares],
        }
        front["model-index"] = [{"name": printable(manifest.model), "results": [result]}]
    yaml, text = YAML(typ="safe"), io.StringIO()
    yaml.default_flow_style, yaml.sort_base_mapping_type_on_output = False, False  # type: ignore[assignment]
    yaml.width = 10_000
    yaml.dump(front, text)
    return text.getvalue()
