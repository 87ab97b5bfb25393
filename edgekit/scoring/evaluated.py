"""The metrics of one network's answers to a task other than classification, and the user's own metrics of any."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from edgekit.data import DataSet
from edgekit.errors import UsageError
from edgekit.metrics import Evaluation, mean_interval, score
from edgekit.report.values import Metrics, Observed
from edgekit.scores import value_of
from edgekit.scoring import SCORERS, Array, Asked, Scored
from edgekit.scoring import score as score_task
from edgekit.tasks import TASKS


def evaluate_task(data: DataSet, asked: Asked) -> Evaluation | None:
    """Everything that `data` asks for beside the metrics of classifiers; None where that is nothing.

    Answers that are not finite are not scored, and a note says so.

    Raises:
        UsageError: answers or labels do not fit the task, or a function of the user's fails.
        MissingDependencyError: a library of the task is not installed.
    """
    truthful = data.task in SCORERS and (asked.truth is not None or data.task == "embedding")
    if not truthful and not data.metrics:
        return None
    n = len(asked.outputs[0])
    empty = Evaluation(Metrics(), (), np.empty((n, 0), np.int32), None, None)
    if broken := _broken(asked.outputs):
        return replace(empty, notes=(f"{broken} of {n} answers hold NaN or infinity: not scored",))
    user = {name: _own(name, metric(list(asked.outputs), asked.truth), n) for name, metric in data.metrics.items()}
    if not truthful:
        return replace(empty, user=user)
    if data.decode is not None:
        asked = replace(asked, outputs=_decoded(data, asked.outputs), reference=_decoded(data, asked.reference))
    scored = score_task(data.task, asked)
    return replace(empty, metrics=_metrics(data.task, scored, n), evidence=scored.evidence, user=user)


def _metrics(task: str, scored: Scored, n: int) -> Metrics:
    found = {}
    for name in TASKS[task]:
        try:
            value_of(name, scored.evidence, n)
        except UsageError:  # retrieval where nothing is labelled
            continue
        if (seen := score(name, scored.evidence, n, scored.values.get(name))) is not None:
            found[name] = seen
    return Metrics(scores=found)


def _broken(outputs: Sequence[Array]) -> int:
    """How many samples have an answer that is not finite."""
    bad = np.zeros(len(outputs[0]), bool)
    for output in outputs:
        if output.dtype.kind == "f":
            bad |= ~np.isfinite(output.reshape(len(output), -1)).all(axis=1)
    return int(bad.sum())


def _decoded(data: DataSet, outputs: Sequence[Array]) -> list[Array]:
    """What `decode` makes of the outputs: an array, or a list of them, as many samples long."""
    assert data.decode is not None
    given = data.decode([np.array(output) for output in outputs])
    found = [np.asarray(array) for array in (given if isinstance(given, list | tuple) else [given])]
    n = len(outputs[0])
    if not found or any(array.ndim == 0 or len(array) != n or array.dtype.kind not in "iufb" for array in found):
        seen = ", ".join(f"{array.dtype} {list(array.shape)}" for array in found) or "nothing"
        raise UsageError(
            f"`decode` gave {seen} for {n} samples: it must give numbers, {n} long, in one array or a list."
        )
    if broken := _broken(found):
        raise UsageError(f"`decode` made NaN or infinity of {broken} of {n} answers that are finite.")
    return found


def _own(name: str, given: object, n: int) -> Observed:
    """What the user's metric gave: one number, which has no interval, or one a sample, whose mean has."""
    try:
        values = np.asarray(given, np.float64)
    except (TypeError, ValueError):
        values = np.empty((0, 0))
    if values.ndim > 1 or (values.ndim == 1 and len(values) != n):
        raise UsageError(
            f"The metric {name!r} must give a number or {n} of them, one a sample; got {type(given).__name__}."
        )
    if not np.isfinite(values).all():
        raise UsageError(f"The metric {name!r} gave NaN or infinity.")
    if values.ndim == 0:
        return Observed(value=float(values), low=float(values), high=float(values), n=n)
    low, high = mean_interval(values)
    return Observed(value=float(values.mean()), low=low, high=high, n=n)
