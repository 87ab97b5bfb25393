"""A recipe in YAML to typed values. Every error names the file, the line and the setting."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from edgekit.backends import BACKENDS
from edgekit.clauses import Clause, check_all
from edgekit.datasource import EnvironmentSettings, ImageSettings, PreprocessSettings, Task
from edgekit.devices import device_names
from edgekit.errors import UsageError
from edgekit.extras import unknown
from edgekit.model import TensorSpec
from edgekit.registry import places, resolve
from edgekit.robust.settings import RobustnessSettings
from edgekit.stages import STAGES, Stage
from edgekit.target import Target, load_target
from edgekit.usercode import is_function
from edgekit.yamlfile import Document, read_yaml

Dtype = Literal["float32", "float16", "int64", "int32", "int8", "uint8", "bool"]
Axis = Annotated[int, Field(gt=0)] | Annotated[str, Field(min_length=1)]


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class InputSettings(_Value):
    """An input of the network: dynamic axes by name."""

    shape: tuple[Axis, ...] = Field(examples=["for example [batch, 3, 224, 224]"])
    dtype: Dtype = "float32"


class ModelSettings(_Value):
    """The network: `model.py:function` with `weights` and `inputs`, a `.pt2` or an `.onnx` file."""

    source: str = Field(min_length=1, examples=["for example model.py:build"])
    weights: str | None = None
    inputs: dict[str, InputSettings] | None = None
    name: str | None = Field(default=None, max_length=100, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    licence: str | None = Field(default=None, min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]*$")

    def specs(self) -> dict[str, TensorSpec] | None:
        """The inputs as the rest of edgekit has them."""
        if self.inputs is None:
            return None
        return {name: TensorSpec(name, i.dtype, i.shape) for name, i in self.inputs.items()}


class DataSettings(_Value):
    """The samples: see `edgekit.load_data`."""

    source: str = Field(min_length=1, examples=["the path of a folder or an .npz file"])
    task: Task | None = None
    preprocess: PreprocessSettings | None = None
    splits: dict[str, str] | None = None
    classes: tuple[str, ...] | None = None
    images: ImageSettings | None = None
    decode: str | None = None
    environment: EnvironmentSettings | None = None
    metrics: dict[Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_]*$")], str] | None = None


def _named(value: object) -> object:
    return {"target": value} if isinstance(value, str) else value


class TargetSettings(_Value):
    """One device kind, the backends to build for it (all it can have, if none are named), and where to measure."""

    target: str = Field(min_length=1, examples=["a name that `edgekit targets` lists"])
    backends: tuple[str, ...] | None = Field(default=None, min_length=1)
    device: str | None = None
    threads: int | None = Field(default=None, ge=1, le=1024)


class MeasureSettings(_Value):
    """How times are taken.

    `threads` of the runtime; interleaved `rounds` a comparison, at most; samples enough for `percentile`, or for the
    highest that a gate clause names.
    """

    threads: int = Field(default=1, ge=1, le=1024)
    rounds: int = Field(default=24, ge=4, le=1000)
    percentile: float = Field(default=90.0, ge=50, le=99.9)


class IoSettings(_Value):
    """What a bundle takes and gives: float32 in the source's layout and names."""

    dtype: Literal["float32"] = "float32"
    layout: Literal["source"] = "source"


class RecipeFile(_Value):
    """A recipe as written."""

    version: Literal[1]
    model: ModelSettings
    data: DataSettings
    stages: tuple[dict[str, Any] | str, ...] = ()
    targets: tuple[Annotated[TargetSettings, BeforeValidator(_named)], ...] = Field(min_length=1)
    gate: tuple[Clause, ...] = ()
    measure: MeasureSettings = MeasureSettings()
    robustness: RobustnessSettings | None = None
    io: IoSettings = IoSettings()
    seed: int = Field(default=0, ge=0, lt=2**32)


@dataclass(frozen=True)
class PlannedTarget:
    """One target of a recipe, with its backends in order. Without a device it is built and never timed."""

    target: Target
    backends: tuple[str, ...]
    device: str | None
    threads: int


@dataclass(frozen=True)
class Recipe:
    """A checked recipe. `written` holds it as plain values, for the record."""

    path: Path
    model: ModelSettings
    data: DataSettings
    stages: tuple[Stage, ...]
    targets: tuple[PlannedTarget, ...]
    gate: tuple[Clause, ...]
    measure: MeasureSettings
    io: IoSettings
    seed: int
    written: dict[str, Any]
    robustness: RobustnessSettings | None = None

    @property
    def base(self) -> Path:
        """The folder that the recipe's paths are relative to."""
        return self.path.parent

    @property
    def name(self) -> str:
        """What bundles are called after: the model's name, its file's, or its folder's."""
        file = self.base / self.model.source.rpartition(":")[0] if is_function(self.model.source) else None
        return self.model.name or (file.resolve().parent.name if file else Path(self.model.source).stem)

    @property
    def weights(self) -> Path | None:
        """The weights file."""
        return self.base / self.model.weights if self.model.weights else None


def load_recipe(path: str | Path, *, targets: Sequence[str] | None = None) -> Recipe:
    """Read and check a recipe: every key, type, name and path, before anything long starts.

    Args:
        path: the YAML file.
        targets: only these of the recipe's targets, and the clauses on them; all of them when None or empty.

    Raises:
        UsageError: `recipe.yaml:12: stages[1].prune.macs: must be in (0, 1], got 1.5. ...`

    >>> recipe = load_recipe("examples/fashion_mnist/recipe.yaml")
    >>> [stage.kind for stage in recipe.stages]
    ['prune', 'distill', 'quantize']
    """
    document = read_yaml(Path(path), "recipe")
    file = document.validate(RecipeFile, document.value)
    _check_model(document, file.model)
    _check_data(document, file.data)
    stages = tuple(_stage(document, index, entry) for index, entry in enumerate(file.stages))
    _check_order(document, stages)
    planned = tuple(_target(document, index, entry, file.measure) for index, entry in enumerate(file.targets))
    _check_distinct(document, planned)
    _check_gate(document, file.gate, planned)
    chosen = _chosen(document, planned, targets or ())
    names = {entry.target.name for entry in chosen}
    return Recipe(
        path=document.path,
        model=file.model,
        data=file.data,
        stages=stages,
        targets=chosen,
        gate=tuple(clause for clause in file.gate if clause.target is None or clause.target in names),
        measure=file.measure,
        io=file.io,
        seed=file.seed,
        written=document.value,
        robustness=file.robustness,
    )


def _check_model(document: Document, model: ModelSettings) -> None:
    base, place = document.path.parent, ("model", "source")
    file = model.source.rpartition(":")[0] if is_function(model.source) else model.source
    if not (base / file).is_file():
        raise document.error(place, f"no such file: {base / file}. Paths are relative to the recipe's folder.")
    if not is_function(model.source) and Path(file).suffix not in {".onnx", ".pt2"}:
        raise document.error(
            place, f"must be `file.py:function`, a .pt2 file or an .onnx file, got {model.source!r}. "
            "Weights alone (.pt, .safetensors) go under `weights`, beside the function that builds the model."
        )  # fmt: skip
    if is_function(model.source) and not model.inputs:
        raise document.error(
            ("model", "inputs"), "is missing: a Python model needs the shape of its inputs. Use for example "
            "{image: {shape: [batch, 3, 224, 224], dtype: float32}}."
        )  # fmt: skip
    if model.weights is not None and not (base / model.weights).is_file():
        raise document.error(
            ("model", "weights"), f"no such file: {base / model.weights}. Paths are relative to the recipe's folder."
        )


def _check_data(document: Document, data: DataSettings) -> None:
    for name, source in {"decode": data.decode, **(data.metrics or {})}.items():
        place = ("data", name) if name == "decode" else ("data", "metrics", name)
        if source is not None and not is_function(source):
            raise document.error(place, f"must be `file.py:function`, got {source!r}.")
        if source is not None and not (document.path.parent / source.rpartition(":")[0]).is_file():
            raise document.error(place, f"no such file: {document.path.parent / source.rpartition(':')[0]}.")
    file = data.source.rpartition(":")[0] if is_function(data.source) else data.source
    if not (document.path.parent / file).exists():
        raise document.error(
            ("data", "source"),
            f"no such file or folder: {document.path.parent / file}. Paths are relative to the recipe's folder.",
        )


def _stage(document: Document, index: int, entry: dict[str, Any] | str) -> Stage:
    place = ("stages", index)
    written = {entry: {}} if isinstance(entry, str) else entry
    if len(written) != 1:
        raise document.error(place, f"a stage is one kind with its settings, got {len(written)}: {', '.join(written)}.")
    kind, settings = next(iter(written.items()))
    try:
        stage = resolve("stage", kind, STAGES, "edgekit.stages")
    except UsageError as error:
        raise document.error((*place, kind), str(error)) from None
    checked: Stage = document.validate(stage, {} if settings is None else settings, (*place, kind))
    return checked


def _check_order(document: Document, stages: Sequence[Stage]) -> None:
    """The way from a trainable module to one graph is one-way: what trains comes first, and it is gone once.

    A stage that works on what another one makes names it as `after`, and what must not follow it as `not_before`.
    """
    for index, stage in enumerate(stages):
        needed = getattr(stage, "after", None)
        if needed and needed not in [s.kind for s in stages[:index]]:
            later = needed in [s.kind for s in stages[index:]]
            what = "Move it behind." if later else f"Add `- {needed}` in front of it."
            raise document.error(("stages", index), f"{stage.kind!r} trains what {needed!r} makes. {what}")
        if not stage.trains and stage.kind in [s.kind for s in stages[:index]]:
            raise document.error(("stages", index), f"{stage.kind!r} stands here twice. Once is enough.")
        barred = next((s.kind for s in stages[:index] if stage.kind in getattr(s, "not_before", ())), None)
        if barred:
            raise document.error(
                ("stages", index), f"{stage.kind!r} would undo what {barred!r} does. Move it in front of that."
            )
        before = next((s.kind for s in stages[:index] if not s.trains), None)
        if stage.trains and before:
            raise document.error(
                ("stages", index), f"{stage.kind!r} trains weights and cannot follow {before!r}. Move it before."
            )


def _target(document: Document, index: int, entry: TargetSettings, measure: MeasureSettings) -> PlannedTarget:
    place = ("targets", index)
    own = entry.target.endswith((".yaml", ".yml"))
    try:
        target = load_target(document.path.parent / entry.target if own else entry.target)
    except UsageError as error:
        if own:
            raise
        raise document.error((*place, "target"), str(error)) from None
    known, backends = places(BACKENDS, "edgekit.backends"), entry.backends or tuple(target.backends)
    for number, backend in enumerate(backends):
        where = (*place, "backends", number)
        if backend not in known:
            raise document.error(where, unknown("backend", backend, known))
        if backend not in target.backends:
            raise document.error(
                where, f"target {target.name!r} has no backend {backend!r}. It has: {', '.join(target.backends)}."
            )
    if entry.device is not None and entry.device not in (devices := device_names()):
        raise document.error((*place, "device"), unknown("device", entry.device, devices))
    return PlannedTarget(target, backends, entry.device, entry.threads or measure.threads)


def _check_distinct(document: Document, planned: Sequence[PlannedTarget]) -> None:
    seen: set[tuple[str, str]] = set()
    for index, entry in enumerate(planned):
        for number, backend in enumerate(entry.backends):
            if (pair := (entry.target.name, backend)) in seen:
                raise document.error(
                    ("targets", index, "backends", number), f"{backend!r} for {entry.target.name!r} stands here twice."
                )
            seen.add(pair)


def _check_gate(document: Document, gate: Sequence[Clause], planned: Sequence[PlannedTarget]) -> None:
    names = {entry.target.name for entry in planned}
    backends = {backend for entry in planned for backend in entry.backends}
    check_all(document, gate)
    for index, clause in enumerate(gate):
        place = ("gate", index)
        if clause.target is not None and clause.target not in names:
            raise document.error((*place, "target"), unknown("target of this recipe", clause.target, names))
        if clause.backend is not None and clause.backend not in backends:
            raise document.error((*place, "backend"), unknown("backend of this recipe", clause.backend, backends))


def _chosen(document: Document, planned: tuple[PlannedTarget, ...], wanted: Sequence[str]) -> tuple[PlannedTarget, ...]:
    names = [entry.target.name for entry in planned]
    for name in wanted:
        if name not in names:
            raise UsageError(f"{document.path}: {unknown('target of this recipe', name, set(names))}")
    return tuple(entry for entry in planned if not wanted or entry.target.name in wanted)


def recipe_schema() -> dict[str, Any]:
    """JSON Schema of a recipe, with the settings of every stage that is installed, for editors.

    >>> recipe_schema()["title"]
    'edgekit recipe'
    """
    schema = RecipeFile.model_json_schema()
    kinds = []
    for kind in sorted(places(STAGES, "edgekit.stages")):
        stage = resolve("stage", kind, STAGES, "edgekit.stages").model_json_schema()
        schema["$defs"].update(stage.pop("$defs", {}))
        schema["$defs"][f"stage.{kind}"] = stage
        kinds.append({"type": "object", "additionalProperties": False, "required": [kind],
                      "properties": {kind: {"$ref": f"#/$defs/stage.{kind}"}}})  # fmt: skip
    schema["properties"]["stages"]["items"] = {"oneOf": kinds}
    schema["properties"]["targets"]["items"] = {"anyOf": [{"$ref": "#/$defs/TargetSettings"}, {"type": "string"}]}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "edgekit recipe"}
