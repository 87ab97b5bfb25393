"""Semantic segmentation: mean intersection over union, and the share of pixels that are right."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edgekit.errors import UsageError
from edgekit.scoring import IGNORED, Array, Asked, Scored, one_output

Ints = npt.NDArray[np.int64]


def score(asked: Asked) -> Scored:
    """Counts of each sample and class against labels `[N, H, W]`."""
    assert asked.truth is not None
    output, truth = one_output(asked, "segmentation", "scores [N, classes, H, W]"), asked.truth.astype(np.int64)
    answers, classes = _classes(output, np.asarray(asked.reference[0]), truth)
    counted = (truth >= 0) & ~((truth == IGNORED) & (classes <= IGNORED))
    if not counted.any():
        raise UsageError("Task 'segmentation': no pixel has a label that counts.")
    highest = int(truth[counted].max())
    if highest >= classes:
        raise UsageError(
            f"Task 'segmentation': label {highest} is out of range: the model has {classes} classes, 0 to "
            f"{classes - 1}."
        )
    overlap = np.zeros((len(truth), 2, classes))
    for row, (seen, wanted, keep) in enumerate(zip(answers, truth, counted, strict=True)):
        seen, wanted = seen[keep], wanted[keep]
        both = np.bincount(wanted[seen == wanted], minlength=classes)
        either = np.bincount(seen, minlength=classes) + np.bincount(wanted, minlength=classes) - both
        overlap[row] = both, either
    pixels = np.stack([overlap[:, 0].sum(axis=1), counted.reshape(len(truth), -1).sum(axis=1)], axis=1)
    return Scored({"overlap": overlap, "pixels": pixels.astype(np.float64)}, {})


def _classes(output: Array, reference: Array, truth: Ints) -> tuple[Ints, int]:
    """The class of each pixel `[N, H, W]`, and how many classes there are.

    One channel is the score of class 1: a probability where the reference gives nothing outside 0 and 1, else a logit.
    """
    if output.shape == truth.shape and output.dtype.kind in "iu":
        known = truth[(truth >= 0) & (truth != IGNORED)]
        highest = max(int(array.max(initial=0)) for array in (output, reference, known))
        return np.maximum(output, 0).astype(np.int64), 1 + highest
    if output.shape == truth.shape:
        output, reference = output[:, None], reference[:, None]
    if output.ndim == 4 and (len(output), *output.shape[2:]) == truth.shape:
        axis = 1
    elif output.ndim == 4 and output.shape[:3] == truth.shape:
        axis = 3
    else:
        raise UsageError(
            f"Task 'segmentation' needs an output [N, classes, H, W] or [N, H, W] for labels {list(truth.shape)}, the "
            f"model gives {list(output.shape)}. Resize with `decode: file.py:function`."
        )
    if output.shape[axis] > 1:
        return output.argmax(axis=axis), output.shape[axis]
    probability = bool((reference >= 0).all() and (reference <= 1).all())
    return (output.squeeze(axis) > (0.5 if probability else 0.0)).astype(np.int64), 2
