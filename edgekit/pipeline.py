"""The main job: a recipe in; bundles, measurements, a report and an exit code out."""

from __future__ import annotations

import importlib.metadata
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.assess import Oracle, assess, did_not_help
from edgekit.building import Builder, Outcome, orders, parts
from edgekit.bundle import Bundle
from edgekit.context import Progress, Silent
from edgekit.data import DataSet, check_against, load_data
from edgekit.devices import DEVICES, Device
from edgekit.errors import DeviceError, MeasurementInvalidError, MissingDependencyError
from edgekit.extras import DISTRIBUTION
from edgekit.gate import exit_code, judge
from edgekit.model import Model, OnnxModel, Step, trail
from edgekit.profile import Profiler
from edgekit.recipe import PlannedTarget, Recipe, load_recipe
from edgekit.registry import resolve
from edgekit.report.predictions import read_predictions
from edgekit.report.report import (
    DataInfo,
    RecipeInfo,
    Report,
    Result,
    SourceInfo,
    StageInfo,
    TargetInfo,
    write_report,
    write_text,
)
from edgekit.ships import mark_ships
from edgekit.workspace import Context, Workspace, digest, load_stage, save_stage, writing_to

if TYPE_CHECKING:
    from edgekit.stages import Stage

DEFAULT_OUT = Path("edgekit-out")
DEFAULT_MAX_DROP = 0.01


def run(
    recipe: str | Path,
    *,
    out: str | Path | None = None,
    targets: Sequence[str] | None = None,
    resume: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Run a recipe: every stage, every target; measure, report and judge.

    Args:
        recipe: a YAML file, see `docs/recipe.md`.
        out: the output folder; by default `edgekit-out/<name of the model>`.
        targets: only these of the recipe's targets.
        resume: go on from the last stage that an earlier run into the same folder finished.
        progress: where to say how far it is; by default nowhere.

    Returns:
        The report, as it lies in `report.json`. `exit_code` is what the command line would end with: a gate that
        fails or a backend that cannot build is in there, it is no exception.

    Raises:
        UsageError: the recipe, the model or the data cannot be used as they are.

    >>> edgekit.run("examples/fashion_mnist/recipe.yaml", out="build/demo").exit_code  # doctest: +SKIP
    0
    """
    job = Run.start(load_recipe(recipe, targets=targets), out, resume=resume, progress=progress or Silent())
    return job.finish(job.results(job.stages()))


@dataclass
class Run:
    """One run of a recipe: what all its steps share."""

    recipe: Recipe
    space: Workspace
    data: DataSet
    source: Model
    oracle: Oracle
    key: str
    progress: Progress
    resume: bool
    started: float
    warnings: list[str]
    codes: list[int]

    @classmethod
    def start(cls, recipe: Recipe, out: str | Path | None, *, resume: bool, progress: Progress) -> Run:
        """Load model and data, hold them against each other, open the output folder."""
        from edgekit.sources import load_model

        started = time.monotonic()
        space = Workspace.open(Path(out) if out else DEFAULT_OUT / recipe.name, resume=resume)
        with progress.task("load data and model"):
            settings = recipe.data
            data = load_data(
                settings.source,
                base=recipe.base,
                task=settings.task,
                preprocess=settings.preprocess.model_dump(exclude_none=True) if settings.preprocess else None,
                splits=settings.splits,
                classes=settings.classes,
                images=settings.images.model_dump(exclude_none=True) if settings.images else None,
            )
            weights = Path(recipe.model.weights) if recipe.model.weights else None
            source = load_model(
                recipe.model.source, weights=weights, inputs=recipe.model.specs(), base=recipe.base, name=recipe.name
            )
            check_against(data, source.inputs, source.outputs)
        key = digest(
            importlib.metadata.version(DISTRIBUTION),
            source.reference.proto.SerializeToString(deterministic=True),
            data.sha256,
            str(recipe.seed),
        )
        oracle = Oracle.of(source, data)
        return cls(recipe, space, data, source, oracle, key, progress, resume, started, list(data.notes), [])

    def stages(self) -> Model:
        """The model after every stage, each checked against the reference as soon as it is there."""
        model = self._entered(self.source)
        before = self.oracle.step
        for number, stage in enumerate(self.recipe.stages, 1):
            self.key = digest(self.key, stage.kind, _written(stage))
            folder = self.space.stage(number, stage.kind)
            kept = load_stage(folder, self.key, model) if self.resume else None
            model = kept or self._applied(stage, model, folder)
            after = model.history[-1]
            line = did_not_help(before, after)
            if line:
                self.warnings.append(line)
                self.progress.say(line)
            before = after
        return model

    def _entered(self, model: Model) -> Model:
        """An ONNX source whose weights are to be trained becomes its torch view."""
        from edgekit.graph.crossing import to_torch

        trains = any(stage.trains for stage in self.recipe.stages)
        return to_torch(model) if trains and isinstance(model, OnnxModel) else model

    def _applied(self, stage: Stage, model: Model, folder: Path) -> Model:
        context = Context(
            data=self.data,
            targets=tuple(planned.target for planned in self.recipe.targets),
            seed=self.recipe.seed,
            work=folder,
            deadline=None,
            progress=self.progress,
        )
        try:
            with writing_to(self.space.root):
                applied = stage.apply(model, context)
        except Exception as error:
            error.add_note(f"in stage {stage.kind!r}, after {trail(model) or 'the original model'}")
            raise
        with self.progress.task(f"check {stage.kind}"):
            step = assess(applied, applied.history[-1], self.oracle)
        checked = replace(applied, history=(*applied.history[:-1], step))
        save_stage(folder, self.key, checked)
        return checked

    def results(self, final: Model) -> tuple[Result, ...]:
        """Build every bundle, then measure those whose target has a device; remember the stages for the report."""
        self.final = final
        builder = Builder(self.space, self.oracle, self._about(final))
        todo = list(orders(self.recipe.targets, parts(final)))
        outcomes: list[tuple[PlannedTarget, Outcome]] = []
        with self.progress.task("build bundles", len(todo)) as task:
            for entry, backend, part in todo:
                task.advance(0, f"{entry.target.name} {backend} {part.role}")
                outcome = builder.build(part, entry.target, backend)
                self.codes.append(outcome.code)
                outcomes.append((entry, outcome))
                task.advance(1, f"{entry.target.name} {backend} {part.role}")
        measured = self._measured(outcomes)
        marked, warnings = mark_ships(measured, self._max_drop(), predictions=self._predictions)
        self.warnings += warnings
        return marked

    def _about(self, final: Model) -> Mapping[str, Any]:
        return {
            "source_sha256": digest(self.oracle.model.proto.SerializeToString(deterministic=True)),
            "stages": tuple({"name": s.name, "config": _plain(s.config)} for s in final.history),
            "data": {"name": self.data.name, "sha256": self.data.sha256},
            "licences": {"data": self.data.licence} if self.data.licence else {},
        }

    def _measured(self, outcomes: Sequence[tuple[PlannedTarget, Outcome]]) -> list[Result]:
        """Answers of whatever runs here; times only on a device of the target."""
        profilers: dict[tuple[str, int], Profiler] = {}
        known: dict[str, dict[str, Any]] = {}
        answered: list[tuple[PlannedTarget, Outcome]] = []
        for entry, outcome in outcomes:
            name, threads = entry.device or "local", entry.threads
            profiler = profilers.setdefault((name, threads), self._profiler(name, threads, known))
            answered.append((entry, self._safely(partial(self._answers, profiler, entry), outcome)))
        timed: list[Result] = []
        for entry, outcome in answered:
            rivals = [o for e, o in answered if e is entry and o.result.backend == outcome.result.backend]
            if entry.device is None or outcome.bundle is None or outcome.result.status == "failed":
                timed.append(outcome.result)
                continue
            profiler = profilers[entry.device, entry.threads]
            timed.append(self._safely(partial(self._times, profiler, rivals), outcome).result)
        return timed

    def _profiler(self, name: str, threads: int, known: dict[str, dict[str, Any]]) -> Profiler:
        device: Device = resolve("device", name, DEVICES, "edgekit.devices")()
        most = self.recipe.measure.rounds
        looks = tuple(sorted({most // 4, most // 2, most} - set(range(4))))
        return Profiler(device, self.space, self.oracle, self.progress, threads, looks, known)

    def _safely(self, measure: Any, outcome: Outcome) -> Outcome:
        """Measure, and keep a device's refusal with the result that it concerns; the others go on."""
        try:
            return replace(outcome, result=measure(outcome))
        except MeasurementInvalidError as error:
            self.codes.append(int(error.exit_code))
            return replace(outcome, result=outcome.result.model_copy(update={"invalid": str(error)}))
        except (DeviceError, MissingDependencyError) as error:
            self.codes.append(int(error.exit_code))
            failed = {"status": "failed", "reason": str(error)}
            return replace(outcome, result=outcome.result.model_copy(update=failed))

    def _answers(self, profiler: Profiler, entry: PlannedTarget, outcome: Outcome) -> Result:
        """The bundle's answers, where its runtime is on the device (or, without a device, here)."""
        result, bundle = outcome.result, outcome.bundle
        if bundle is None or result.status != "built":
            return result
        if entry.device is None and not _runs_here(result.backend):
            return result
        return profiler.answers(bundle, result)

    def _times(self, profiler: Profiler, rivals: Sequence[Outcome], outcome: Outcome) -> Result:
        """Latency, and the interleaved comparison with the target's other roles on the same backend."""
        assert outcome.bundle is not None
        result = profiler.timing(outcome.bundle, outcome.result)
        by_role: dict[str, Bundle] = {
            o.result.role: o.bundle for o in rivals if o.bundle and o.result.status != "failed"
        }
        for vs in ("reference", "float"):
            if vs in by_role and vs != result.role and result.role != "reference":
                result = profiler.against(outcome.bundle, by_role[vs], vs, result)
        return result

    def _max_drop(self) -> float:
        drops = [stage.max_drop for stage in self.recipe.stages if hasattr(stage, "max_drop")]
        return float(drops[-1]) if drops and drops[-1] is not None else DEFAULT_MAX_DROP

    def _predictions(self, file: str) -> Any:
        return read_predictions(self.space.root / file)

    def finish(self, results: tuple[Result, ...]) -> Report:
        """Judge, and write `report.json` and `report.html`."""
        from edgekit.report import html

        report = self._report(results)
        judged = judge(report, self.recipe.gate, predictions=self._predictions)
        code = exit_code(judged, self.codes)
        report = report.model_copy(update={"gate": judged, "exit_code": int(code)})
        with writing_to(self.space.root):
            write_report(report, self.space.root / "report.json")
            write_text(self.space.root / "report.html", html.render(report, self.space.root))
        return report

    def _report(self, results: tuple[Result, ...]) -> Report:
        from edgekit.graph.cost import cost

        reference, seen = self.oracle.model, self.oracle.evaluate(self.oracle.outputs)
        spent = cost(reference.proto)
        return Report(
            edgekit=importlib.metadata.version(DISTRIBUTION),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            seconds=time.monotonic() - self.started,
            recipe=RecipeInfo(
                name=self.recipe.name,
                path=self.recipe.path.name,
                sha256=digest(self.recipe.path),
                text=self.recipe.path.read_text(encoding="utf-8"),
            ),
            data=DataInfo(
                name=self.data.name,
                split=self.oracle.split.name,
                n=len(self.oracle.split),
                sha256=self.data.sha256,
                task=self.data.task,
                classes=self.data.classes,
                licence=self.data.licence,
            ),
            source=SourceInfo(
                name=reference.name,
                origin=self.recipe.model.source,
                sha256=digest(reference.proto.SerializeToString(deterministic=True)),
                size_bytes=spent.bytes,
                macs=spent.macs,
                parameters=spent.parameters,
                metrics=seen.metrics if seen and self.oracle.split.labels is not None else None,
                per_class=seen.per_class if seen else (),
            ),
            stages=tuple(_stage_info(step) for step in self.final.history),
            targets=tuple(
                TargetInfo(target=p.target.name, backends=p.backends, device=p.device) for p in self.recipe.targets
            ),
            results=results,
            warnings=tuple(self.warnings),
            environment=_environment(),
        )


def _stage_info(step: Step) -> StageInfo:
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
    )


def _written(stage: Any) -> str:
    return json.dumps(stage.model_dump(mode="json"), sort_keys=True)


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(json.dumps(dict(config), default=str))
    return plain


def _runs_here(backend: str) -> bool:
    from edgekit.backends import BACKENDS

    return bool(resolve("backend", backend, BACKENDS, "edgekit.backends")().availability().runs)


def _environment() -> dict[str, str]:
    import platform

    found = {"python": platform.python_version(), "platform": platform.platform()}
    for package in ("torch", "onnx", "onnxruntime", "openvino", "ai-edge-litert", "litert-torch", "tensorrt-rtx"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
