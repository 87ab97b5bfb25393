"""A report with its files, as a run leaves them, whose numbers a test chooses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from edgekit.report.predictions import Predictions, write_predictions, write_samples
from edgekit.report.report import (
    ClassMetrics,
    DataInfo,
    DeviceInfo,
    Latency,
    Paired,
    RecipeInfo,
    Report,
    Result,
    SourceInfo,
    TargetInfo,
    write_report,
)
from edgekit.report.robust import Condition, Robustness
from edgekit.report.values import Bounds, Interval, Metrics, Observed

N = 2000
CLASSES = 4
RECIPE = """\
version: 1
gate:
  - {metric: size, max: 2 MB}
"""


def predictions(wrong: int, *, n: int = N, sure: float = 0.9, where: int = 0, **more: Any) -> Predictions:
    """`n` samples of four classes, of which the `wrong` first from `where` on are wrong; half are of slice `dark`."""
    labels = np.arange(n, dtype=np.int64) % CLASSES
    top = labels.copy()
    top[where : where + wrong] = (top[where : where + wrong] + 1) % CLASSES
    loss = np.where(top == labels, 0.1, 2.3).astype(np.float32)
    light = np.where(np.arange(n) < n // 2, "dark", "bright").astype(np.str_)
    base = {
        "ids": tuple(map(str, range(n))), "labels": labels, "top": top[:, None].astype(np.int32), "loss": loss,
        "data_sha256": "d", "split": "test", "confidence": np.full(n, sure, np.float32), "slices": {"light": light},
    }  # fmt: skip
    return Predictions(**{**base, **more})


def samples(median_s: float = 0.010, n: int = 2000, spread: float = 0.05) -> Any:
    """Latencies as a quiet machine gives them, in seconds."""
    return median_s * np.exp(np.random.default_rng(0).normal(0, spread, n))


def share(value: float, n: int = N) -> Interval:
    half = 1.96 * (value * (1 - value) / n) ** 0.5
    return Interval(value=value, low=value - half, high=value + half, n=n)


def result(role: str = "quantized", wrong: int = 140, **more: Any) -> Result:
    """One bundle; its files are called after its role."""
    right = 1 - wrong / N
    base: dict[str, Any] = {
        "target": "pc", "backend": "onnxruntime", "precision": "int8" if role == "quantized" else "fp32", "role": role,
        "status": "measured", "ships": role == "quantized", "measured_on": "local",
        "device": DeviceInfo(name="local", fingerprint="f" * 64, threads=1, versions={"onnxruntime": "1.23"}),
        "size_bytes": 1_000_000 if role == "quantized" else 4_000_000, "bundle_bytes": 4_200_000,
        "predictions_file": f"predictions/{role}.npz",
        "metrics": Metrics(
            accuracy=share(right), precision=right, recall=right, f1=right, loss=0.25, calibration_error=0.03,
            intervals={"precision": (right - 0.01, right + 0.01), "recall": (right - 0.01, right + 0.01),
                       "f1": (right - 0.01, right + 0.01), "loss": (0.22, 0.28), "calibration_error": (0.02, 0.04)},
        ),
        "per_class": tuple(
            ClassMetrics(name=name, accuracy=0.97, precision=right, recall=right, f1=right, support=N // CLASSES)
            for name in ("a", "b", "c", "d")
        ),
        "latency_s": Latency(
            p50=Bounds(value=0.010, low=0.0099, high=0.0101), p90=Bounds(value=0.0107, low=0.0106, high=0.0108),
            n=2000, samples_file=f"samples/{role}.npy",
        ),
        "load_s": 0.4, "first_inference_s": 0.1, "peak_rss_bytes": 90_000_000, "energy_j": 0.02,
        "int8_nodes": 24 if role == "quantized" else 0, "float_nodes": 1 if role == "quantized" else 25,
        "agreement": 0.985, "agreement_n": N, "snr_db": 25.0,
        "robustness": Robustness(
            n=N, clean=share(right), mean=share(right - 0.05),
            conditions=(Condition(name="blur.3", kind="corruption", accuracy=share(right - 0.05),
                                  predictions_file=f"predictions/{role}-blur.npz"),),
        ),
        "user": {"drift": Observed(value=0.5, low=0.4, high=0.6, n=50, unit="mm")},
    }  # fmt: skip
    if role == "quantized":
        base["paired"] = tuple(
            Paired(vs="reference", statistic=p, ratio=0.5, low=0.45, high=0.55, rounds=24) for p in ("p50", "p90")
        )
    return Result(**{**base, **more})


def report(*results: Result, **more: Any) -> Report:
    """A report of these results; by default what ships and its reference."""
    base: dict[str, Any] = {
        "edgekit": "0", "created": "2026-01-01T00:00:00+00:00",
        "recipe": RecipeInfo(name="net", path="recipe.yaml", text=RECIPE),
        "data": DataInfo(name="d", split="test", n=N, classes=("a", "b", "c", "d")),
        "source": SourceInfo(name="net", size_bytes=4_000_000),
        "targets": (TargetInfo(target="pc", backends=("onnxruntime",), device="local"),),
        "results": results or (result(), result("reference", wrong=120)),
    }  # fmt: skip
    return Report(**{**base, **more})


def write(folder: Path, value: Report | None = None, wrong: dict[str, int] | None = None) -> Path:
    """Lay `report.json` down with predictions and samples; `wrong` says how many of a role's answers are."""
    for name in ("predictions", "samples"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for role, count in {"quantized": 140, "reference": 120, **(wrong or {})}.items():
        write_predictions(predictions(count), folder / "predictions" / f"{role}.npz")
        write_predictions(predictions(count + 100), folder / "predictions" / f"{role}-blur.npz")
        write_samples(samples(), folder / "samples" / f"{role}.npy")
    write_report(value or report(), folder / "report.json")
    return folder
