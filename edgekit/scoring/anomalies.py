"""Anomaly detection: the area under the ROC curve, by scikit-learn."""

from __future__ import annotations

import numpy as np

from edgekit.errors import UsageError
from edgekit.extras import require
from edgekit.scoring import Array, Asked, Scored, one_output


def score(asked: Asked) -> Scored:
    """A score for each sample, higher is stranger, against labels `[N]`.

    The model gives one value a sample; one that gives its input again is scored by its mean squared error.
    """
    assert asked.truth is not None
    measure = require("sklearn.metrics", extra="metrics", why="the area under the ROC curve")
    if len(different := np.unique(asked.truth)) != 2:
        raise UsageError(
            f"Task 'anomaly': all {len(asked.truth)} samples are labelled {int(different[0])}; the area under the ROC "
            "curve is undefined with one class only. Score on samples of both."
        )
    strange = _strange(asked)
    area = float(measure.roc_auc_score(asked.truth, strange))
    return Scored({"anomaly": np.stack([strange, asked.truth.astype(np.float64)], axis=1)}, {"auc": area})


def _strange(asked: Asked) -> Array:
    output = one_output(asked, "anomaly", "a score a sample").astype(np.float64)
    if output.size == len(output):
        return output.reshape(-1)
    inputs = asked.inputs()
    if len(inputs) == 1 and inputs[0].shape == output.shape:
        error: Array = ((output - inputs[0]) ** 2).reshape(len(output), -1).mean(axis=1)
        return error
    raise UsageError(
        f"Task 'anomaly' needs one score a sample or the input again, the model gives {list(output.shape)}. Make a "
        "score of it with `decode: file.py:function`."
    )
