"""What a data set is for, and the metrics that tell how well it is done: names, units, and which way is better."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """`unit` as reports have it ("share", "dB"), "" where it is that of the labels or none.

    `lower` says that less is better, `signed` that it can lie below 0, `each` that it is the mean of one value a
    sample; any other is computed over all of them at once. `hits` says that each of those is 0 or 1.
    """

    unit: str
    lower: bool = False
    signed: bool = False
    each: bool = False
    hits: bool = False


METRICS: dict[str, Metric] = {
    "top5": Metric("share", each=True, hits=True),
    "map": Metric("share"),
    "map50": Metric("share"),
    "miou": Metric("share"),
    "pixel_accuracy": Metric("share"),
    "mae": Metric("", lower=True, each=True),
    "rmse": Metric("", lower=True),
    "recall_at_1": Metric("share", each=True, hits=True),
    "recall_at_5": Metric("share", each=True, hits=True),
    "retrieval_map": Metric("share", each=True),
    "cosine": Metric("", signed=True, each=True),
    "psnr": Metric("dB", each=True),
    "ssim": Metric("", signed=True, each=True),
    "auc": Metric("share"),
    "episode_return": Metric("", signed=True, each=True),
}
"""The metrics of tasks, beside those that every classifier has had: `accuracy`, `precision`, `recall`, `f1`, `loss` and
`calibration_error`."""

TASKS: dict[str, tuple[str, ...]] = {
    "classification": ("top5",),
    "detection": ("map", "map50"),
    "segmentation": ("miou", "pixel_accuracy"),
    "regression": ("mae", "rmse"),
    "embedding": ("recall_at_1", "recall_at_5", "retrieval_map", "cosine"),
    "restoration": ("psnr", "ssim"),
    "anomaly": ("auc",),
    "policy": ("episode_return",),
    "custom": (),
    "none": (),
}
"""Task -> its metrics. Those of `custom` are functions of the user's own; `policy` and `none` have no labels."""

WITHOUT_CLASSES = ("detection", "segmentation", "regression", "embedding", "restoration", "anomaly")
"""Tasks whose networks give no class logits `[N, classes]`: what is distilled there are outputs as they are."""

LEAST = 30
"""Of fewer samples, only the interval of a share of hits tells anything: resamples of a few that agree all agree."""
