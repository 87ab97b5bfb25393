"""From a network's answers to what the metrics of a task are computed from, one small module a kind of task.

`TRUTH` says what labels a task takes; `SCORERS` names what scores answers against them, imported when it is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.errors import UsageError
from edgekit.scores import Evidence

Array = npt.NDArray[Any]

IGNORED = 255
"""A pixel with this label, or one below 0, is not counted."""

SCORERS: dict[str, str] = {
    "detection": "edgekit.scoring.boxes:score",
    "segmentation": "edgekit.scoring.pixels:score",
    "regression": "edgekit.scoring.values:score",
    "embedding": "edgekit.scoring.neighbours:score",
    "restoration": "edgekit.scoring.images:score",
    "anomaly": "edgekit.scoring.anomalies:score",
}


@dataclass(frozen=True)
class Asked:
    """Answers of one network to `N` samples.

    `outputs` are its arrays, or what the user's `decode` made of them; `reference` those of the untouched network.
    `truth` `[N, ...]` are the labels, None where there are none; `inputs` gives the arrays that the network was fed.
    """

    outputs: Sequence[Array]
    reference: Sequence[Array]
    truth: Array | None
    inputs: Callable[[], Sequence[Array]]


@dataclass(frozen=True)
class Scored:
    """`evidence` as in `edgekit.scores`; `values` where a library computes them, which hold then."""

    evidence: Evidence
    values: dict[str, float]


def score(task: str, asked: Asked) -> Scored:
    """What is kept of every sample.

    Raises:
        UsageError: the answers are not of the shape that the task and its labels need.
        MissingDependencyError: a library is not installed.
    """
    module, _, function = SCORERS[task].partition(":")
    scored: Scored = getattr(import_module(module), function)(asked)
    return scored


def one_output(asked: Asked, task: str, wants: str) -> Array:
    """The only output, as float64.

    Raises:
        UsageError: there are several.
    """
    if len(asked.outputs) != 1:
        raise UsageError(
            f"Task {task!r} needs one output, {wants}; the model has {len(asked.outputs)}. Choose with "
            "`decode: file.py:function`, which gets the list of outputs."
        )
    return np.asarray(asked.outputs[0])


def like_truth(answers: Array, truth: Array, task: str) -> Array:
    """Answers in the shape of the labels: extents of 1 may differ.

    Raises:
        UsageError: they hold other values a sample.
    """

    def squeezed(shape: tuple[int, ...]) -> list[int]:
        return [extent for extent in shape[1:] if extent != 1]

    if len(answers) != len(truth) or squeezed(answers.shape) != squeezed(truth.shape):
        raise UsageError(
            f"Task {task!r} needs an output of the labels' shape {list(truth.shape[1:])} for each sample, the model "
            f"gives {list(answers.shape[1:])}. Bring it there with `decode: file.py:function`."
        )
    return answers.reshape(truth.shape)


def check_truth(where: str, task: str, y: Array, count: int) -> Array:
    """The labels of a task other than classification, looked at before anything runs.

    Raises:
        UsageError: they are of the wrong shape or type, or hold what no label can be.
    """
    shapes = {
        "detection": "[N, boxes, 5] (class, xmin, ymin, xmax, ymax; class -1 fills up)",
        "segmentation": "[N, H, W]",
        "regression": "[N] or [N, ...]",
        "embedding": "[N]",
        "restoration": "[N, H, W], [N, C, H, W] or [N, H, W, C]",
        "anomaly": "[N] (0, or 1 for an anomaly)",
        "custom": "[N, ...]",
    }
    ranks = {"detection": (3,), "segmentation": (3,), "embedding": (1,), "restoration": (3, 4), "anomaly": (1,)}
    fits = y.ndim in ranks.get(task, range(1, 9)) and len(y) == count and (task != "detection" or y.shape[2] == 5)
    if not fits:
        raise UsageError(f"{where}: {count} samples of task {task!r} need labels {shapes[task]}, got {list(y.shape)}.")
    whole = task in ("segmentation", "embedding", "anomaly")
    if task != "custom" and y.dtype.kind not in ("iub" if whole else "iuf"):
        raise UsageError(
            f"{where}: labels are of type {y.dtype}; task {task!r} needs {'whole ' if whole else ''}numbers."
        )
    if y.dtype.kind == "f" and not np.isfinite(y).all():
        row = int(np.argmax(~np.isfinite(y.reshape(count, -1)).all(axis=1)))
        raise UsageError(f"{where}: the label of sample {row} holds NaN or infinity. Remove or repair it.")
    if task == "anomaly" and not np.isin(y, (0, 1)).all():
        raise UsageError(f"{where}: labels are {np.unique(y)[:5].tolist()}; an anomaly is 1, anything else 0.")
    if task == "detection":
        _check_boxes(where, y)
    return y


def _check_boxes(where: str, y: Array) -> None:
    used = y[..., 0] >= 0
    wrong = used & ((y[..., 3] <= y[..., 1]) | (y[..., 4] <= y[..., 2]) | (y[..., 0] != np.floor(y[..., 0])))
    if wrong.any():
        sample, box = (int(i) for i in np.argwhere(wrong)[0])
        raise UsageError(
            f"{where}: box {box} of sample {sample} is {y[sample, box].tolist()}; a box is class, xmin, ymin, xmax, "
            "ymax with xmin < xmax, ymin < ymax and a whole number as class."
        )
