"""Regression: mean absolute error and root mean squared error, in the unit of the labels."""

from __future__ import annotations

import numpy as np

from edgekit.scoring import Asked, Scored, like_truth, one_output


def score(asked: Asked) -> Scored:
    """Errors of each sample, averaged over the values of its label `[N, ...]`."""
    assert asked.truth is not None
    answers = like_truth(one_output(asked, "regression", "of the labels' shape"), asked.truth, "regression")
    gap = (answers.astype(np.float64) - asked.truth).reshape(len(answers), -1)
    return Scored({"mae": np.abs(gap).mean(axis=1), "squares": (gap**2).mean(axis=1)}, {})
