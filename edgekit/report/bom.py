"""A bundle's bill of materials: CycloneDX 1.6 (ECMA-424) with an ML model card, checked against its schema.

The same bundle and report give the same bytes: the serial number is derived from them, and the time is
`SOURCE_DATE_EPOCH`, that of the report, or left out.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterable
from datetime import datetime
from typing import TYPE_CHECKING, Any

from edgekit.errors import EdgekitError, UsageError
from edgekit.extras import DISTRIBUTION, require
from edgekit.plain import printable
from edgekit.report.facts import Facts, Library, Metric, described
from edgekit.units import source_date

if TYPE_CHECKING:
    from cyclonedx.model import HashType
    from cyclonedx.model.bom import Bom
    from cyclonedx.model.component import Component
    from cyclonedx.model.license import License

MODEL, DATA, BUNDLE = "model", "data", "bundle"
"""References within the document."""


def render(found: Facts) -> str:
    """The bill of materials as JSON, valid by the strict schema of CycloneDX 1.6.

    Raises:
        MissingDependencyError: the library that writes and checks it is not installed.
    """
    for package in ("cyclonedx", "jsonschema"):
        require(package, extra="bom", why="writing a bill of materials")
    from cyclonedx.output.json import JsonV1Dot6

    told = json.loads(JsonV1Dot6(_bom(found)).output_as_string())
    for component in told["components"]:
        # The library has no classes for these two parts of the specification.
        if component["bom-ref"] == MODEL:
            component["modelCard"] = _card(found)
        elif component["bom-ref"] == DATA:
            component["data"] = [{"type": "dataset", "name": component["name"], "description": _about_data(found)}]
    text = json.dumps(told, indent=2, ensure_ascii=True) + "\n"
    _check(text)
    return text


def _check(text: str) -> None:
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    error = JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)
    if error:
        raise EdgekitError(f"the bill of materials does not fit the schema of CycloneDX 1.6: {error}")


def _bom(found: Facts) -> Bom:
    from cyclonedx.model.bom import Bom, BomMetaData
    from cyclonedx.model.tool import ToolRepository

    bundle, model = _bundle(found), _model(found)
    parts = [model, *_files(found)]
    data = _data(found)
    libraries = [_library(one) for one in found.libraries]
    bom = Bom(
        serial_number=_serial(found),
        components=[*parts, *libraries, *data],
        metadata=BomMetaData(component=bundle, tools=ToolRepository(components=_tools(found)), timestamp=_time(found)),
    )
    bom.metadata.timestamp = _time(found)  # type: ignore[assignment]  # the library would take the clock's
    needed = [one for one, library in zip(libraries, found.libraries, strict=True) if library.runs]
    bom.register_dependency(bundle, [model, *needed])
    bom.register_dependency(model, [*parts[1:], *data])
    return bom


def _serial(found: Facts) -> uuid.UUID:
    """One for each bundle and report, the same each time."""
    report = found.report.model_dump_json() if found.report else ""
    return uuid.uuid5(uuid.NAMESPACE_URL, f"{DISTRIBUTION}:bom:{found.file_sha256}:{report}")


def _time(found: Facts) -> datetime | None:
    set_by_hand = source_date()
    if set_by_hand or found.report is None:
        return set_by_hand
    try:
        return datetime.fromisoformat(found.report.created)
    except ValueError as error:
        raise UsageError(f"the report's `created` is no time: {found.report.created!r}.") from error


def _bundle(found: Facts) -> Component:
    from cyclonedx.model.component import Component, ComponentType

    bundle, manifest = found.bundle, found.bundle.manifest
    return Component(
        name=_clean(bundle.path.name),
        type=ComponentType.FILE,
        bom_ref=BUNDLE,
        hashes=[_sha256(found.file_sha256)],
        description=f"A model with what runs it by {_clean(manifest.backend)} on {_clean(manifest.target)}",
        properties=_properties({"seal": bundle.sha256, "size_bytes": str(bundle.size_bytes)}),
    )


def _model(found: Facts) -> Component:
    from cyclonedx.model.component import Component, ComponentType

    manifest = found.bundle.manifest
    about = {
        "target": manifest.target,
        "backend": manifest.backend,
        "role": manifest.role,
        "precision": manifest.precision,
        "stages": " -> ".join(str(stage.get("name", "?")) for stage in manifest.stages),
        "source_sha256": manifest.source_sha256,
    }
    return Component(
        name=_clean(manifest.model),
        type=ComponentType.MACHINE_LEARNING_MODEL,
        bom_ref=MODEL,
        licenses=_licences(found.licences.get("model")),
        properties=_properties(about),
    )


def _files(found: Facts) -> list[Component]:
    from cyclonedx.model.component import Component, ComponentType

    return [
        Component(name=_clean(name), type=ComponentType.FILE, bom_ref=f"file:{_clean(name)}", hashes=[_sha256(digest)])
        for name, digest in sorted(found.bundle.manifest.members.items())
        if name.startswith("model/") and re.fullmatch("[0-9a-f]{64}", digest)
    ]


def _data(found: Facts) -> list[Component]:
    from cyclonedx.model.component import Component, ComponentType

    told = found.bundle.manifest.data
    if not told.get("name"):
        return []
    digest = told.get("sha256", "")
    return [
        Component(
            name=_clean(told["name"]),
            type=ComponentType.DATA,
            bom_ref=DATA,
            hashes=[_sha256(digest)] if re.fullmatch("[0-9a-f]{64}", digest) else [],
            licenses=_licences(found.licences.get("data")),
        )
    ]


def _about_data(found: Facts) -> str:
    about = "Calibrated and scored the model; its hash is over samples, labels and preprocessing."
    data = found.report.data if found.report else None
    return about + (f" Scored on {data.n} samples of the split {_clean(data.split)}." if data else "")


def _library(library: Library) -> Component:
    from cyclonedx.model.component import Component, ComponentScope, ComponentType
    from packageurl import PackageURL

    name = re.sub(r"[-_.]+", "-", _clean(library.name)).lower()
    purl = PackageURL("pypi", name=name, version=_clean(library.version) or None)
    return Component(
        name=_clean(library.name),
        type=ComponentType.LIBRARY,
        version=_clean(library.version) or None,
        bom_ref=str(purl),
        purl=purl,
        scope=ComponentScope.REQUIRED if library.runs else ComponentScope.EXCLUDED,
        licenses=_licences(library.licence),
    )


def _tools(found: Facts) -> list[Component]:
    from cyclonedx.model.component import Component, ComponentType

    version = found.bundle.manifest.edgekit or None
    return [Component(name=DISTRIBUTION, type=ComponentType.APPLICATION, version=_clean(version) if version else None)]


def _licences(told: str | None) -> list[License]:
    from cyclonedx.contrib.license.factories import LicenseFactory

    return [LicenseFactory().make_from_string(_clean(told))] if told else []


def _sha256(digest: str) -> HashType:
    from cyclonedx.model import HashAlgorithm, HashType

    return HashType(alg=HashAlgorithm.SHA_256, content=digest)


def _properties(values: dict[str, str]) -> Iterable[Any]:
    from cyclonedx.model import Property

    return [Property(name=f"{DISTRIBUTION}:{name}", value=_clean(value)) for name, value in values.items() if value]


def _card(found: Facts) -> dict[str, Any]:
    """The model card of the specification: what the library has no class for."""
    manifest = found.bundle.manifest
    parameters: dict[str, Any] = {
        "modelArchitecture": _clean(manifest.model),
        "inputs": [{"format": _clean(line)} for line in described(manifest.inputs)],
        "outputs": [{"format": _clean(line)} for line in described(manifest.outputs)],
    }
    if found.task:
        parameters["task"] = _clean(found.task)
    if manifest.data.get("name"):
        parameters["datasets"] = [{"ref": DATA}]
    card: dict[str, Any] = {"modelParameters": parameters}
    if found.metrics:
        card["quantitativeAnalysis"] = {"performanceMetrics": [_metric(metric) for metric in found.metrics]}
    considerations = {"technicalLimitations": found.limits, "performanceTradeoffs": found.tradeoffs}
    card["considerations"] = {name: [_clean(line) for line in lines] for name, lines in considerations.items() if lines}
    return card


def _metric(metric: Metric) -> dict[str, Any]:
    """Numbers in base units, as text: the specification has them so."""
    seen = metric.seen
    told: dict[str, Any] = {"type": f"{metric.name} [{metric.unit}]", "value": f"{seen.value:.9g}"}
    if metric.of_class:
        told["slice"] = _clean(metric.of_class)
    if (seen.low, seen.high) != (seen.value, seen.value):
        told["confidenceInterval"] = {"lowerBound": f"{seen.low:.9g}", "upperBound": f"{seen.high:.9g}"}
    return told


def _clean(text: str) -> str:
    """Text of others on one line, without control characters; lone surrogates, which UTF-8 cannot hold, written out."""
    return printable(text)
