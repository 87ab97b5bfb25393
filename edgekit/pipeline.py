"""The main job: a recipe in; bundles, measurements, a report and an exit code out."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel

from edgekit.assess import Oracle, assess, did_not_help
from edgekit.building import Builder, Outcome, orders, parts
from edgekit.conditions import Conditions
from edgekit.context import Progress, Silent
from edgekit.data import DataSet, check_against
from edgekit.datasource import load_data
from edgekit.devices import Devices
from edgekit.emitting import Emitted, emit_all
from edgekit.errors import UsageError
from edgekit.extras import DISTRIBUTION
from edgekit.gate import exit_code, judge
from edgekit.launched import processes
from edgekit.measuring import Measuring, fit, saturated_here
from edgekit.model import Model, OnnxModel, Step, trail
from edgekit.observed import Evidence
from edgekit.probing import Probing, cleared
from edgekit.recipe import PlannedTarget, Recipe, load_recipe
from edgekit.report.predictions import Predictions, read_predictions, read_samples
from edgekit.report.report import Report, Result
from edgekit.reporting import describe, write
from edgekit.ships import MIN_SNR, mark_ships
from edgekit.stressing import Stress, less_robust
from edgekit.units import parse_duration
from edgekit.workspace import Context, Workspace, digest, load_stage, save_stage, writing_to
from edgekit.yamlfile import read_yaml

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from edgekit.stages import Stage
    from edgekit.train.processes import Processes

DEFAULT_OUT = Path("edgekit-out")
DEFAULT_MAX_DROP = 0.01


def run(
    recipe: str | Path,
    *,
    out: str | Path | None = None,
    targets: Sequence[str] | None = None,
    resume: bool = False,
    wait: bool = False,
    kill_on_interrupt: bool = False,
    time_budget: str | float | None = None,
    progress: Progress | None = None,
) -> Report:
    """Run a recipe: every stage, every target; measure, report and judge.

    Args:
        recipe: a YAML file.
        out: the output folder; by default `edgekit-out/<name of the model>`.
        targets: only these of the recipe's targets.
        resume: go on from the last stage that an earlier run into the same folder finished.
        wait: queue behind whoever measures on a board.
        kill_on_interrupt: end what runs on a board when this process is interrupted; else it goes on there, and the
            same run with `resume` takes up its result.
        time_budget: for training, such as `20m`, shared by the stages that train and have none of their own.
        progress: where to say how far it is; by default nowhere.

    Returns:
        The report, as it lies in `report.json`. `exit_code` is what the command line would end with: a gate that
        fails or a backend that cannot build is in there, and is no exception.

    Raises:
        UsageError: the recipe, the model or the data cannot be used as they are.
        DeviceError: the disk is full.

    >>> report = run("examples/fashion_mnist/quantize.yaml", out=getfixture("tmp_path"))
    >>> report.exit_code, report.shipped("x86-64", "onnxruntime").role
    (0, 'quantized')
    """
    chosen, shown = timed(load_recipe(recipe, targets=targets), time_budget), progress or Silent()
    devices = Devices(wait=wait, kill_on_interrupt=kill_on_interrupt, progress=shown)
    job = Run.start(chosen, out, resume=resume, progress=shown, devices=devices)
    try:
        final = job.compress()
        results = job.measure(job.build(final))
        return job.report(final, results)
    finally:
        job.space.close()


def emit(
    recipe: str | Path,
    *,
    out: str | Path | None = None,
    targets: Sequence[str] | None = None,
    resume: bool = False,
    time_budget: str | float | None = None,
    progress: Progress | None = None,
) -> Emitted:
    """Run a recipe's stages and write the graph of every target and backend, and the QuantSpec; nothing more.

    Nothing is compiled, run on the test samples, timed, reported or judged. Arguments and errors are those of `run`.

    >>> emitted = emit("examples/fashion_mnist/quantize.yaml", out=getfixture("tmp_path"))
    >>> emitted.quant, emitted.graphs[0].files
    ('quant.json', ('models/fashion_mnist-x86-64-onnxruntime-quantized-int8/model.onnx',))
    """
    chosen, shown = timed(load_recipe(recipe, targets=targets), time_budget), progress or Silent()
    job = Run.start(chosen, out, resume=resume, progress=shown, judged=False)
    try:
        emitted = emit_all(job.compress(), job.recipe.targets, job.data, job.space, shown)
        return emitted.model_copy(update={"warnings": tuple(job.warnings)})
    finally:
        job.space.close()


@dataclass
class Run:
    """What all steps of one run share. `key` is a hash over everything that the model so far came from."""

    recipe: Recipe
    space: Workspace
    data: DataSet
    source: Model
    oracle: Oracle
    progress: Progress
    resume: bool
    key: str
    started: float
    warnings: list[str] = field(default_factory=list)
    codes: list[int] = field(default_factory=list)
    refused: Mapping[str, str] = field(default_factory=dict)
    """What the last stage says against shipping the quantized network, by backend."""
    judged: bool = True
    devices: Devices = field(default_factory=Devices)
    conditions: Conditions | None = None

    @classmethod
    def start(
        cls,
        recipe: Recipe,
        out: str | Path | None,
        *,
        resume: bool,
        progress: Progress,
        judged: bool = True,
        devices: Devices | None = None,
    ) -> Run:
        """Open the output folder, load model and data, and hold them against each other.

        Without `judged` the reference is never asked, and no stage is held against it.
        """
        folder = output_folder(recipe.name, out)
        Workspace.check(folder)
        devices = devices or Devices(progress=progress)
        targets, warnings = fit(recipe.targets, devices)
        recipe = replace(recipe, targets=targets)
        with progress.task("load data and model"):
            job = cls.loaded(recipe, Workspace(folder), progress=progress)
            if judged:
                _ = job.oracle.outputs  # computed here, so that its time is not counted as the first stage's
                _ = job.oracle.evaluation  # what cannot be scored is refused here
            conditions = _conditions(recipe, job.oracle) if judged else None
        space = Workspace.open(folder, resume=resume)
        return replace(
            job, space=space, resume=resume, warnings=[*warnings, *job.data.notes], judged=judged, devices=devices,
            conditions=conditions,
        )  # fmt: skip

    @classmethod
    def loaded(cls, recipe: Recipe, space: Workspace, *, progress: Progress) -> Run:
        """Model and data, held against each other; the output folder is not touched."""
        started = time.monotonic()
        data, source = _data(recipe), _source(recipe)
        check_against(data, source.inputs, source.outputs)
        oracle = Oracle.of(source, data)
        from edgekit.graph.large import fingerprint  # needs onnx, whose absence loading told in one line

        reference = fingerprint(source.reference.proto)
        key = digest(metadata.version(DISTRIBUTION), reference, data.sha256, str(recipe.seed))
        return cls(recipe, space, data, source, oracle, progress, False, key, started)

    def compress(self, stages: int | None = None) -> Model:
        """The model after every stage, or the first `stages`, each held against the reference when it is done."""
        model, before = self.entered(), self.oracle.step if self.judged else Step("source", {}, 0.0)
        together = _together()
        for number, stage in enumerate(self.recipe.stages[:stages], 1):
            self.key = stage_key(self.key, stage, self.recipe)
            folder = self.space.stage(number, stage.kind)
            kept = load_stage(folder, self.key, model) if self.resume else None
            if kept is not None:
                self.progress.say(f"{stage.kind}: kept from the earlier run")
            elif (folder / "done.json").exists():
                self.progress.say(f"{stage.kind}: done again, the earlier run had other settings or is damaged")
            if together:
                together.agree(kept is None)
            model = kept or self._apply(stage, model, folder)
            if together:
                together.wait()
            after = model.history[-1]
            for line in (*after.warnings, did_not_help(before, after)):
                self._warn(line)
            before = after
            self.refused = after.refused
        return model

    def entered(self) -> Model:
        """The source; one that is an ONNX graph and whose weights will be trained becomes its torch view."""
        if isinstance(self.source, OnnxModel) and any(stage.trains for stage in self.recipe.stages):
            from edgekit.graph.crossing import to_torch

            return to_torch(self.source)
        return self.source

    def _apply(self, stage: Stage, model: Model, folder: Path) -> Model:
        context = self.context(stage, folder)
        try:
            with writing_to(self.space.root):
                applied = stage.apply(model, context)
        except Exception as error:
            error.add_note(f"in stage {stage.kind!r}, after {trail(model) or 'the original model'}")
            raise
        finally:
            cleared(self.space)
        if self.judged:
            with self.progress.task(f"check {stage.kind}"):
                step = assess(applied, applied.history[-1], self.oracle)
            applied = replace(applied, history=(*applied.history[:-1], step))
        if self.judged or stage is not self.recipe.stages[-1]:
            save_stage(folder, self.key, applied)
        return applied

    def context(self, stage: Stage, folder: Path) -> Context:
        """What the stage is lent."""
        targets = tuple(planned.target for planned in self.recipe.targets)
        later = self.recipe.stages[self.recipe.stages.index(stage) + 1 :]
        measure = Probing(self, later, self.devices).measure
        return Context(self.data, targets, self.recipe.seed, folder, None, self.progress, measure, self.recipe.base)

    def build(self, final: Model) -> list[tuple[PlannedTarget, Outcome]]:
        """Every bundle of every target, or the reason why there is none."""
        builder, todo = self._builder(final.history), list(orders(self.recipe.targets, parts(final)))
        outcomes = []
        with self.progress.task("build bundles", len(todo)) as task:
            for planned, backend, part in todo:
                task.advance(0, f"{planned.target.name} {backend} {part.role}")
                outcomes.append((planned, builder.build(part, planned.target, backend)))
                task.advance(1)
        self.codes += [outcome.code for _, outcome in outcomes]
        return outcomes

    def _builder(self, history: Sequence[Step]) -> Builder:
        from edgekit.graph.large import fingerprint

        licences = {"model": self.recipe.model.licence, "data": self.data.licence}
        about = {
            "source_sha256": digest(fingerprint(self.oracle.model.proto)),
            "stages": tuple({"name": step.name, "config": dict(step.config)} for step in history),
            "data": {"name": self.data.name, "sha256": self.data.sha256, "task": self.data.task},
            "licences": {name: licence for name, licence in licences.items() if licence},
        }
        return Builder(self.space, self.oracle, about)

    def _measuring(self) -> Measuring:
        settings = self.recipe.measure
        judged = [c.name.removeprefix("latency.p") for c in self.recipe.gate if c.name.startswith("latency.p")]
        percentile = max(settings.percentile, *map(float, judged), 50.0)
        return Measuring(
            self.space, self.oracle, self.progress, settings.rounds, percentile, self.codes, devices=self.devices,
            stress=self._stress(),
        )  # fmt: skip

    def _stress(self) -> Stress | None:
        return Stress(self.conditions, self.space, self.progress) if self.conditions else None

    def measure(self, outcomes: Sequence[tuple[PlannedTarget, Outcome]]) -> tuple[Result, ...]:
        """Answers of every bundle that runs here, times of those whose target has a device, and what ships."""
        allowed, least = self._bound("max_drop", DEFAULT_MAX_DROP), self._bound("min_snr", MIN_SNR)
        measured = self._measuring().all(outcomes)
        marked, warnings = mark_ships(
            measured, allowed, min_snr=least, refused=self.refused, predictions=self._predictions
        )
        for line in (*warnings, *less_robust(marked)):
            self._warn(line)
        self.warnings += saturated_here([(planned, one) for (planned, _), one in zip(outcomes, marked, strict=True)])
        return marked

    def _bound(self, name: str, default: float) -> float:
        """What the last stage that sets it says of how near to float a bundle must be."""
        said = [getattr(stage, name, None) for stage in self.recipe.stages]
        return next((float(bound) for bound in reversed(said) if bound is not None), default)

    def _warn(self, line: str | None) -> None:
        if line:
            self.warnings.append(line)
            self.progress.say(line)

    def _predictions(self, file: str) -> Predictions:
        return read_predictions(self.space.root / file)

    def _samples(self, file: str) -> npt.NDArray[np.float64]:
        return read_samples(self.space.root / file)

    def report(self, final: Model, results: tuple[Result, ...]) -> Report:
        """The report with the gate's verdicts, written as `report.json` and `report.html`."""
        seconds = time.monotonic() - self.started
        report = describe(self.recipe, self.oracle, final, results, warnings=self.warnings, seconds=seconds)
        judged = judge(report, self.recipe.gate, evidence=Evidence(report, self._predictions, self._samples))
        code = exit_code(judged, self.codes)
        report = report.model_copy(update={"gate": judged, "exit_code": int(code)})
        with writing_to(self.space.root):
            write(report, self.space.root)
        return report


def _conditions(recipe: Recipe, oracle: Oracle) -> Conditions | None:
    """The recipe's robustness block, held against data and network; what does not fit is told with its line."""
    if recipe.robustness is None:
        return None
    conditions = Conditions(recipe.robustness, recipe.seed, oracle)
    try:
        conditions.check()
    except UsageError as error:
        raise read_yaml(recipe.path, "recipe").error(("robustness",), str(error)) from error
    return conditions


def timed(recipe: Recipe, budget: str | float | None) -> Recipe:
    """The recipe with a time budget for all stages that train, in equal shares for those that have none.

    Raises:
        UsageError: it is no duration, or no stage could use it.
    """
    if budget is None:
        return recipe
    seconds = parse_duration(budget)
    open_ = [stage for stage in recipe.stages if getattr(stage, "time_budget", 0) is None]
    if seconds <= 0 or not open_:
        why = "must be longer than nothing" if open_ else "has no use here: no stage trains, or each has its own"
        raise UsageError(f"--time-budget {budget}: {why}.")
    share = {"time_budget": seconds / len(open_)}
    stages = tuple(
        stage.model_copy(update=share) if isinstance(stage, BaseModel) and stage in open_ else stage
        for stage in recipe.stages
    )
    return replace(recipe, stages=stages)


def output_folder(name: str, out: str | Path | None) -> Path:
    """`out`, or by default `edgekit-out/<name of the model>`."""
    return Path(out) if out else DEFAULT_OUT / name


def stage_key(before: str, stage: Stage, recipe: Recipe) -> str:
    """What a stage's result is made from: all that came before, its settings, the files that they name, the grids."""
    files = getattr(stage, "files", None)
    settings = json.dumps(stage.model_dump(mode="json"), sort_keys=True)
    grids = {f"{name} {facts.grid}" for one in recipe.targets for name, facts in one.target.backends.items()}
    by_grid = sorted(grids) if getattr(stage, "by_grid", False) else ()
    return digest(before, stage.kind, settings, *by_grid, *(files(recipe.base) if files else ()))


def _together() -> Processes | None:
    """The processes that train along, where `torchrun` started any: see `edgekit.follow`."""
    if processes() == 1:
        return None
    from edgekit.train.processes import Processes

    return Processes()


def _data(recipe: Recipe) -> DataSet:
    settings = recipe.data
    return load_data(
        settings.source,
        base=recipe.base,
        task=settings.task,
        preprocess=settings.preprocess.model_dump(exclude_none=True) if settings.preprocess else None,
        splits=settings.splits,
        classes=settings.classes,
        images=settings.images.model_dump(exclude_none=True) if settings.images else None,
        decode=settings.decode,
        metrics=settings.metrics,
        environment=settings.environment.model_dump() if settings.environment else None,
    )


def _source(recipe: Recipe) -> Model:
    from edgekit.sources import load_model

    settings = recipe.model
    weights = Path(settings.weights) if settings.weights else None
    return load_model(settings.source, weights=weights, inputs=settings.specs(), base=recipe.base, name=recipe.name)
