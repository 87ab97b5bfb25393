"""Every bundle of a run on changed forms of the same samples: made here, run by the agent, scored here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from edgekit.assess import scores
from edgekit.building import Outcome, model_digest
from edgekit.bundle import Bundle
from edgekit.conditions import Changed, Conditions
from edgekit.context import Progress, Task
from edgekit.errors import UsageError
from edgekit.metrics import evaluate, wilson
from edgekit.profile import Profiler, write_inputs
from edgekit.recipe import PlannedTarget
from edgekit.report.predictions import Predictions, read_predictions, write_predictions
from edgekit.report.report import Result
from edgekit.report.robust import Condition, Robustness
from edgekit.report.values import Interval
from edgekit.robust.statistics import mean_accuracy
from edgekit.workspace import Workspace, digest, writing_to

Pair = tuple[PlannedTarget, Outcome]
Seen = list[tuple[Changed, Predictions]]


@dataclass(frozen=True)
class Stress:
    """Measures robustness in one run. What was answered before is taken from the workspace, by content."""

    conditions: Conditions
    space: Workspace
    progress: Progress

    def all(
        self,
        answered: Sequence[Pair],
        profiler: Callable[[PlannedTarget], Profiler],
        guarded: Callable[[Outcome, Callable[[], Result]], Outcome],
    ) -> list[Pair]:
        """The outcomes with their robustness, where they have answers; what a device refuses stays with its bundle.

        One form of the samples is on the disk at a time.
        """
        found = list(answered)
        asked = [i for i, (_, outcome) in enumerate(found) if outcome.bundle and outcome.result.predictions_file]
        seen: dict[int, Seen] = {i: [] for i in asked}
        changed = self.conditions.changed
        with self.progress.task("robustness", len(changed) * len(asked) * len(self.conditions.samples)) as task:
            for one in changed:
                form = _Form(self, one)
                form.prepare([form.answers(profiler(found[i][0]), found[i][1].bundle) for i in asked])
                for i in asked:
                    planned, outcome = found[i]
                    if outcome.result.status != "failed":
                        found[i] = planned, self._asked(outcome, form, profiler(planned), guarded, task, seen[i])
                form.discard()
        return [
            (planned, replace(outcome, result=self._told(outcome, seen[i])) if i in seen else outcome)
            for i, (planned, outcome) in enumerate(found)
        ]

    def _asked(
        self,
        outcome: Outcome,
        form: _Form,
        profiler: Profiler,
        guarded: Callable[[Outcome, Callable[[], Result]], Outcome],
        task: Task,
        seen: Seen,
    ) -> Outcome:
        bundle, result = outcome.bundle, outcome.result
        assert bundle is not None

        def ask() -> Result:
            task.advance(0, f"{form.changed.name}, {bundle.path.stem}")
            seen.append((form.changed, self._answer(form, profiler, bundle, task)))
            return result

        return guarded(outcome, ask)

    def _answer(self, form: _Form, profiler: Profiler, bundle: Bundle, task: Task) -> Predictions:
        """The answers of one bundle to one form, from before where these are of the very same inputs."""
        path, samples = form.answers(profiler, bundle), self.conditions.samples
        kept = form.kept(path)
        if kept is not None:
            task.advance(len(samples))
            return kept
        outputs = profiler.outputs(bundle, form.path, task.advance)
        scored = evaluate(scores(outputs), samples.labels, probabilities=self.conditions.oracle.probabilities)
        name = f"{samples.name}.{form.changed.name}"
        found = scored.predictions(
            samples.ids, samples.labels, data_sha256=form.sha256, split=name, slices=samples.slices
        )
        with writing_to(self.space.root):
            path.parent.mkdir(exist_ok=True)
            write_predictions(found, path)
        return found

    def _told(self, outcome: Outcome, seen: Seen) -> Result:
        """The result with what was seen, and the predictions where the report says they are."""
        result = outcome.result
        if result.status == "failed":
            return result
        assert outcome.bundle is not None and result.predictions_file is not None
        conditions = []
        for changed, predictions in seen:
            path = self.space.predictions / f"{outcome.bundle.path.stem}.{changed.name}.npz"
            with writing_to(self.space.root):
                write_predictions(predictions, path)
            accuracy, file = _accuracy(predictions.correct()), self.space.relative(path)
            conditions.append(Condition(name=changed.name, kind=changed.kind, accuracy=accuracy, predictions_file=file))
        corrupted = [predictions for changed, predictions in seen if changed.kind == "corruption"]
        whole = read_predictions(self.space.root / result.predictions_file)
        right = dict(zip(whole.ids, whole.correct(), strict=True))
        robustness = Robustness(
            n=len(self.conditions.samples),
            clean=_accuracy([right[name] for name in self.conditions.samples.ids]),
            mean=mean_accuracy(corrupted) if corrupted else None,
            conditions=tuple(conditions),
            settings=self.conditions.settings.model_dump(mode="json"),
        )
        return result.model_copy(update={"robustness": robustness})


class _Form:
    """The file of one changed form, which is made where an answer is missing and removed after the last."""

    def __init__(self, stress: Stress, changed: Changed) -> None:
        self.stress, self.changed, self.sha256 = stress, changed, ""
        suffix = ".npy" if len(stress.conditions.oracle.model.inputs) == 1 else ".npz"
        self.path = stress.space.work / f"changed-{changed.name}{suffix}"
        self.key = stress.conditions.key(changed)

    def answers(self, profiler: Profiler, bundle: Bundle | None) -> Path:
        """Where the answers of a bundle lie, by all that they depend on."""
        assert bundle is not None
        own = digest(self.key, profiler.device.name, model_digest(bundle))
        return self.stress.space.work / "robust" / f"{own[:32]}.npz"

    def prepare(self, answers: Sequence[Path]) -> None:
        """Make the inputs unless every answer is there."""
        if all(_read(path) for path in answers):
            return
        conditions, space = self.stress.conditions, self.stress.space
        with self.stress.progress.task(f"make {self.changed.name}", len(conditions.samples)) as task:
            arrays = conditions.make(self.changed, task)
        content = (np.ascontiguousarray(array).tobytes() for array in arrays)
        self.sha256 = digest(conditions.oracle.data.sha256, *content)
        with writing_to(space.root):
            write_inputs(self.path, arrays, conditions.oracle.model.inputs)

    def kept(self, path: Path) -> Predictions | None:
        """Answers from before, unless the inputs made now are others."""
        found = _read(path)
        return found if found and self.sha256 in ("", found.data_sha256) else None

    def discard(self) -> None:
        """Remove the file."""
        self.path.unlink(missing_ok=True)


def _accuracy(right: Sequence[bool] | np.ndarray[tuple[int, ...], np.dtype[np.bool_]]) -> Interval:
    return wilson(int(np.sum(right)), len(right))


def _read(path: Path) -> Predictions | None:
    """Answers that were kept; None where there are none or they are damaged."""
    try:
        return read_predictions(path)
    except UsageError:
        return None
