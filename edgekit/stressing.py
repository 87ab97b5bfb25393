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
from edgekit.metrics import Difference, evaluate, paired_accuracy, wilson
from edgekit.profile import Profiler, write_inputs
from edgekit.recipe import PlannedTarget
from edgekit.report.predictions import Predictions, read_predictions, write_predictions
from edgekit.report.report import Result
from edgekit.report.robust import Condition, Robustness
from edgekit.report.values import Interval
from edgekit.robust.statistics import mean_accuracy, paired_mean
from edgekit.workspace import Workspace, digest, writing_to

Pair = tuple[PlannedTarget, Outcome]
Seen = list[tuple[Changed, Predictions]]

NOTABLE = 0.01
"""A bundle that loses this much more on corrupted samples than on clean ones (1 pp), and is shown to lose, is told."""


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
        whole = {_place(found[i]): seen[i] for i in asked if found[i][1].result.role == "reference"}
        for i in asked:
            planned, outcome = found[i]
            if outcome.result.status != "failed":
                rival = None if outcome.result.role == "reference" else whole.get(_place(found[i]))
                found[i] = planned, replace(outcome, result=self._told(outcome, seen[i], rival))
        return found

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

    def _told(self, outcome: Outcome, seen: Seen, rival: Seen | None) -> Result:
        """The result with what was seen, against the reference's where that saw as much, and where predictions lie."""
        assert outcome.bundle is not None and outcome.result.predictions_file is not None
        others = [p for _, p in rival] if rival and len(rival) == len(seen) else None
        conditions = []
        for i, (changed, predictions) in enumerate(seen):
            path = self.space.predictions / f"{outcome.bundle.path.stem}.{changed.name}.npz"
            with writing_to(self.space.root):
                write_predictions(predictions, path)
            right = predictions.correct()
            conditions.append(
                Condition(
                    name=changed.name,
                    kind=changed.kind,
                    accuracy=_accuracy(right),
                    lost=_interval(paired_accuracy(others[i].correct(), right)) if others else None,
                    predictions_file=self.space.relative(path),
                )
            )
        corrupted = [i for i, (changed, _) in enumerate(seen) if changed.kind == "corruption"]
        mine = [seen[i][1] for i in corrupted]
        robustness = Robustness(
            n=len(self.conditions.samples),
            clean=self._clean(self.space.root / outcome.result.predictions_file),
            mean=mean_accuracy(mine) if mine else None,
            lost=_interval(paired_mean([others[i] for i in corrupted], mine)) if mine and others else None,
            conditions=tuple(conditions),
            settings=self.conditions.settings.model_dump(mode="json"),
        )
        return outcome.result.model_copy(update={"robustness": robustness})

    def _clean(self, path: Path) -> Interval:
        """The accuracy on the same samples unchanged."""
        whole = read_predictions(path)
        right = dict(zip(whole.ids, whole.correct(), strict=True))
        return _accuracy([right[name] for name in self.conditions.samples.ids])


def less_robust(results: Sequence[Result]) -> list[str]:
    """A line for every bundle that is shown to have lost more on corrupted samples than on the same ones unchanged."""
    lines = []
    whole = {(r.target, r.backend): r.robustness for r in results if r.role == "reference" and r.robustness}
    for result in results:
        seen, reference = result.robustness, whole.get((result.target, result.backend))
        if seen is None or seen.lost is None or reference is None:
            continue
        clean = reference.clean.value - seen.clean.value
        if seen.lost.low > 0 and seen.lost.value - clean >= NOTABLE:
            ends = f"[{100 * seen.lost.low:.2f}, {100 * seen.lost.high:.2f}]"
            lines.append(
                f"{result.target} {result.backend}: the {result.role} {result.precision} bundle is less robust: it "
                f"loses {100 * seen.lost.value:.2f} pp {ends} against the reference on corrupted samples, "
                f"{100 * clean:.2f} pp on the same samples unchanged."
            )
    return lines


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
        exact = "exact" if getattr(profiler.device, "exact", False) else ""
        own = digest(self.key, profiler.device.name, exact, model_digest(bundle))
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


def _place(pair: Pair) -> tuple[str, str, str | None]:
    """Bundles of one place are compared with its reference."""
    planned, outcome = pair
    return outcome.result.target, outcome.result.backend, planned.device


def _interval(seen: Difference) -> Interval:
    return Interval(value=seen.value, low=seen.low, high=seen.high, n=seen.n)


def _accuracy(right: Sequence[bool] | np.ndarray[tuple[int, ...], np.dtype[np.bool_]]) -> Interval:
    return wilson(int(np.sum(right)), len(right))


def _read(path: Path) -> Predictions | None:
    """Answers that were kept; None where there are none or they are damaged."""
    try:
        return read_predictions(path)
    except UsageError:
        return None
