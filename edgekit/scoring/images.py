"""Restoration and generation: peak signal-to-noise ratio and structural similarity of each image, by scikit-image."""

from __future__ import annotations

import numpy as np

from edgekit.errors import UsageError
from edgekit.extras import require
from edgekit.scoring import Array, Asked, Scored, like_truth, one_output

HIGHEST_DB = 100.0
"""The ratio of an image that equals its label, which would be infinite."""
WINDOW = 7
"""Extent of the window of structural similarity in pixels."""


def score(asked: Asked) -> Scored:
    """Both metrics of each image against labels `[N, H, W]`, `[N, C, H, W]` or `[N, H, W, C]`."""
    assert asked.truth is not None
    measure = require("skimage.metrics", extra="metrics", why="PSNR and SSIM")
    answers = like_truth(one_output(asked, "restoration", "an image"), asked.truth, "restoration").astype(np.float64)
    truth, peak, axis = asked.truth.astype(np.float64), peak_of(asked.truth), _channels(asked.truth)
    evidence = {"psnr": np.empty(len(truth)), "ssim": np.empty(len(truth))}
    for row, (wanted, seen) in enumerate(zip(truth, answers, strict=True)):
        same = bool((wanted == seen).all())
        ratio = HIGHEST_DB if same else measure.peak_signal_noise_ratio(wanted, seen, data_range=peak)
        evidence["psnr"][row] = min(ratio, HIGHEST_DB)
        evidence["ssim"][row] = measure.structural_similarity(
            wanted, seen, data_range=peak, channel_axis=axis, win_size=WINDOW
        )
    return Scored(evidence, {})


def peak_of(truth: Array) -> float:
    """The range of values: 255 of bytes, 1 of floats within 0 and 1, else what the labels span."""
    if truth.dtype == np.uint8:
        return 255.0
    low, high = float(truth.min()), float(truth.max())
    if low >= 0 and high <= 1:
        return 1.0
    if high == low:
        raise UsageError(f"Task 'restoration': every value of the labels is {low:g}: there is no range to measure by.")
    return high - low


def _channels(truth: Array) -> int | None:
    """The axis of an image's channels."""
    shape = truth.shape[1:]
    axis = None if len(shape) == 2 else 0 if shape[0] <= 4 else 2
    sides = [extent for at, extent in enumerate(shape) if at != axis]
    if min(sides) < WINDOW:
        raise UsageError(
            f"Task 'restoration': images of {sides[0]} x {sides[1]} pixels are smaller than the window of {WINDOW} x "
            f"{WINDOW} of structural similarity."
        )
    return axis
